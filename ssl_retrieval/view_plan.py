"""From random numbers to what happens to each image of a view: which operations, in what order, how much."""

from typing import NamedTuple

import torch
from torch import Tensor

NUM_DRAWS = 24
"""Random numbers per image and view, those of the crop apart."""


class Ranges(NamedTuple):
    """The probabilities and ranges of an `augment.Augment` that its draws are turned into values by."""

    jitter: float
    widths: tuple[float, float, float]
    hue: float
    grayscale: float
    blur: float
    sigma: tuple[float, float]
    solarize: float
    affine: float
    rotate: float
    shrink: float


class Plan(NamedTuple):
    """One row per image.

    Attributes:
        jittered: bool [B].
        factors: float32 [B, 4]: brightness, contrast, saturation, and the hue's shift in turns.
        order: int64 [B, 4], the operation at each position.
        grey: bool [B].
        blurred: bool [B].
        sigma: float32 [B], in pixels.
        solarized: bool [B].
        moved: bool [B].
        angle: float32 [B], degrees.
        scale: float32 [B].
        shift: float32 [B, 2], in half sides of the image.
        ground: float32 [B, 3] in [0, 1].
    """

    jittered: Tensor
    factors: Tensor
    order: Tensor
    grey: Tensor
    blurred: Tensor
    sigma: Tensor
    solarized: Tensor
    moved: Tensor
    angle: Tensor
    scale: Tensor
    shift: Tensor
    ground: Tensor

    def rows(self, part: slice) -> "Plan":
        """Keep some images."""
        return Plan(*(values[part] for values in self))


def make(ranges: Ranges, draws: Tensor) -> Plan:
    """Turn draws into values, without asking the device for any.

    Args:
        ranges: From the config.
        draws: float32 [B, 24] in [0, 1); the first is the flip's.
    """
    factors = []
    for column, width in enumerate(ranges.widths, 2):
        low = max(0.0, 1 - width)
        factors.append(low + draws[:, column] * (1 + width - low))
    factors.append((2 * draws[:, 5] - 1) * ranges.hue)
    low, high = ranges.sigma
    scale = ranges.shrink + draws[:, 16] * (1 - ranges.shrink)
    return Plan(
        jittered=draws[:, 1] < ranges.jitter,
        factors=torch.stack(factors, dim=1),
        order=draws[:, 6:10].argsort(dim=1),
        grey=draws[:, 10] < ranges.grayscale,
        blurred=draws[:, 11] < ranges.blur,
        sigma=low + draws[:, 12] * (high - low),
        solarized=draws[:, 13] < ranges.solarize,
        moved=draws[:, 14] < ranges.affine,
        angle=(2 * draws[:, 15] - 1) * ranges.rotate,
        scale=scale,
        # The shift keeps the (unturned) image inside the frame.
        shift=(2 * draws[:, 17:19] - 1) * (1 - scale)[:, None],
        ground=draws[:, 19:22],
    )
