"""Multi-crop: two large views of an image and several small ones, each size in its own forward pass.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin: Unsupervised Learning of Visual Features by Contrasting
Cluster Assignments, NeurIPS 2020 (arXiv 2006.09882), section 3.3.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from ssl_retrieval import backbones
from ssl_retrieval.augment import Augment, View
from ssl_retrieval.defaults import Facts
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import Choices

SMALLEST_IMAGE = 64
"""Side in pixels from which parts of an image are worth views of their own."""


@dataclass
class CropAugment(Augment):
    """An `Augment` that may leave the size of its crops to the method.

    Attributes:
        crop_min: Least share of the image's area; None = the method's choice.
        crop_max: Largest share; None = the method's choice.
    """

    # Never read as they are: `within` gives an Augment that has both.
    crop_min: float | None = None  # type: ignore[assignment]
    crop_max: float | None = None  # type: ignore[assignment]

    def within(self, crop_min: float, crop_max: float) -> Augment:
        """Put a range where the config has none.

        Raises:
            UserError: A value outside its range.
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.crop_min is None:
            values["crop_min"] = crop_min
        if self.crop_max is None:
            values["crop_max"] = crop_max
        made = Augment(**values)
        made.check()
        return made


def choices(facts: Facts, local_crops: int) -> Choices:
    """Choose ``method.local_crops``.

    Args:
        facts: What the choice depends on.
        local_crops: How many the paper takes.

    >>> choices(Facts(image_size=32), 8)
    {'method.local_crops': (0, 'images of 32 px are too small for local crops')}
    """
    size = facts.image_size
    if size < SMALLEST_IMAGE:
        return {"method.local_crops": (0, f"images of {size} px are too small for local crops")}
    if size < 2 * SMALLEST_IMAGE:
        return {"method.local_crops": (min(6, local_crops), f"images of {size} px are small")}
    return {"method.local_crops": (local_crops, "as the paper")}


def make_views(
    large: Sequence[Augment],
    small: Augment,
    *,
    image_size: int,
    local_crops: int,
    local_size: int,
    patch_size: int,
) -> list[View]:
    """List the large views, then the small ones.

    Args:
        large: One per large view.
        small: For all small views.
        image_size: Side of the large views in pixels.
        local_crops: How many small views.
        local_size: Their side in pixels; 0 = 3/7 of ``image_size`` (the papers' 96 of 224), rounded to
            whole patches.
        patch_size: See `backbones.patch_size`.

    Raises:
        UserError: A negative number of crops, or a size that does not fit.
    """
    if local_crops < 0:
        raise UserError(f"method.local_crops={local_crops}: must not be negative")
    nearest = max(1, round(image_size * 3 / 7 / patch_size)) * patch_size
    size = local_size or nearest
    if size % patch_size or not 0 < size <= image_size:
        raise UserError(
            f"method.local_size={local_size}: must be a multiple of the patch size {patch_size} and at most "
            f"model.image_size={image_size}: try {nearest}"
        )
    return [View(augment, image_size) for augment in large] + [View(small, size)] * local_crops


def features(network: nn.Module, views: Sequence[Tensor]) -> Tensor:
    """Run a network over views, neighbours of one size together.

    Args:
        network: From `backbones.make`.
        views: V tensors, float [B, 3, S, S] with S of their own.

    Returns:
        [V · B, D]: the rows of the first view, then those of the second, and so on.
    """
    sizes = groupby(views, key=lambda view: view.shape[-1])
    return torch.cat([backbones.own_pooling(network, torch.cat(list(same))) for _, same in sizes])
