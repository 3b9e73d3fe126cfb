"""A network that ``ssl-retrieval pretrain`` or ``finetune`` trained."""

from dataclasses import dataclass, replace
from pathlib import Path

from ssl_retrieval import checkpoint as checkpoint_file
from ssl_retrieval.extractors.base import NetworkConfig, PooledNetwork

TRAINED = "trained"


@dataclass
class Config(NetworkConfig):
    """Which checkpoint, and what to take from it (see `NetworkConfig`).

    Attributes:
        name: ``checkpoint``.
        path: A ``checkpoint.safetensors`` or the run's folder that holds it.
        pool: ``trained``: as it was trained, with the pooling and the projection that the method learned; or
            as for any network, without a projection.
    """

    name: str = "checkpoint"
    path: str = "???"
    pool: str = TRAINED


class Extractor(PooledNetwork):
    """float [B, 3, H, W] -> [B, D] from a trained encoder."""

    def __init__(self, cfg: Config) -> None:
        """Load the encoder, and the head that it was trained with."""
        is_trained = cfg.pool == TRAINED
        taken = replace(cfg, pool="model") if is_trained else cfg
        taken.check()
        path = Path(cfg.path).expanduser()
        file = path / "checkpoint.safetensors" if path.is_dir() else path
        model, card, spec = checkpoint_file.load(file, dynamic_size=cfg.has_several_sizes)
        head = checkpoint_file.load_head(file, model, card) if is_trained else None
        if head is not None:
            taken = replace(taken, pool=head.pool, gem_p=head.gem_p)
        super().__init__(model, spec, taken, head)
        self.family = card.family
        self.train_s = card.train_s
