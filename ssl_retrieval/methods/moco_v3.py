"""MoCo v3: find an image's other view among the keys of the batch; no queue, but a predictor, for ViTs too.

Chen, Xie, He: An Empirical Study of Training Self-Supervised Vision Transformers, ICCV 2021 (arXiv
2104.02057). As in the authors' code, each view goes through by itself; the projector ends in batch
normalisation without scale and shift, the predictor too for a ViT, and in a plain layer for a CNN; a ViT's
patch embedding stays as it was drawn. Their fixed sine-cosine position embedding is not taken over: timm's
networks learn theirs.
"""

from dataclasses import dataclass, field

import torch
from lightly.models.modules.heads import ProjectionHead
from torch import Tensor, nn
from torch.nn import functional as nnf

from ssl_retrieval import backbones, distributed, ema, schedules
from ssl_retrieval.augment import Augment, View
from ssl_retrieval.defaults import Facts, cifar, gentle, given, optimizer
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods.base import BaseMethod, StepOutput
from ssl_retrieval.types import Choices

LONG = 250_000
"""Steps from which on a training counts as long; the paper's 1000 epochs are 312,000."""


@dataclass
class Config:
    """The objective's settings.

    Attributes:
        temperature: Of the softmax over similarities; None = 0.2, but 1.0 for CNNs with photos and batches
            of 1024 and more, as in the paper.
        momentum: Share of its own weights that the key network keeps at the start; a cosine takes it to 1.
            None = 0.99, or 0.996 for long trainings, as in the paper; lower for few steps.
        num_layers: Layers of the projector; None = by the network: 2 for CNNs, 3 for ViTs.
        hidden_dim: Width of projector and predictor.
        output_dim: Dimension in which similarities are taken.
        freeze_patch_embed: Keep a ViT's patch embedding as it is, which makes its training stable; nothing
            for CNNs.
        export: ``student`` (the query network, which the paper keeps) or ``teacher`` (the key network).
        augment: How the first view is made.
        augment_2: How the second view is made; in the paper with less blur and with solarization.
    """

    name: str = "moco_v3"
    temperature: float | None = None
    momentum: float | None = None
    num_layers: int | None = None
    hidden_dim: int = 4096
    output_dim: int = 256
    freeze_patch_embed: bool = True
    export: str = "student"
    augment: Augment = field(default_factory=Augment)
    augment_2: Augment = field(default_factory=Augment)


def defaults(facts: Facts) -> Choices:
    """Choose temperature, momentum, the projector's depth and the optimizer by what is trained."""
    kind = "a ViT" if facts.transformer else "a CNN"
    usual = 0.996 if facts.num_steps >= LONG else 0.99
    chosen: Choices = {
        "method.temperature": _temperature(facts),
        "method.num_layers": (3 if facts.transformer else 2, f"the authors' code for {kind}"),
        "method.momentum": (
            facts.momentum(usual),
            f"the authors' for about {facts.num_steps} steps, lower for few",
        ),
    }
    if facts.transformer and not facts.pretrained:
        chosen["optimizer.warmup"] = (0.13, "the paper's for ViTs: 40 of 300 epochs")
    return chosen | _recipe(facts)


def _temperature(facts: Facts) -> tuple[float, str]:
    if facts.transformer:
        return 0.2, "the paper's for a ViT"
    if facts.image_size <= 64:
        return 0.2, "solo-learn's on CIFAR"
    if facts.batch_size < 1024:
        return 0.2, f"the paper's 1.0 for a CNN is for batches of 4096, not {facts.batch_size}"
    return 1.0, "the paper's for a CNN"


def _recipe(facts: Facts) -> Choices:
    if facts.pretrained:
        return gentle()
    if facts.transformer:
        return optimizer("the paper's for ViTs", "adamw", 1.5e-4, "linear", 0.1)
    if facts.image_size <= 64:
        return cifar()
    why = f"the authors' code for a CNN and about {facts.epochs:.0f} epochs"
    if facts.epochs <= 200:
        return optimizer(why, "lars", 0.6, "linear", 1e-6)
    return optimizer(why, "lars", 0.3, "linear", 1e-6 if facts.epochs < 650 else 1.5e-6)


class Method(BaseMethod):
    """MoCo v3 around a timm backbone; queries look for their keys among those of all processes."""

    advice = "a larger batch_size, a temperature between 0.2 and 1 or a lower optimizer.lr"

    def __init__(self, cfg: Config, backbone: nn.Module) -> None:
        """Put projector and predictor on the backbone, and copy all but the predictor for the keys.

        Args:
            cfg: See `Config`; filled.
            backbone: A network from `backbones.make`; its patch embedding is frozen unless the config
                says otherwise.
        """
        super().__init__()
        for augment in (cfg.augment, cfg.augment_2):
            augment.check()
        if given(cfg.temperature) <= 0:
            raise UserError(f"method.temperature={cfg.temperature}: must be positive")
        if not 0 <= given(cfg.momentum) <= 1:
            raise UserError(f"method.momentum={cfg.momentum}: must be in [0, 1]")
        if min(cfg.hidden_dim, cfg.output_dim) < 1 or given(cfg.num_layers) < 2:
            raise UserError(
                "method.hidden_dim and method.output_dim must be at least 1, method.num_layers at least 2"
            )
        self.cfg = cfg
        self.keep(cfg.export)
        self.encoder = backbone
        embedding = getattr(backbone, "patch_embed", None)
        if cfg.freeze_patch_embed and embedding is not None:
            embedding.requires_grad_(False)
        dim = backbones.feature_dim(backbone)
        self.projector = _head(dim, cfg.hidden_dim, cfg.output_dim, given(cfg.num_layers))
        transformer = backbones.patch_size(backbone) > 1
        self.predictor = _head(cfg.output_dim, cfg.hidden_dim, cfg.output_dim, 2, last_norm=transformer)
        self.teacher = ema.copy_of(self.encoder)
        self.teacher_projector = ema.copy_of(self.projector)

    def views(self, image_size: int) -> list[View]:
        """Ask for two views, each made in its own way."""
        return [View(self.cfg.augment, image_size), View(self.cfg.augment_2, image_size)]

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Give the key network and its projector, each with the query's."""
        return [(self.teacher, self.encoder), (self.teacher_projector, self.projector)]

    def momentum(self, progress: float) -> float:
        """Rise to 1 along a cosine."""
        return schedules.cosine(progress, given(self.cfg.momentum), 1.0)

    def step(self, views: list[Tensor], progress: float) -> StepOutput:
        """Compute InfoNCE within the batch, times 2T, summed over both directions.

        Args:
            views: Two float [B, 3, S, S].
            progress: Not used: only the key network's momentum follows a schedule.

        Returns:
            The loss, and ``accuracy``: the share of queries that are nearest to their own key.
        """
        queries = [self.predictor(self.projector(backbones.own_pooling(self.encoder, v))) for v in views]
        with torch.no_grad():
            keys = [self.teacher_projector(backbones.own_pooling(self.teacher, view)) for view in views]
        with torch.autocast(views[0].device.type, enabled=False):
            temperature = given(self.cfg.temperature)
            losses, hits = [], []
            for query, key in ((queries[0], keys[1]), (queries[1], keys[0])):
                logits, own = in_batch(nnf.normalize(query.float()), nnf.normalize(key.float()))
                losses.append(2 * temperature * nnf.cross_entropy(logits / temperature, own))
                hits.append((logits.detach().argmax(1) == own).float().mean())
        return StepOutput(torch.stack(losses).sum(), {"accuracy": torch.stack(hits).mean()})


def in_batch(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Take the similarities of this process's queries to the keys of all processes.

    Args:
        queries: float [B, D], unit rows.
        keys: float [B, D], unit rows of the same images, without gradient.

    Returns:
        float [B, world size · B], and int64 [B]: in which column each query's own key is.
    """
    everyone = distributed.gather(keys)
    own = torch.arange(len(queries), device=queries.device) + distributed.rank() * len(queries)
    return queries @ everyone.T, own


def _head(inputs: int, hidden: int, outputs: int, layers: int, last_norm: bool = True) -> ProjectionHead:
    """Build an MLP without biases, normalised after every layer, after the last without scale and shift.

    Args:
        inputs: Dimension of what it is given.
        hidden: Width of all layers but the last.
        outputs: Width of the last.
        layers: How many layers.
        last_norm: Whether the last one is normalised too.
    """
    dims = [inputs, *[hidden] * (layers - 1)]
    blocks = [(dim, hidden, nn.BatchNorm1d(hidden), nn.ReLU()) for dim in dims[:-1]]
    norm = nn.BatchNorm1d(outputs, affine=False) if last_norm else None
    return ProjectionHead([*blocks, (hidden, outputs, norm, None, False)])
