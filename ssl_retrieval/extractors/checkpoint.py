"""A network that ``ssl-retrieval pretrain`` trained."""

from dataclasses import dataclass
from pathlib import Path

from ssl_retrieval import checkpoint as checkpoint_file
from ssl_retrieval.extractors.base import PooledNetwork


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


class Extractor(PooledNetwork):
    """float [B, 3, H, W] -> [B, D] from a trained encoder."""

    family = "self-supervised"

    def __init__(self, cfg: Config) -> None:
        """Load the encoder."""
        path = Path(cfg.path).expanduser()
        file = path / "checkpoint.safetensors" if path.is_dir() else path
        model, card, spec = checkpoint_file.load(file)
        super().__init__(model, spec, cfg.pool)
        self.train_s = card.train_s
