"""Raw pixels, downsampled: the floor that any feature must beat where images are not aligned."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ssl_retrieval.errors import UserError


@dataclass
class Config:
    """``size``: side in pixels; ``grey``: without colour, the floor for what sees none (HOG, GIST, LBP)."""

    name: str = "pixels"
    size: int = 16
    grey: bool = False


class Extractor(nn.Module):
    """The image squeezed to ``size`` × ``size`` RGB, as one vector of ``3·size²`` values."""

    family = "hand-crafted"

    def __init__(self, cfg: Config) -> None:
        """Check the size."""
        super().__init__()
        if not 1 <= cfg.size <= 512:
            raise UserError(f"model.size={cfg.size}: pixels need a side of 1 to 512")
        self.cfg = cfg
        self.dim = (1 if cfg.grey else 3) * cfg.size**2
        self.weights_digest = "none"

    def preprocess(self, image: Image.Image) -> Tensor:
        """Make the vector: RGB image -> float32 [dim] in [-0.5, 0.5]."""
        if self.cfg.grey:
            image = image.convert("L")
        small = image.resize((self.cfg.size, self.cfg.size), Image.Resampling.BILINEAR)
        # Around mid-grey, so that a cosine compares light with light and dark with dark.
        return torch.from_numpy(np.asarray(small, dtype=np.float32).ravel() / 255.0 - 0.5)

    def forward(self, batch: Tensor) -> Tensor:
        """Give the vectors back: float32 [B, dim]."""
        return batch
