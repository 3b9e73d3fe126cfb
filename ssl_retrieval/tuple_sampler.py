"""Which images make a step when some belong together: whole tuples, shuffled, each as often as any other."""

import numpy as np
import torch
from torch import Tensor

from ssl_retrieval.errors import UserError


class TupleSampler:
    """Gives any step's batch without having gone through the steps before it.

    Tuples come from one shuffle of all of them after the other, without a gap: however many steps are taken,
    none has been used more than once more than another.

    Attributes:
        steps_per_epoch: Whole batches in a pass over the tuples.
    """

    def __init__(self, tuples: Tensor, batch_size: int, seed: int) -> None:
        """Take notice of the tuples.

        Args:
            tuples: int64 [T, L] image numbers.
            batch_size: Images per step, a multiple of L.
            seed: The run's seed.

        Raises:
            UserError: A step would take more tuples than there are.
        """
        count, length = tuples.shape
        assert batch_size % length == 0
        if count * length < batch_size:
            raise UserError(
                f"batch_size={batch_size} needs {batch_size // length} tuples of {length} images, and there "
                f"are {count}: lower batch_size to {max(1, count) * length} or below"
            )
        self.tuples, self.seed = tuples, seed
        self.per_step = batch_size // length
        self.steps_per_epoch = count // self.per_step

    def batch(self, step: int) -> Tensor:
        """Give the int64 [batch_size] image numbers of a step, tuple by tuple."""
        first = step * self.per_step
        turn, place = divmod(first, len(self.tuples))
        rows = self._order(turn)[place : place + self.per_step]
        if len(rows) < self.per_step:
            rows = torch.cat([rows, self._order(turn + 1)[: self.per_step - len(rows)]])
        return torch.flatten(self.tuples[rows])

    def _order(self, turn: int) -> Tensor:
        mixed = np.random.SeedSequence([self.seed % 2**64, turn]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(mixed) % 2**63)
        return torch.randperm(len(self.tuples), generator=generator)
