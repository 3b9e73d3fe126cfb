"""SimSiam: predict one view's projection from the other's; a stop-gradient alone prevents collapse.

Chen, He: Exploring Simple Siamese Representation Learning, CVPR 2021 (arXiv 2011.10566). As in the
authors' code, each view goes through by itself, the projector ends in batch normalisation without scale
and shift, the predictor has none at its end, and its learning rate does not decay.
"""

from dataclasses import dataclass, field

import torch
from lightly.models.modules import SimSiamPredictionHead
from lightly.models.modules.heads import ProjectionHead
from lightly.utils.debug import std_of_l2_normalized
from torch import Tensor, nn
from torch.nn import functional as nnf

from ssl_retrieval import backbones
from ssl_retrieval.augment import Augment, View
from ssl_retrieval.defaults import Facts, gentle, given, optimizer
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods.base import BaseMethod, StepOutput
from ssl_retrieval.types import Choices


@dataclass
class Config:
    """The objective's settings.

    Attributes:
        output_dim: Width of the projector, hidden layers and output; None = by the number of images, up to
            the paper's 2048.
        predictor_dim: Width of the predictor's hidden layer, a bottleneck in the paper; None = by the number
            of images, up to the paper's 512.
        num_layers: Layers of the projector; None = by the images: 3, or 2 for small ones, as in the paper.
        augment: How both views are made.
    """

    name: str = "simsiam"
    output_dim: int | None = None
    predictor_dim: int | None = None
    num_layers: int | None = None
    augment: Augment = field(default_factory=Augment)


def defaults(facts: Facts) -> Choices:
    """Choose the heads and the optimizer by what is trained."""
    width = facts.step_limit(2048, {20_000: 1024})
    small = facts.image_size <= 64
    images = f"{facts.num_images} images"
    chosen: Choices = {
        "method.output_dim": (width, f"{images}; the paper's 2048 are for CIFAR-10 and larger"),
        "method.predictor_dim": (width // 4, f"{images}: a quarter of the projector's, as in the paper"),
        "method.num_layers": (2, "small images: the paper's for CIFAR-10") if small else (3, "the paper's"),
    }
    if facts.pretrained:
        return chosen | gentle()
    if facts.transformer:
        return chosen | {"optimizer.name": ("adamw", "for a ViT")}
    if facts.batch_size < 1024:
        chosen["optimizer.warmup"] = (0.0, "the paper warms up batches of 1024 and more")
    if small:
        return chosen | optimizer("the paper's for CIFAR-10", "sgd", 0.03, "linear", 5e-4)
    return chosen | optimizer("the paper's for ImageNet", "sgd", 0.05, "linear", 1e-4)


class Method(BaseMethod):
    """SimSiam around a timm backbone; nothing is compared across images, so processes need no exchange."""

    fixed_lr = ("predictor.",)
    advice = "a lower optimizer.lr or a larger batch_size, or method.name=byol, whose target moves slowly"

    def __init__(self, cfg: Config, backbone: nn.Module) -> None:
        """Put projector and predictor on the backbone.

        Args:
            cfg: See `Config`; filled.
            backbone: A network from `backbones.make`.
        """
        super().__init__()
        cfg.augment.check()
        width, layers = given(cfg.output_dim), given(cfg.num_layers)
        if min(width, given(cfg.predictor_dim)) < 1 or layers < 2:
            raise UserError(
                "method.output_dim and method.predictor_dim must be at least 1, method.num_layers at least 2"
            )
        self.cfg = cfg
        self.encoder = backbone
        dims = [backbones.feature_dim(backbone), *[width] * (layers - 1)]
        hidden = [(dim, width, nn.BatchNorm1d(width), nn.ReLU()) for dim in dims[:-1]]
        self.projector = ProjectionHead([*hidden, (width, width, nn.BatchNorm1d(width, affine=False), None)])
        self.predictor = SimSiamPredictionHead(width, given(cfg.predictor_dim), width)

    def views(self, image_size: int) -> list[View]:
        """Ask for two views made alike."""
        return [View(self.cfg.augment, image_size)] * 2

    def step(self, views: list[Tensor], progress: float) -> StepOutput:
        """Compute the negative cosine of prediction and projection, the mean of both directions.

        Args:
            views: Two float [B, 3, S, S].
            progress: Not used: SimSiam has no schedule of its own.

        Returns:
            The loss in [-1, 1], and ``output_std``: the spread of the projections on the unit sphere, times
            √D: about 1 when they fill it, 0 when all images look the same.
        """
        projected = [self.projector(backbones.own_pooling(self.encoder, view)) for view in views]
        predicted = [self.predictor(projection) for projection in projected]
        with torch.autocast(views[0].device.type, enabled=False):
            first, second = (projection.detach().float() for projection in projected)
            there = nnf.cosine_similarity(predicted[0].float(), second).mean()
            back = nnf.cosine_similarity(predicted[1].float(), first).mean()
            spread = std_of_l2_normalized(first) * first.shape[1] ** 0.5
        return StepOutput(-(there + back) / 2, {"output_std": spread})
