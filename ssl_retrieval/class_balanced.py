"""Which images make a step when classes must meet: P classes, K images of each, from seed and step alone.

Ranking losses learn from images of one class in one batch; a plain shuffle of many classes holds few such
pairs. Hermans, Beyer, Leibe: In Defense of the Triplet Loss for Person Re-Identification, arXiv 1703.07737.
"""

import numpy as np
import torch
from torch import Tensor

from ssl_retrieval.errors import UserError
from ssl_retrieval.types import IntArray


class ClassBalancedSampler:
    """Gives any step's batch without having gone through the steps before it.

    Classes come from a shuffle of all of them, P per step, so that each turns up equally often however many
    images it has. The images of a class come from shuffles of these, K per turn, so that all are seen before
    one is seen again (up to what is left over, which waits for the next shuffle). Those of a class stand
    together in a batch.

    Attributes:
        steps_per_epoch: Steps that see as many images as there are.
        num_left_out: Classes with fewer than K images, which take no part: to show an image twice in a
            batch, altered alike, would teach nothing.
    """

    def __init__(self, labels: IntArray, batch_size: int, images_per_class: int, seed: int) -> None:
        """Sort the images by class.

        Args:
            labels: int64 [N].
            batch_size: P · K.
            images_per_class: K, at least 2.
            seed: The run's seed.

        Raises:
            UserError: ``batch_size`` is no multiple of K, or fewer than P classes have K images.
        """
        if batch_size % images_per_class:
            below = batch_size // images_per_class * images_per_class
            raise UserError(
                f"batch_size={batch_size} is no multiple of images_per_class={images_per_class}: set "
                f"batch_size={below or images_per_class}"
            )
        self.images_per_class, self.seed = images_per_class, seed
        self.classes_per_batch = batch_size // images_per_class
        of_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        self.members = [torch.from_numpy(places) for places in of_class if len(places) >= images_per_class]
        self.num_left_out = len(of_class) - len(self.members)
        if len(self.members) < self.classes_per_batch:
            most = len(self.members) * images_per_class
            advice = f"lower batch_size to {most}" if most else "lower images_per_class"
            raise UserError(
                f"batch_size={batch_size} with images_per_class={images_per_class} needs "
                f"{self.classes_per_batch} classes of at least {images_per_class} images, and there are "
                f"{len(self.members)}: {advice}, or set images_per_class=0 for plain batches"
            )
        self.steps_per_epoch = max(1, sum(map(len, self.members)) // batch_size)
        self._rounds = len(self.members) // self.classes_per_batch

    def batch(self, step: int) -> Tensor:
        """Give the int64 [batch_size] image numbers of a step, class by class."""
        turn, place = divmod(step, self._rounds)
        first = place * self.classes_per_batch
        classes = self._shuffle(len(self.members), turn, 0)[first : first + self.classes_per_batch]
        return torch.cat([self._images(number, turn) for number in classes.tolist()])

    def _images(self, number: int, turn: int) -> Tensor:
        members = self.members[number]
        shuffle, place = divmod(turn, len(members) // self.images_per_class)
        first = place * self.images_per_class
        order = self._shuffle(len(members), shuffle, 1 + number)
        return members[order[first : first + self.images_per_class]]

    def _shuffle(self, length: int, turn: int, what: int) -> Tensor:
        mixed = np.random.SeedSequence([self.seed % 2**64, what, turn]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(mixed) % 2**63)
        return torch.randperm(length, generator=generator)
