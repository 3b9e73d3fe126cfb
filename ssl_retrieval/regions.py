"""R-MAC: a map seen in overlapping squares of several sizes (Tolias et al., ICLR 2016)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

LEVELS = 3
OVERLAP = 0.4
"""Share of a square that its neighbour on the longer side should cover."""

_ALONG = range(2, 8)
"""How many largest squares may lie along the longer side."""


class Region(NamedTuple):
    """A square within a map, in cells."""

    top: int
    left: int
    side: int


def grid(height: int, width: int, levels: int = LEVELS) -> list[Region]:
    """List the regions of a map, as the paper's authors do.

    On level ``l`` the squares have the side ``2 min(H, W) / (l + 1)``, rounded down, and ``l`` of them lie
    evenly along the shorter side. Along the longer one there are more: as many as bring the overlap of the
    largest squares nearest to `OVERLAP`.

    Args:
        height: Of the map, at least 1.
        width: Likewise.
        levels: Number of sizes.

    Returns:
        1 + 4 + 9 regions for a square map that is large enough. The whole map is not added once more, which
        some implementations do.

    >>> [region.side for region in grid(7, 7)]
    [7, 4, 4, 4, 4, 3, 3, 3, 3, 3, 3, 3, 3, 3]
    >>> grid(2, 3, levels=1)
    [Region(top=0, left=0, side=2), Region(top=0, left=1, side=2)]
    """
    short, long = sorted((height, width))

    def misfit(along: int) -> float:
        return abs(1 - (long - short) / (along - 1) / short - OVERLAP)

    more = min(_ALONG, key=misfit) - 1 if long > short else 0
    found = []
    for level in range(1, levels + 1):
        side = 2 * short // (level + 1)
        if side == 0:
            continue
        tops = _starts(height - side, level + (more if height > width else 0))
        lefts = _starts(width - side, level + (more if width > height else 0))
        found += [Region(top, left, side) for top in tops for left in lefts]
    return found


def _starts(room: int, count: int) -> list[int]:
    return [0] if count == 1 else [place * room // (count - 1) for place in range(count)]


def vectors(maps: Tensor, levels: int = LEVELS) -> Tensor:
    """Take the maximum in each region.

    Args:
        maps: float [B, C, H, W].
        levels: As for `grid`.

    Returns:
        float [B, R, C], rows of length 1 or 0.
    """
    height, width = maps.shape[2:]
    largest = [
        maps[:, :, top : top + side, left : left + side].amax(dim=(2, 3))
        for top, left, side in grid(height, width, levels)
    ]
    return functional.normalize(torch.stack(largest, dim=1), dim=2)


def rmac(maps: Tensor, whitening: nn.Module | None = None) -> Tensor:
    """Sum the vectors of all regions: float [B, C, H, W] -> [B, D].

    Args:
        maps: The maps.
        whitening: Applied to the regions' vectors first, [B, R, C] -> [B, R, D] (see `Whitening`).
    """
    found = vectors(maps)
    return (found if whitening is None else whitening(found)).sum(dim=1)


class Whitening(nn.Module):
    """PCA-whitening of regions: [B, R, C] -> [B, R, D], rows of length 1 or 0.

    Attributes:
        mean: float32 [C].
        matrix: float32 [D, C].
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, mean: Tensor, matrix: Tensor) -> None:
        """Keep what was learned."""
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("matrix", matrix)

    def forward(self, found: Tensor) -> Tensor:
        """Project and scale to length 1."""
        # A difference first: whitened directions of small variance are small differences of large values.
        return functional.normalize((found - self.mean) @ self.matrix.T, dim=2)
