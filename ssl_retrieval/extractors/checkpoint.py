"""A network that ``ssl-retrieval pretrain`` trained."""

from dataclasses import dataclass
from pathlib import Path

from ssl_retrieval import checkpoint as checkpoint_file
from ssl_retrieval.extractors.base import NetworkConfig, PooledNetwork


@dataclass
class Config(NetworkConfig):
    """Which checkpoint, and what to take from it (see `NetworkConfig`).

    Attributes:
        name: ``checkpoint``.
        path: A ``checkpoint.safetensors`` or the run's folder that holds it.
    """

    name: str = "checkpoint"
    path: str = "???"


class Extractor(PooledNetwork):
    """float [B, 3, H, W] -> [B, D] from a trained encoder."""

    family = "self-supervised"

    def __init__(self, cfg: Config) -> None:
        """Load the encoder."""
        cfg.check()
        path = Path(cfg.path).expanduser()
        file = path / "checkpoint.safetensors" if path.is_dir() else path
        model, card, spec = checkpoint_file.load(file, dynamic_size=cfg.has_several_sizes)
        super().__init__(model, spec, cfg)
        self.train_s = card.train_s
