"""A network that ``ssl-retrieval pretrain`` trained."""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from ssl_retrieval import backbones, pooling
from ssl_retrieval import checkpoint as checkpoint_file


@dataclass
class Config:
    """Which checkpoint, and how to pool.

    Attributes:
        name: ``checkpoint``.
        path: A ``checkpoint.safetensors`` or the run's folder that holds it.
        pool: ``model``, ``avg`` or ``gem``.
    """

    name: str = "checkpoint"
    path: str = "???"
    pool: str = "model"


class Extractor(nn.Module):
    """float [B, 3, H, W] -> [B, D] from a trained encoder."""

    family = "self-supervised"

    def __init__(self, cfg: Config) -> None:
        """Load the encoder."""
        super().__init__()
        path = Path(cfg.path).expanduser()
        file = path / "checkpoint.safetensors" if path.is_dir() else path
        self.model, self.card, self.preprocess_spec = checkpoint_file.load(file)
        self.train_s = self.card.train_s
        self.pool = None if cfg.pool == "model" else pooling.get(cfg.pool)
        self.weights_digest = backbones.weights_digest(self.model)
        size = self.preprocess_spec.size
        with torch.inference_mode():
            self.dim = int(self(torch.zeros(1, 3, size, size)).shape[1])

    def preprocess(self, image: Image.Image) -> Tensor:
        """Make the input: RGB image -> float32 [3, H, W]."""
        return self.preprocess_spec(image)

    def forward(self, batch: Tensor) -> Tensor:
        """Embed: float32 [B, 3, H, W] -> [B, dim]."""
        if self.pool is None:
            return backbones.own_pooling(self.model, batch)
        return self.pool(backbones.feature_map(self.model, batch))
