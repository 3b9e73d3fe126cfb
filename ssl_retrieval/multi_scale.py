"""An image seen at several sizes: one vector of all (as in Radenović et al., 2018)."""

import torch
from torch import Tensor
from torch.nn import functional

from ssl_retrieval.errors import UserError

MAX_SCALE = 4.0


def sides(size: int, scales: list[float], multiple: int = 1) -> list[int]:
    """Give the sides of the square inputs.

    Args:
        size: Side in pixels at scale 1, a multiple of ``multiple``.
        scales: Factors.
        multiple: What a side must be a multiple of: a ViT's patch.

    Returns:
        The nearest possible side for each scale.

    Raises:
        UserError: No scale, or one that means nothing.

    >>> sides(224, [1.0, 0.7071, 0.5]), sides(224, [1.0, 0.7071], multiple=16)
    ([224, 158, 112], [224, 160])
    """
    if not scales or not all(0 < scale <= MAX_SCALE for scale in scales):
        raise UserError(
            f"model.scales={scales}: at least one number is needed, each above 0 and up to {MAX_SCALE:g}"
        )
    return [max(multiple, round(size * scale / multiple) * multiple) for scale in scales]


def resized(images: Tensor, side: int) -> Tensor:
    """Scale square images, bilinearly: float [B, 3, H, H] -> [B, 3, side, side]."""
    if images.shape[-1] == side:
        return images
    return functional.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)


def merged(vectors: list[Tensor], power: float = 1.0) -> Tensor:
    """Make one vector of those of several views: ``(mean v^power)^(1/power)``, of vectors of length 1.

    Args:
        vectors: float [B, D] each, of any length; not negative unless ``power`` is 1.
        power: The exponent of GeM, where the vectors come from it; else 1.

    Returns:
        float32 [B, D], rows of length 1 or 0. Each row is scaled by itself, never a batch as a whole.
    """
    normalised = torch.stack([functional.normalize(each.float(), dim=1) for each in vectors])
    mean = normalised.mean(dim=0) if power == 1 else normalised.pow(power).mean(dim=0).pow(1 / power)
    return functional.normalize(mean, dim=1)
