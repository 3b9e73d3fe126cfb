"""Colour moments on a grid: mean, spread and skewness of each channel (Stricker & Orengo, 1995)."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from skimage.color import rgb2lab
from torch import Tensor, nn

from ssl_retrieval.errors import UserError
from ssl_retrieval.types import VectorArray

_CELL_SIZE = 32
"""Side of a cell in pixels: enough for stable moments, whatever the size of the image."""

_RANGES = np.array([100, 50, 50], dtype=np.float32)
"""Of L, a and b. The colours of photos fill less than half of what a and b may be."""


@dataclass
class Config:
    """``grid``: cells per side; 1 = the moments of the whole image."""

    name: str = "color_moments"
    grid: int = 3


class Extractor(nn.Module):
    """Mean, standard deviation and cube root of the third central moment of L, a and b in each cell.

    Stricker & Orengo (*Similarity of color images*, 1995) take HSV; here it is CIELAB, where a mean has a
    meaning: hue is an angle, and the mean of two reds may be cyan.

    The image is squeezed to the grid, not cropped: all of its colours count, and where a cell lies does not
    depend on the aspect ratio. Moments do not see what that does to shapes. A black image gives the zero
    vector.
    """

    family = "hand-crafted"

    def __init__(self, cfg: Config) -> None:
        """Check the grid."""
        super().__init__()
        if not 1 <= cfg.grid <= 16:
            raise UserError(f"model.grid={cfg.grid}: colour moments need 1 to 16 cells per side")
        self.cfg = cfg
        self.dim = 9 * cfg.grid**2
        self.weights_digest = "none"

    def preprocess(self, image: Image.Image) -> Tensor:
        """Make the vector: RGB image -> float32 [dim], cells in reading order, then channel, then moment."""
        side = self.cfg.grid * _CELL_SIZE
        small = image.resize((side, side), Image.Resampling.BILINEAR)
        lab = rgb2lab(np.asarray(small, dtype=np.float32) / 255.0) / _RANGES
        cells = lab.reshape(self.cfg.grid, _CELL_SIZE, self.cfg.grid, _CELL_SIZE, 3).transpose(0, 2, 4, 1, 3)
        return torch.from_numpy(moments(cells.reshape(*cells.shape[:3], -1)).ravel())

    def forward(self, batch: Tensor) -> Tensor:
        """Give the vectors back: float32 [B, dim]."""
        return batch


def moments(values: VectorArray) -> VectorArray:
    """Take the first three moments, all in the unit of the values.

    Args:
        values: float32 [..., N].

    Returns:
        float32 [..., 3]: mean, standard deviation, cube root of the mean cubed deviation (signed).

    >>> moments(np.array([1, 1, 1, 5], dtype=np.float32)).round(3)
    array([2.   , 1.732, 1.817], dtype=float32)
    """
    mean = values.mean(axis=-1, dtype=np.float64)
    deviations = values - mean[..., None]
    squares = deviations**2
    spread = np.sqrt(squares.mean(axis=-1))
    skewness = np.cbrt((squares * deviations).mean(axis=-1))
    return np.stack([mean, spread, skewness], axis=-1).astype(np.float32)
