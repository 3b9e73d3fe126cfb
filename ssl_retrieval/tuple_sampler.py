"""Which images make a step when some belong together: whole tuples, shuffled, each as often as any other."""

import torch
from torch import Tensor

from ssl_retrieval.errors import UserError
from ssl_retrieval.sampler import Sampler


class TupleSampler:
    """Gives any step's batch without having gone through the steps before it.

    Attributes:
        steps_per_epoch: Whole batches in a pass over the tuples.
    """

    def __init__(self, tuples: Tensor, batch_size: int, seed: int) -> None:
        """Take notice of the tuples.

        Args:
            tuples: int64 [T, L] image numbers.
            batch_size: Images per step.
            seed: The run's seed.

        Raises:
            UserError: ``batch_size`` holds no whole number of tuples, or more than there are.
        """
        count, length = tuples.shape
        if batch_size % length:
            below = batch_size // length * length
            raise UserError(
                f"batch_size={batch_size} is no multiple of {length}, the images that belong together: set "
                f"batch_size={below or length}"
            )
        if count * length < batch_size:
            raise UserError(
                f"batch_size={batch_size} needs {batch_size // length} tuples of {length} images, and there "
                f"are {count}: lower batch_size to {max(1, count) * length} or below"
            )
        self.tuples = tuples
        self._rows = Sampler(count, batch_size // length, seed)
        self.steps_per_epoch = self._rows.steps_per_epoch

    def batch(self, step: int) -> Tensor:
        """Give the int64 [batch_size] image numbers of a step, tuple by tuple."""
        return torch.flatten(self.tuples[self._rows.batch(step)])
