"""DINO: a student predicts, from any part of an image, what a moving average of itself sees in the whole.

Caron, Touvron, Misra, Jégou, Mairal, Bojanowski, Joulin: Emerging Properties in Self-Supervised Vision
Transformers, ICCV 2021 (arXiv 2104.14294). As in the authors' code, all views pass the head together,
and the centre moves after the loss that used it.
"""

import math
import warnings
from dataclasses import dataclass, field

import torch
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from ssl_retrieval import backbones, ema, multi_crop
from ssl_retrieval.augment import Augment, View
from ssl_retrieval.defaults import Facts, cifar, gentle, given, optimizer
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods.base import BaseMethod, StepOutput
from ssl_retrieval.multi_crop import CropAugment
from ssl_retrieval.schedules import cosine, linear
from ssl_retrieval.types import Choices

_GLOBAL_VIEWS = 2


def _augment(blur: float, solarize: float = 0.0) -> CropAugment:
    return CropAugment(saturation=0.2, blur=blur, solarize=solarize, interpolation="bicubic")


@dataclass
class Config:
    """The objective's settings; None = by the data or the network.

    Attributes:
        output_dim: Number of prototypes K; None = by the number of images, 1024 to 65536.
        hidden_dim: Width of the head.
        bottleneck_dim: Dimension before the last layer.
        head_batchnorm: Batch normalisation in the head; None = for CNNs, not for ViTs.
        norm_last_layer: Keep the last layer's rows at length 1. False may do better with a small ViT,
            and is less stable.
        freeze_last_layer: Share of the training during which the last layer keeps its weights.
        student_temperature: Temperature of the student's softmax.
        teacher_temperature: Of the teacher's, after its warm-up; None = 0.02 to 0.07 by the number of images.
        teacher_temperature_start: Where the warm-up begins, at most ``teacher_temperature``; None = 0.02
            to 0.04 by the number of images.
        teacher_temperature_warmup: Share of the training over which it rises, in a straight line.
        center_momentum: Share of the centre that a step keeps.
        momentum: Share of itself that the teacher keeps in a step, at the start; rises to 1 along a
            cosine. None = 0.99 to 0.996 by the number of images, lower for few steps.
        local_crops: Small views per image, for the student alone; None = 0 below 64 px, else 6 or 8.
        local_size: Their side in pixels; 0 = 3/7 of ``model.image_size``, in whole patches.
        augment: How the first large view is made. ``crop_min``: None = 0.4 for ViTs with local crops,
            else 0.14.
        augment_2: How the second large view is made.
        local_augment: How small views are made. ``crop_max``: None = ``augment.crop_min``.
        export: Whose weights are kept, ``teacher`` or ``student``.
    """

    name: str = "dino"
    output_dim: int | None = None
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    head_batchnorm: bool | None = None
    norm_last_layer: bool = True
    freeze_last_layer: float | None = None
    student_temperature: float = 0.1
    teacher_temperature: float | None = None
    teacher_temperature_start: float | None = None
    teacher_temperature_warmup: float = 0.3
    center_momentum: float = 0.9
    momentum: float | None = None
    local_crops: int | None = None
    local_size: int = 0
    augment: CropAugment = field(default_factory=lambda: _augment(blur=1.0))
    augment_2: CropAugment = field(default_factory=lambda: _augment(blur=0.1, solarize=0.2))
    local_augment: CropAugment = field(default_factory=lambda: _augment(blur=0.5))
    export: str = "teacher"


def defaults(facts: Facts) -> Choices:
    """Choose what the paper tunes for ImageNet, and what smaller sets need instead."""
    by_images = {20_000: 1024, 50_000: 2048, 100_000: 4096, 200_000: 16384, 500_000: 32768}
    scaled = f"between small sets and ImageNet, for {facts.num_images:,} images"
    freeze = min(0.05, 1250 / facts.num_steps)
    chosen: Choices = {
        "method.output_dim": (facts.step_limit(65536, by_images), f"{facts.num_images:,} images"),
        "method.teacher_temperature": (round(facts.between(0.02, 0.07), 4), scaled),
        "method.teacher_temperature_start": (round(facts.between(0.02, 0.04), 4), scaled),
        "method.momentum": (facts.momentum(facts.between(0.99, 0.996)), f"{scaled}, lower for few steps"),
        "method.freeze_last_layer": (freeze, "1250 steps, at most a twentieth of the training"),
        "method.head_batchnorm": (False, "as the paper, for ViTs")
        if facts.transformer
        else (True, "as lightly's benchmarks, for CNNs"),
    }
    return chosen | multi_crop.choices(facts, 8) | _optimizer(facts)


def _optimizer(facts: Facts) -> Choices:
    if facts.pretrained:
        chosen = gentle()
    elif facts.transformer:
        chosen = optimizer("as the paper, for ViTs", "adamw", 5e-4, "linear", 0.04)
        chosen["optimizer.weight_decay_end"] = (0.4, "as the paper, for ViTs")
        chosen["optimizer.final_lr"] = (round(0.512 / facts.batch_size, 6), "the authors' code: ends at 1e-6")
    elif facts.num_images <= 200_000:
        # The paper's rate for ResNets is for 100 passes over ImageNet; lightly's is known to work from
        # CIFAR-10 (84 % kNN) to Imagenette (89 %).
        chosen = cifar()
    else:
        chosen = optimizer("the authors' code, for ResNets", "sgd", 0.03, "linear", 1e-4)
    return chosen | {
        "optimizer.clip": (3.0, "the authors' code"),
        "optimizer.clip_mode": ("each", "the authors' code"),
    }


def projection_head(
    input_dim: int,
    output_dim: int,
    *,
    hidden_dim: int = 2048,
    bottleneck_dim: int = 256,
    batch_norm: bool = False,
    norm_last_layer: bool = True,
) -> DINOProjectionHead:
    """Build lightly's head with a last layer that can be copied.

    Args:
        input_dim: Dimension of the features.
        output_dim: Number of prototypes.
        hidden_dim: Width of the two hidden layers.
        bottleneck_dim: Dimension before the last layer, where rows get length 1.
        batch_norm: Whether hidden layers normalise.
        norm_last_layer: Whether the last layer's rows stay at length 1.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        head = DINOProjectionHead(input_dim, hidden_dim, bottleneck_dim, output_dim, batch_norm)
    # lightly takes torch's old weight norm, which deepcopy refuses; teachers are copies.
    head.last_layer = weight_norm(nn.Linear(bottleneck_dim, output_dim, bias=False))
    lengths = head.last_layer.parametrizations.weight.original0
    nn.init.ones_(lengths)
    lengths.requires_grad_(not norm_last_layer)
    return head


class Method(BaseMethod):
    """DINO around a timm backbone.

    Logs ``teacher_entropy``: the mean entropy of the teacher's outputs as a share of log K. Where it stays
    at 1, the teacher says the same of every image, and the loss stays at log K.
    """

    advice = (
        "a lower method.teacher_temperature, a smaller method.output_dim, a longer method.freeze_last_layer"
    )
    multi_crop: bool = True

    def __init__(self, cfg: Config, backbone: nn.Module) -> None:
        """Put a projection head on the backbone and copy both for the teacher.

        Args:
            cfg: See `Config`, with no None left.
            backbone: A network from `backbones.make`; a ViT with ``dynamic_size``.
        """
        super().__init__()
        _check(cfg)
        self.cfg = cfg
        self.keep(cfg.export)
        self.patch_size = backbones.patch_size(backbone)
        self._augments = _augments(cfg, self.patch_size > 1)
        self.encoder = backbone
        self.head = projection_head(
            backbones.feature_dim(backbone),
            given(cfg.output_dim),
            hidden_dim=cfg.hidden_dim,
            bottleneck_dim=cfg.bottleneck_dim,
            batch_norm=given(cfg.head_batchnorm),
            norm_last_layer=cfg.norm_last_layer,
        )
        self.teacher = ema.copy_of(self.encoder)
        self.teacher_head = ema.copy_of(self.head)
        self.criterion = DINOLoss(
            given(cfg.output_dim), student_temp=cfg.student_temperature, center_momentum=cfg.center_momentum
        )

    def views(self, image_size: int) -> list[View]:
        """Ask for two large views, made differently, and for the small ones."""
        *large, small = self._augments
        return multi_crop.make_views(
            large,
            small,
            image_size=image_size,
            local_crops=given(self.cfg.local_crops),
            local_size=self.cfg.local_size,
            patch_size=self.patch_size,
        )

    def teacher_temperature(self, progress: float) -> float:
        """Give the temperature of the teacher's softmax."""
        end = given(self.cfg.teacher_temperature)
        start = min(end, given(self.cfg.teacher_temperature_start))
        return linear(progress, start, end, self.cfg.teacher_temperature_warmup)

    def step(self, views: list[Tensor], progress: float) -> StepOutput:
        """Compute the cross-entropy of each view against the teacher's other large views.

        Args:
            views: Two float [B, 3, S, S], then small ones.
            progress: Drives the teacher's temperature.
        """
        temperature = self.teacher_temperature(progress)
        with torch.no_grad():
            targets = self.teacher_head(multi_crop.features(self.teacher, views[:_GLOBAL_VIEWS]))
        logits = self.head(multi_crop.features(self.encoder, views))
        # Small temperatures blow up what half types round off: fp32, whatever came before.
        with torch.autocast(logits.device.type, enabled=False):
            targets, logits = targets.float(), logits.float()
            sharp = ((targets - self.criterion.center[0]) / temperature).softmax(dim=1)
            entropy = torch.special.entr(sharp).sum(1).mean() / math.log(targets.shape[1])
            loss = self.criterion(
                list(targets.chunk(_GLOBAL_VIEWS)), list(logits.chunk(len(views))), teacher_temp=temperature
            )
        return StepOutput(loss=loss, logs={"teacher_entropy": entropy})

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Average the backbone and the head."""
        return [(self.teacher, self.encoder), (self.teacher_head, self.head)]

    def momentum(self, progress: float) -> float:
        """Give the teacher's momentum: a cosine up to 1."""
        return cosine(progress, given(self.cfg.momentum), 1.0)

    def before_update(self, progress: float) -> None:
        """Keep the last layer as it is for the first share of the training."""
        if progress < given(self.cfg.freeze_last_layer):
            for parameter in self.head.last_layer.parameters():
                parameter.grad = None


def _augments(cfg: Config, transformer: bool) -> tuple[Augment, Augment, Augment]:
    """Fill the crops' sizes: small ones end where large ones begin."""
    # The authors: 0.4 for ViTs; 0.14 for ResNets, and wherever there are no small crops.
    border = 0.4 if transformer and given(cfg.local_crops) > 0 else 0.14
    first, second = (augment.within(border, 1.0) for augment in (cfg.augment, cfg.augment_2))
    return first, second, cfg.local_augment.within(min(0.05, first.crop_min), first.crop_min)


def _check(cfg: Config) -> None:
    if given(cfg.output_dim) < 2 or min(cfg.hidden_dim, cfg.bottleneck_dim) < 1:
        raise UserError(
            f"method.output_dim={cfg.output_dim}, hidden_dim={cfg.hidden_dim}, "
            f"bottleneck_dim={cfg.bottleneck_dim}: at least 2, 1 and 1"
        )
    for name in ("student_temperature", "teacher_temperature", "teacher_temperature_start"):
        if given(getattr(cfg, name)) <= 0:
            raise UserError(f"method.{name}={getattr(cfg, name)}: must be positive")
    for name in ("freeze_last_layer", "teacher_temperature_warmup", "center_momentum", "momentum"):
        if not 0 <= given(getattr(cfg, name)) <= 1:
            raise UserError(f"method.{name}={getattr(cfg, name)}: a share in [0, 1] is needed")
