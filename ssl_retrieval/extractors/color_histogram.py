"""Colour histogram in HSV with Hellinger's square root: what colour alone finds."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ssl_retrieval.errors import UserError


@dataclass
class Config:
    """``bins``: number of bins for each of hue, saturation and value."""

    name: str = "color_histogram"
    bins: int = 8


class Extractor(nn.Module):
    """Joint HSV histogram of ``bins³`` cells, normalised to sum 1, then the square root.

    The square root turns the dot product into the Bhattacharyya coefficient (Hellinger kernel), which
    keeps large uniform areas from dominating (Arandjelović & Zisserman, 2012, for SIFT).
    """

    family = "hand-crafted"

    def __init__(self, cfg: Config) -> None:
        """Check the number of bins."""
        super().__init__()
        if not 1 <= cfg.bins <= 64:
            raise UserError(f"model.bins={cfg.bins}: a colour histogram needs 1 to 64 bins per channel")
        self.cfg = cfg
        self.dim = cfg.bins**3
        self.weights_digest = "none"

    def preprocess(self, image: Image.Image) -> Tensor:
        """Make the vector: RGB image -> float32 [dim] of unit length."""
        # Small integers: a photo of 24 megapixels would take a gigabyte in int64.
        hsv = np.asarray(image.convert("HSV")).reshape(-1, 3).astype(np.uint16)
        hue, saturation, value = (hsv * self.cfg.bins // 256).astype(np.int32).T
        cells = (hue * self.cfg.bins + saturation) * self.cfg.bins + value
        counts = np.bincount(cells, minlength=self.dim)
        return torch.from_numpy(np.sqrt(counts / counts.sum()).astype(np.float32))

    def forward(self, batch: Tensor) -> Tensor:
        """Give the vectors back: float32 [B, dim]."""
        return batch
