"""A network that ``ssl-retrieval pretrain`` or ``finetune`` trained."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from ssl_retrieval import backbones, trained_run
from ssl_retrieval import checkpoint as checkpoint_file
from ssl_retrieval.embedding_head import EmbeddingHead
from ssl_retrieval.errors import UserError
from ssl_retrieval.extractors.base import NetworkConfig, PooledNetwork
from ssl_retrieval.network_input import InputSpec
from ssl_retrieval.projector_points import ProjectorPoint

TRAINED = "trained"


@dataclass
class Config(NetworkConfig):
    """Which checkpoint, and what to take from it (see `NetworkConfig`).

    Attributes:
        name: ``checkpoint``.
        path: A ``checkpoint.safetensors`` or the run's folder that holds it.
        pool: ``trained``: as it was trained, with the pooling and the projection that the method learned; or
            as for any network, without a projection.
        network: ``student`` or ``teacher``, as the run's last saved state has them; empty = the exported one.
        point: ``projector.1``, …: the vector after so many linear layers of the projector that training put
            on the pooled vector; empty = none of them. Both need the run's folder with its ``state.pt``.
        image_size: Input side in pixels; None = as in training.
    """

    name: str = "checkpoint"
    path: str = "???"
    pool: str = TRAINED
    network: str = ""
    point: str = ""
    image_size: int | None = None


class Extractor(PooledNetwork):
    """float [B, 3, H, W] -> [B, D] from a trained encoder."""

    def __init__(self, cfg: Config) -> None:
        """Load the encoder, and the head that it was trained with."""
        is_trained = cfg.pool == TRAINED
        taken = replace(cfg, pool="model") if is_trained else cfg
        taken.check()
        if cfg.point and not is_trained:
            raise UserError(
                f"model.point={cfg.point!r} is taken from what training itself pools: leave out model.pool"
            )
        model, head, card, spec = _parts(cfg)
        if not is_trained:
            head = None
        if isinstance(head, EmbeddingHead):
            taken = replace(taken, pool=head.pool, gem_p=head.gem_p)
        super().__init__(model, _resized(spec, cfg, model), taken, head)
        self.family = card.family
        self.train_s = card.train_s


def _parts(
    cfg: Config,
) -> tuple[nn.Module, EmbeddingHead | ProjectorPoint | None, checkpoint_file.Card, InputSpec]:
    path = Path(cfg.path).expanduser()
    takes_sizes = cfg.has_several_sizes or cfg.image_size is not None
    if cfg.network or cfg.point:
        run = trained_run.load(path, takes_sizes)
        return run.network(cfg.network), run.head(cfg.network, cfg.point), run.card, run.spec
    file = path / "checkpoint.safetensors" if path.is_dir() else path
    model, card, spec = checkpoint_file.load(file, dynamic_size=takes_sizes)
    return model, checkpoint_file.load_head(file, model, card), card, spec


def _resized(spec: InputSpec, cfg: Config, model: nn.Module) -> InputSpec:
    if cfg.image_size is None:
        return spec
    multiple = backbones.patch_size(model)
    if cfg.image_size < 1 or cfg.image_size % multiple:
        raise UserError(
            f"model.image_size={cfg.image_size}: must be at least 1"
            + (f" and a multiple of {multiple}, the side of a patch" if multiple > 1 else "")
        )
    return replace(spec, size=cfg.image_size)
