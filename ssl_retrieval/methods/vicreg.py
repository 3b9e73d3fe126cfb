"""VICReg: views agree, while every output keeps its variance and shares nothing with the others.

Bardes, Ponce, LeCun: VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning,
ICLR 2022 (arXiv 2105.04906). The three terms are scaled as in the authors' code, with which 25 : 25 : 1
goes: invariance is a mean over outputs and variance a mean over views, where the paper writes sums.
"""

from dataclasses import dataclass, field

import torch
from lightly.loss.vicreg_loss import invariance_loss, variance_loss
from torch import Tensor, nn

from ssl_retrieval import backbones, distributed
from ssl_retrieval.augment import Augment, View
from ssl_retrieval.defaults import Facts, gentle, given
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods.barlow_twins import projector, width_of_projector
from ssl_retrieval.methods.base import BaseMethod, StepOutput
from ssl_retrieval.types import Choices


def paper_view() -> Augment:
    """Give the paper's augmentation, the same for both views."""
    return Augment(saturation=0.2, blur=0.5, solarize=0.1, interpolation="bicubic")


@dataclass
class Config:
    """The objective's settings.

    Attributes:
        invariance: Weight of the squared distance between views.
        variance: Weight of what standard deviations lack to 1.
        covariance: Weight of the squared covariances between outputs.
        output_dim: Width of all three layers of the projector; None = by the number of images: 2048 as
            usual for CIFAR, 8192 as in the paper.
        augment: How both views are made.
    """

    name: str = "vicreg"
    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0
    output_dim: int | None = None
    augment: Augment = field(default_factory=paper_view)


def defaults(facts: Facts) -> Choices:
    """Choose the projector's width and the optimizer by what is trained."""
    chosen = width_of_projector(facts)
    if facts.pretrained:
        return chosen | gentle()
    if facts.transformer:
        return chosen | {"optimizer.name": ("adamw", "for a ViT")}
    small = facts.image_size <= 64
    return chosen | {
        "optimizer.name": ("lars", "the paper's; in lightly's benchmark training diverges without it"),
        "optimizer.lr": (0.3, "the authors' for 100 epochs")
        if facts.epochs <= 200
        else (0.2, "the authors' for 1000 epochs"),
        "optimizer.scale": ("linear", "the paper's"),
        "optimizer.weight_decay": (1e-4, "lightly's benchmark with a ResNet-18")
        if small
        else (1e-6, "the paper's"),
        "optimizer.final_lr": (1e-3, "the authors' code"),
    }


class Method(BaseMethod):
    """VICReg around a timm backbone; variance and covariance are those of all processes' batches."""

    advice = "a larger method.variance, a larger batch_size, or optimizer.name=lars"

    def __init__(self, cfg: Config, backbone: nn.Module) -> None:
        """Put a projector on the backbone.

        Args:
            cfg: See `Config`.
            backbone: A network from `backbones.make`.
        """
        super().__init__()
        cfg.augment.check()
        for name in ("invariance", "variance", "covariance"):
            if getattr(cfg, name) < 0:
                raise UserError(f"method.{name}={getattr(cfg, name)}: must not be negative")
        if given(cfg.output_dim) < 2:
            raise UserError(
                f"method.output_dim={cfg.output_dim}: there must be at least 2 outputs to compare"
            )
        self.cfg = cfg
        self.encoder = backbone
        self.head = projector(backbones.feature_dim(backbone), given(cfg.output_dim))

    def views(self, image_size: int) -> list[View]:
        """Ask for two views made alike."""
        return [View(self.cfg.augment, image_size)] * 2

    def step(self, views: list[Tensor], progress: float) -> StepOutput:
        """Compute the three terms.

        Args:
            views: Two float [B, 3, S, S].
            progress: Not used: VICReg has no schedule of its own.
        """
        cfg = self.cfg
        first, second = (self.head(backbones.own_pooling(self.encoder, view)) for view in views)
        with torch.autocast(first.device.type, enabled=False):
            first, second = first.float(), second.float()
            invariance = invariance_loss(first, second)
            everywhere = [distributed.gather(first), distributed.gather(second)]
            variance = sum(variance_loss(rows) for rows in everywhere) / 2
            covariance = sum(covariance_loss(rows) for rows in everywhere)
            loss = cfg.invariance * invariance + cfg.variance * variance + cfg.covariance * covariance
        terms = {"invariance": invariance, "variance": variance, "covariance": covariance}
        return StepOutput(loss, {name: term.detach() for name, term in terms.items()})


def covariance_loss(rows: Tensor) -> Tensor:
    """Sum the squared covariances of every output with all others, and average over outputs.

    Args:
        rows: float32 [B, D].

    Returns:
        Scalar.
    """
    centred = rows - rows.mean(0)
    covariance = centred.T @ centred / (len(rows) - 1)
    # lightly gathers the other D² - D entries by index, which for 8192 outputs takes gigabytes.
    return covariance.fill_diagonal_(0).square().sum() / rows.shape[1]
