"""Histograms of oriented gradients: where edges of which direction are (Dalal & Triggs, 2005)."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from skimage.feature import hog
from torch import Tensor, nn

from ssl_retrieval.errors import UserError

_CELL_SIZE = 8
_BLOCK_SIZE = 2
_NUM_ORIENTATIONS = 9


@dataclass
class Config:
    """``size``: side in pixels to which the image is squeezed, a multiple of 8."""

    name: str = "hog"
    size: int = 64


class Extractor(nn.Module):
    """HOG of the squeezed image: ``36·(size/8 − 1)²`` values between 0 and 1.

    The settings are those of Dalal & Triggs (*Histograms of oriented gradients for human detection*, 2005):
    the channel with the strongest gradient at each pixel, no gamma, 9 unsigned orientations, cells of 8
    pixels, overlapping blocks of 2 × 2 cells with L2-Hys. scikit-image leaves out their interpolation
    between bins and the Gaussian window of a block.

    The vector needs a fixed number of cells. Squeezing keeps the whole object in view, and the two images of
    a pair mostly have the same aspect ratio; a centre crop would cut off the ends of everything long. An
    image without any gradient gives the zero vector.
    """

    family = "hand-crafted"

    def __init__(self, cfg: Config) -> None:
        """Check the size."""
        super().__init__()
        if not 16 <= cfg.size <= 512 or cfg.size % _CELL_SIZE:
            raise UserError(f"model.size={cfg.size}: HOG needs a multiple of 8 from 16 to 512")
        self.cfg = cfg
        num_blocks = cfg.size // _CELL_SIZE - _BLOCK_SIZE + 1
        self.dim = num_blocks**2 * _BLOCK_SIZE**2 * _NUM_ORIENTATIONS
        self.weights_digest = "none"

    def preprocess(self, image: Image.Image) -> Tensor:
        """Make the vector: RGB image -> float32 [dim], block by block, then cell, then orientation."""
        small = image.resize((self.cfg.size, self.cfg.size), Image.Resampling.BILINEAR)
        vector = hog(
            np.asarray(small, dtype=np.float32),
            orientations=_NUM_ORIENTATIONS,
            pixels_per_cell=(_CELL_SIZE, _CELL_SIZE),
            cells_per_block=(_BLOCK_SIZE, _BLOCK_SIZE),
            block_norm="L2-Hys",
            channel_axis=2,
        )
        return torch.from_numpy(vector.astype(np.float32))

    def forward(self, batch: Tensor) -> Tensor:
        """Give the vectors back: float32 [B, dim]."""
        return batch
