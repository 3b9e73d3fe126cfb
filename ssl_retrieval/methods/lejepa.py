"""LeJEPA: all views of an image meet at one point, and these points are spread like a Gaussian.

Balestriero, LeCun: LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics, 2025
(arXiv 2511.08544). No teacher, no negatives: sketched isotropic Gaussian regularization (SIGReg) looks at
projections through many random directions, new ones at every step, and compares the characteristic
function along each with that of the standard normal distribution.
"""

import math
from dataclasses import dataclass, field

import torch
from lightly.loss.lejepa_loss import lejepa_invariance_loss
from lightly.models.modules.heads import ProjectionHead
from torch import Tensor, nn
from torch.nn import functional as nnf

from ssl_retrieval import backbones, distributed, multi_crop
from ssl_retrieval.augment import Augment, View
from ssl_retrieval.counter_random import uniform
from ssl_retrieval.defaults import SMALL, Facts, gentle, given
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods.base import BaseMethod, StepOutput
from ssl_retrieval.types import Choices

KNOTS, LARGEST_FREQUENCY = 17, 3.0
"""Where characteristic functions are compared: the authors' choice."""


def global_view() -> Augment:
    """Give the paper's colours, with crops for training without local views."""
    return Augment(saturation=0.2, blur=0.5, solarize=0.2)


def local_view() -> Augment:
    """Give the paper's local views."""
    return Augment(crop_min=0.05, crop_max=0.3, saturation=0.2, blur=0.5, solarize=0.2)


@dataclass
class Config:
    """The objective's settings.

    Attributes:
        weight: λ in [0, 1], the share of the regularizer in the loss, the rest is for agreement; None =
            by the number of images.
        num_slices: Random directions per step; None = by the number of images.
        hidden_dim: Width of the projector's two hidden layers.
        output_dim: Its outputs; None = by the number of images.
        global_crops: Views at full size. Their mean is what all views of an image are drawn to.
        local_crops: Further, smaller views; the paper takes 6 for photos.
        local_size: Their side in pixels; 0 = 3/7 of ``model.image_size`` (96 of 224), in whole patches.
        augment: How global views are made; with local views, the paper's crop_min is 0.3.
        local_augment: How local views are.
    """

    name: str = "lejepa"
    weight: float | None = None
    num_slices: int | None = None
    hidden_dim: int = 2048
    output_dim: int | None = None
    global_crops: int = 2
    local_crops: int = 0
    local_size: int = 0
    augment: Augment = field(default_factory=global_view)
    local_augment: Augment = field(default_factory=local_view)


def defaults(facts: Facts) -> Choices:
    """Choose the weight of the regularizer, the projector and the optimizer by what is trained."""
    few = facts.num_images <= SMALL
    example = "the authors' example with 10,000 images"
    chosen: Choices = {
        "method.weight": (0.02, example) if few else (0.05, "the paper's"),
        "method.num_slices": (256, example) if few else (1024, "the paper's"),
        "method.output_dim": (16, example) if few else (64, "as lightly's benchmark on ImageNet"),
    }
    if facts.pretrained:
        return chosen | gentle()
    return chosen | {
        "optimizer.name": ("adamw", "the paper's"),
        "optimizer.lr": (2e-3, example) if few else (5e-4, "the paper's starting point"),
        "optimizer.scale": ("linear", "below 256 images less than the paper's: gradients are noisier")
        if facts.batch_size < 256
        else ("none", "the paper's"),
        "optimizer.weight_decay": (0.05, "the paper's for ViTs")
        if facts.transformer
        else (5e-4, "the paper's for CNNs"),
        "optimizer.final_lr": (1e-3, "the paper's"),
    }


class Method(BaseMethod):
    """LeJEPA around a timm backbone; the regularizer sees the batches of all processes."""

    multi_crop = True
    advice = "a larger method.weight or a larger batch_size"
    activation: type[nn.Module] = nn.ReLU

    def __init__(self, cfg: Config, backbone: nn.Module) -> None:
        """Put a projector on the backbone.

        Args:
            cfg: See `Config`.
            backbone: A network from `backbones.make`.
        """
        super().__init__()
        _check(cfg)
        self.cfg = cfg
        self.encoder = backbone
        width, act = cfg.hidden_dim, self.activation
        self.head = ProjectionHead(
            [
                (backbones.feature_dim(backbone), width, nn.BatchNorm1d(width), act()),
                (width, width, nn.BatchNorm1d(width), act()),
                (width, given(cfg.output_dim), None, None),
            ]
        )
        self.draws: Tensor
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def views(self, image_size: int) -> list[View]:
        """Ask for the global views, then the local ones."""
        cfg = self.cfg
        return multi_crop.make_views(
            [cfg.augment] * cfg.global_crops,
            cfg.local_augment,
            image_size=image_size,
            local_crops=cfg.local_crops,
            local_size=cfg.local_size,
            patch_size=backbones.patch_size(self.encoder),
        )

    def step(self, views: list[Tensor], progress: float) -> StepOutput:
        """Compute agreement and regularizer, and count the step for the next one's random directions.

        Args:
            views: As ordered by `views`, float [B, 3, S, S] each.
            progress: Not used: LeJEPA has no schedule of its own.
        """
        own = given(self.cfg.weight)
        of_global = self._project(views[: self.cfg.global_crops])
        everything = of_global
        if self.cfg.local_crops:
            everything = torch.cat([of_global, self._project(views[self.cfg.global_crops :])])
        with torch.autocast(everything.device.type, enabled=False):
            invariance = lejepa_invariance_loss(all_proj=everything, global_proj=of_global)
            directions = draw_directions(self.draws, everything.shape[2], given(self.cfg.num_slices))
            regularizer, logs = self.regularize(everything, directions)
            loss = own * regularizer + (1 - own) * invariance
        self.draws += 1
        return StepOutput(loss, {"invariance": invariance.detach()} | logs)

    def regularize(self, projected: Tensor, directions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Measure how far each view's projections are from a Gaussian.

        Args:
            projected: float32 [V, B, D], every view's projections.
            directions: float32 [D, num_slices], of length 1, the same in all processes.

        Returns:
            Scalar, and what to log.
        """
        loss = sigreg(projected, directions)
        return loss, {"sigreg": loss.detach()}

    def _project(self, views: list[Tensor]) -> Tensor:
        """Give float32 [V, B, D] for views of one size, which go through the network in one batch."""
        projected: Tensor = self.head(backbones.own_pooling(self.encoder, torch.cat(views)))
        return projected.float().unflatten(0, (len(views), -1))


def draw_directions(draws: Tensor, dim: int, num: int) -> Tensor:
    """Draw random directions that depend on nothing but a counter.

    Args:
        draws: int64 scalar: how often directions were drawn before.
        dim: Dimension of the space.
        num: How many.

    Returns:
        float32 [dim, num] with columns of length 1, uniform on the sphere.
    """
    rows = draws * dim + torch.arange(dim, device=draws.device)
    radius, angle = uniform(0, 0, rows, 0, 2 * num).chunk(2, dim=1)
    # Box and Muller's transform: normal numbers have no preferred direction.
    normal = torch.sqrt(-2 * torch.log1p(-radius)) * torch.cos(2 * math.pi * angle)
    return nnf.normalize(normal, dim=0)


def sigreg(projected: Tensor, directions: Tensor) -> Tensor:
    """Compute the Epps-Pulley statistic along each direction over all processes' rows, and average.

    Args:
        projected: float32 [V, B, D]; the views are samples of their own.
        directions: float32 [D, num].

    Returns:
        Scalar: about 1 for normal rows, however many; for others it grows with their number.
    """
    frequency = torch.linspace(0, LARGEST_FREQUENCY, KNOTS, device=projected.device)
    normal = torch.exp(-frequency.square() / 2)
    angles = (projected @ directions).unsqueeze(-1) * frequency
    own = torch.stack([angles.cos().mean(1), angles.sin().mean(1)])
    # Means of equally many rows, so that the mean of all processes' means is that of all rows.
    real, imaginary = distributed.gather(own.unsqueeze(0)).mean(0).unbind(0)
    error = (real - normal).square() + imaginary.square()
    # The integral goes from minus to plus the largest frequency; both halves are alike.
    statistic = 2 * torch.trapezoid(error * normal, frequency)
    return statistic.mean() * projected.shape[1] * distributed.world_size()


def _check(cfg: Config) -> None:
    cfg.augment.check()
    cfg.local_augment.check()
    if not 0 <= given(cfg.weight) <= 1:
        raise UserError(f"method.weight={cfg.weight}: must be in [0, 1]")
    for name in ("num_slices", "hidden_dim", "output_dim", "global_crops"):
        if getattr(cfg, name) < 1:
            raise UserError(f"method.{name}={getattr(cfg, name)}: must be at least 1")
    if cfg.global_crops + cfg.local_crops < 2:
        raise UserError("method.global_crops and method.local_crops: at least two views must agree")
