"""Local binary patterns: texture, whatever the light and however it is turned (Ojala et al., 2002)."""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage.feature import local_binary_pattern
from torch import Tensor, nn

from ssl_retrieval.errors import UserError
from ssl_retrieval.types import VectorArray

_POINTS_PER_RADIUS = 8


@dataclass
class Config:
    """What is counted, and where.

    Attributes:
        radii: Radii of the circles in pixels; a circle of radius R has 8·R points, as in the paper.
        grid: Cells per side, each with its own histograms; 1 = texture alone, wherever it is.
        size: Larger images are reduced to size² pixels.
    """

    name: str = "lbp"
    radii: list[int] = field(default_factory=lambda: [1, 2, 3])
    grid: int = 1
    size: int = 128


class Extractor(nn.Module):
    """Histograms of rotation-invariant uniform patterns, one per cell and radius, each with unit length.

    A pattern tells which points of a circle are at least as light as its centre. Ojala, Pietikäinen &
    Mäenpää (*Multiresolution gray-scale and rotation invariant texture classification with local binary
    patterns*, 2002) count those with at most two changes around the circle by their number of light points,
    and all others in one bin: 8·R + 2 bins. Each histogram is divided by its sum, and the square root makes
    the dot product the Bhattacharyya coefficient (Hellinger kernel).

    The image is reduced in proportion and never enlarged: squeezing would stretch the texture, cropping would
    lose some, and enlarging would smooth it. As in the paper, only pixels whose circle lies within the
    image have a pattern. Where there are none, the histogram is zero: an image with a side of less than 3
    pixels has no features.
    """

    family = "hand-crafted"

    def __init__(self, cfg: Config) -> None:
        """Check radii, grid and size."""
        super().__init__()
        if not cfg.radii or not all(1 <= radius <= 8 for radius in cfg.radii):
            raise UserError(f"model.radii={cfg.radii}: LBP needs one radius or more, each from 1 to 8")
        if not 1 <= cfg.grid <= 16:
            raise UserError(f"model.grid={cfg.grid}: LBP needs 1 to 16 cells per side")
        if not 16 <= cfg.size <= 1024:
            raise UserError(f"model.size={cfg.size}: LBP needs a size of 16 to 1024")
        self.cfg = cfg
        self.dim = cfg.grid**2 * sum(_POINTS_PER_RADIUS * radius + 2 for radius in cfg.radii)
        self.weights_digest = "none"

    def preprocess(self, image: Image.Image) -> Tensor:
        """Make the vector: RGB image -> float32 [dim], radius by radius, cells in reading order."""
        grey = np.asarray(_reduced(image.convert("L"), self.cfg.size))
        histograms = [
            _histogram(cell, _POINTS_PER_RADIUS * radius + 2)
            for radius in self.cfg.radii
            for rows in np.array_split(_patterns(grey, radius), self.cfg.grid, axis=0)
            for cell in np.array_split(rows, self.cfg.grid, axis=1)
        ]
        return torch.from_numpy(np.concatenate(histograms))

    def forward(self, batch: Tensor) -> Tensor:
        """Give the vectors back: float32 [B, dim]."""
        return batch


def _reduced(image: Image.Image, size: int) -> Image.Image:
    factor = size / (image.width * image.height) ** 0.5
    if factor >= 1:
        return image
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _patterns(grey: NDArray[np.uint8], radius: int) -> NDArray[np.int64]:
    """Give [H - 2·radius, W - 2·radius] numbers of patterns; empty where no circle fits."""
    patterns = local_binary_pattern(grey, _POINTS_PER_RADIUS * radius, radius, method="uniform")
    return patterns[radius:-radius, radius:-radius].astype(np.int64)


def _histogram(patterns: NDArray[np.int64], num_bins: int) -> VectorArray:
    counts = np.bincount(patterns.ravel(), minlength=num_bins)
    return np.sqrt(counts / max(counts.sum(), 1)).astype(np.float32)
