"""BYOL: predict what a slowly moving copy of the network says of another view; nothing repels.

Grill, Strub, Altché et al.: Bootstrap Your Own Latent, NeurIPS 2020 (arXiv 2006.07733). As in the
authors' code, each view goes through the networks by itself, so that batch normalisation sees one kind
of view at a time; the target normalises by its own batch; the target moves after the optimizer's step.
"""

from dataclasses import dataclass, field

import torch
from lightly.models.modules.heads import ProjectionHead
from lightly.utils.debug import std_of_l2_normalized
from torch import Tensor, nn
from torch.nn import functional as nnf

from ssl_retrieval import backbones, ema, schedules
from ssl_retrieval.augment import Augment, View
from ssl_retrieval.defaults import Facts, gentle, given, optimizer
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods.base import BaseMethod, StepOutput
from ssl_retrieval.types import Choices


@dataclass
class Config:
    """The objective's settings.

    Attributes:
        hidden_dim: Width of projector and predictor; None = by the number of images, up to the paper's 4096.
        output_dim: Dimension of what is predicted; None = by the number of images, up to the paper's 256.
        momentum: Share of its own weights that the target keeps at the start; a cosine takes it to 1. None
            = as the paper for as many epochs: 0.99 for 100 and 300, 0.996 for 1000; lower for few steps.
        export: ``student`` (the online network, which the paper keeps) or ``teacher`` (the target).
        augment: How the first view is made.
        augment_2: How the second view is made; in the paper with less blur and with solarization.
    """

    name: str = "byol"
    hidden_dim: int | None = None
    output_dim: int | None = None
    momentum: float | None = None
    export: str = "student"
    augment: Augment = field(default_factory=Augment)
    augment_2: Augment = field(default_factory=Augment)


def defaults(facts: Facts) -> Choices:
    """Choose the heads' widths, the target's momentum and the optimizer by what is trained."""
    chosen: Choices = {
        "method.hidden_dim": (
            facts.step_limit(4096, {100_000: 1024, 500_000: 2048}),
            f"{facts.num_images} images; the paper's 4096 are for ImageNet",
        ),
        "method.output_dim": (
            facts.step_limit(256, {20_000: 128}),
            f"{facts.num_images} images; the paper's 256 are for ImageNet",
        ),
        "method.momentum": (
            facts.momentum(0.996 if facts.epochs >= 650 else 0.99),
            f"the paper's for about {facts.epochs:.0f} epochs, lower for few steps",
        ),
    }
    return chosen | _recipe(facts)


def _recipe(facts: Facts) -> Choices:
    if facts.pretrained:
        return gentle()
    if facts.transformer:
        return optimizer("what MoCo v3's authors take for ViTs", "adamw", 1.5e-4, "linear", 0.1)
    if facts.image_size <= 64:
        # Their loss is a quarter of the paper's: SGD makes the same steps with a quarter of their rate and
        # four times their weight decay.
        why = "as lightly's benchmark on CIFAR-10, with the paper's loss, four times theirs"
        return optimizer(why, "sgd", 0.03, "linear", 2e-3)
    why = f"the authors' code for about {facts.epochs:.0f} epochs"
    if facts.epochs <= 200:
        return optimizer(why, "lars", 0.45, "linear", 1e-6)
    lr, weight_decay = (0.3, 1e-6) if facts.epochs < 650 else (0.2, 1.5e-6)
    return optimizer(why, "lars", lr, "linear", weight_decay)


class Method(BaseMethod):
    """BYOL around a timm backbone; nothing is compared across images, so processes need no exchange."""

    advice = "a higher method.momentum, a lower optimizer.lr or a larger batch_size"

    def __init__(self, cfg: Config, backbone: nn.Module) -> None:
        """Put projector and predictor on the backbone, and copy all but the predictor as the target.

        Args:
            cfg: See `Config`; filled.
            backbone: A network from `backbones.make`.
        """
        super().__init__()
        for augment in (cfg.augment, cfg.augment_2):
            augment.check()
        if not 0 <= given(cfg.momentum) <= 1:
            raise UserError(f"method.momentum={cfg.momentum}: must be in [0, 1]")
        hidden, output = given(cfg.hidden_dim), given(cfg.output_dim)
        if min(hidden, output) < 1:
            raise UserError("method.hidden_dim and method.output_dim must be at least 1")
        self.cfg = cfg
        self.keep(cfg.export)
        self.encoder = backbone
        self.projector = _head(backbones.feature_dim(backbone), hidden, output)
        self.predictor = _head(output, hidden, output)
        self.teacher = ema.copy_of(self.encoder)
        self.teacher_projector = ema.copy_of(self.projector)

    def views(self, image_size: int) -> list[View]:
        """Ask for two views, each made in its own way."""
        return [View(self.cfg.augment, image_size), View(self.cfg.augment_2, image_size)]

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Give the target's network and projector, each with its online one."""
        return [(self.teacher, self.encoder), (self.teacher_projector, self.projector)]

    def momentum(self, progress: float) -> float:
        """Rise to 1 along a cosine."""
        return schedules.cosine(progress, given(self.cfg.momentum), 1.0)

    def step(self, views: list[Tensor], progress: float) -> StepOutput:
        """Compute ``2 − 2·cos`` between prediction and target, summed over both directions.

        Args:
            views: Two float [B, 3, S, S].
            progress: Not used: only the target's momentum follows a schedule.

        Returns:
            The loss in [0, 8], and ``target_std``: the spread of the targets on the unit sphere, times √D:
            about 1 when they fill it, 0 when all images look the same.
        """
        predicted = [self.predictor(self.projector(backbones.own_pooling(self.encoder, v))) for v in views]
        with torch.no_grad():
            targets = [self.teacher_projector(backbones.own_pooling(self.teacher, view)) for view in views]
        with torch.autocast(views[0].device.type, enabled=False):
            first, second = (target.float() for target in targets)
            loss = regression_loss(predicted[0].float(), second) + regression_loss(
                predicted[1].float(), first
            )
            spread = std_of_l2_normalized(first) * first.shape[1] ** 0.5
        return StepOutput(loss, {"target_std": spread})


def regression_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Take the squared distance of unit vectors, the mean over the batch: two float [B, D] -> scalar."""
    return 2 - 2 * nnf.cosine_similarity(predicted, target).mean()


def _head(inputs: int, hidden: int, outputs: int) -> ProjectionHead:
    """Build the paper's MLP; as in the authors' code the last layer has no bias."""
    return ProjectionHead(
        [(inputs, hidden, nn.BatchNorm1d(hidden), nn.ReLU()), (hidden, outputs, None, None, False)]
    )
