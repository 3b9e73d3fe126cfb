"""Which images make a step: a shuffle per epoch that follows from the seed alone."""

import torch
from torch import Tensor


class Sampler:
    """Gives any step's batch without having gone through the steps before it.

    Attributes:
        steps_per_epoch: Whole batches in a pass; what is left over waits for the next shuffle.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int) -> None:
        """Take notice of the sizes.

        Args:
            num_images: N.
            batch_size: Images per step, at most N.
            seed: The run's seed.
        """
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.steps_per_epoch = num_images // batch_size
        self._order, self._epoch = torch.empty(0, dtype=torch.int64), -1

    def batch(self, step: int) -> Tensor:
        """Give the int64 [batch_size] image numbers of a step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._order = torch.randperm(self.num_images, generator=generator)
            self._epoch = epoch
        return self._order[place * self.batch_size : (place + 1) * self.batch_size]
