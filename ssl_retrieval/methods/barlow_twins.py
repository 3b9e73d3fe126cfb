"""Barlow Twins: each output of two views' projections agrees with itself and with no other output.

Zbontar, Jing, Misra, LeCun, Deny: Barlow Twins: Self-Supervised Learning via Redundancy Reduction, ICML
2021 (arXiv 2103.03230). As in the authors' code each view is a batch of its own for batch normalisation,
and the outputs are normalised over the batches of all processes.
"""

from dataclasses import dataclass, field

import torch
from lightly.loss import BarlowTwinsLoss
from lightly.models.modules.heads import ProjectionHead
from torch import Tensor, nn

from ssl_retrieval import backbones, distributed
from ssl_retrieval.augment import Augment, View
from ssl_retrieval.defaults import Facts, cifar, gentle, given
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods.base import BaseMethod, StepOutput
from ssl_retrieval.types import Choices


def first_view() -> Augment:
    """Give the paper's augmentation of the first view."""
    return Augment(saturation=0.2, blur=1.0, interpolation="bicubic")


def second_view() -> Augment:
    """Give the paper's augmentation of the second view."""
    return Augment(saturation=0.2, blur=0.1, solarize=0.2, interpolation="bicubic")


@dataclass
class Config:
    """The objective's settings.

    Attributes:
        off_diagonal: λ, the weight of all outputs' correlations with others; the paper's is 0.005.
        output_dim: Width of all three layers of the projector; None = by the number of images: 2048 as
            usual for CIFAR and ImageNet-100, 8192 as in the paper.
        augment: How the first view is made.
        augment_2: How the second one is.
    """

    name: str = "barlow_twins"
    off_diagonal: float = 0.005
    output_dim: int | None = None
    augment: Augment = field(default_factory=first_view)
    augment_2: Augment = field(default_factory=second_view)


def defaults(facts: Facts) -> Choices:
    """Choose the projector's width and the optimizer by what is trained."""
    chosen = width_of_projector(facts)
    if facts.pretrained:
        return chosen | gentle()
    if facts.transformer:
        return chosen | {"optimizer.name": ("adamw", "for a ViT")}
    if facts.image_size <= 64:
        return chosen | cifar()
    return chosen | {
        "optimizer.name": ("lars", "the paper's"),
        "optimizer.lr": (0.2, "the paper's for weights"),
        "optimizer.scale": ("linear", "the paper's"),
        "optimizer.bias_lr": (0.0048 / 0.2, "the paper's 0.0048 for biases and normalisation"),
        "optimizer.weight_decay": (1.5e-6, "the paper's"),
        "optimizer.final_lr": (1e-3, "the authors' code"),
    }


def width_of_projector(facts: Facts) -> Choices:
    """Choose ``output_dim`` by the number of images."""
    if facts.num_images <= 200_000:
        return {"method.output_dim": (2048, "up to 200,000 images")}
    return {"method.output_dim": (8192, "the paper's, for more than 200,000 images")}


def projector(input_dim: int, width: int) -> ProjectionHead:
    """Build three layers of one width, normalised but for the last, whose bias no loss here could see."""
    return ProjectionHead(
        [
            (input_dim, width, nn.BatchNorm1d(width), nn.ReLU()),
            (width, width, nn.BatchNorm1d(width), nn.ReLU()),
            (width, width, None, None, False),
        ]
    )


class Method(BaseMethod):
    """Barlow Twins around a timm backbone."""

    advice = "a larger batch_size, or a lower optimizer.lr"

    def __init__(self, cfg: Config, backbone: nn.Module) -> None:
        """Put a projector on the backbone.

        Args:
            cfg: See `Config`.
            backbone: A network from `backbones.make`.
        """
        super().__init__()
        cfg.augment.check()
        cfg.augment_2.check()
        if cfg.off_diagonal < 0:
            raise UserError(f"method.off_diagonal={cfg.off_diagonal}: must not be negative")
        if given(cfg.output_dim) < 2:
            raise UserError(
                f"method.output_dim={cfg.output_dim}: there must be at least 2 outputs to compare"
            )
        self.cfg = cfg
        self.encoder = backbone
        self.head = projector(backbones.feature_dim(backbone), given(cfg.output_dim))
        self.criterion = BarlowTwinsLoss(cfg.off_diagonal)

    def views(self, image_size: int) -> list[View]:
        """Ask for one view of each kind."""
        return [View(self.cfg.augment, image_size), View(self.cfg.augment_2, image_size)]

    def step(self, views: list[Tensor], progress: float) -> StepOutput:
        """Compute the distance of the cross-correlation matrix from the identity.

        Args:
            views: Two float [B, 3, S, S].
            progress: Not used: Barlow Twins has no schedule of its own.
        """
        first, second = (self.head(backbones.own_pooling(self.encoder, view)) for view in views)
        with torch.autocast(first.device.type, enabled=False):
            # lightly's gather_distributed averages matrices that each process normalised by its own batch.
            loss = self.criterion(distributed.gather(first.float()), distributed.gather(second.float()))
        return StepOutput(loss=loss)
