"""iBOT as DINOv2 trains it: a teacher's codes for the whole image, and for the patches a student misses.

Zhou, Wei, Wang, Shen, Xie, Yuille, Kong: iBOT: Image BERT Pre-Training with Online Tokenizer, ICLR 2022
(arXiv 2111.07832), with the masks, KoLeo term and separate heads of Oquab et al.: DINOv2 (arXiv
2304.07193). The loss has three parts:

- DINO: the student's code of every crop against the teacher's code of the other large crop. The code is
  of what the network itself pools (its class token, or the mean of its patches), for that is kept.
- Patches: the student, with blocks of patches masked, against the teacher, which sees them.
- KoLeo: in each large crop, the student's features keep away from their nearest neighbours.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss
from lightly.models.modules.center import Center, center_momentum
from torch import Tensor, nn

from ssl_retrieval import backbones, distributed, ema, masks, multi_crop
from ssl_retrieval.augment import Augment, Noise, View
from ssl_retrieval.defaults import Facts, given
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods.base import BaseMethod, StepOutput
from ssl_retrieval.methods.dino import projection_head
from ssl_retrieval.multi_crop import CropAugment
from ssl_retrieval.schedules import cosine, linear
from ssl_retrieval.types import Choices

_GLOBAL_VIEWS = 2


def _augment(blur: float, solarize: float = 0.0) -> CropAugment:
    return CropAugment(saturation=0.2, blur=blur, solarize=solarize, interpolation="bicubic")


@dataclass
class Config:
    """The objective's settings; None = by the data.

    Attributes:
        output_dim: Number of prototypes K of every head; None = by the number of images, 1024 to 8192.
        hidden_dim: Width of the heads.
        bottleneck_dim: Dimension before their last layer.
        shared_head: One head for images and patches, as iBOT; by default each has its own, as DINOv2.
        freeze_last_layer: Share of the training during which the heads' last layers keep their weights.
        student_temperature: Temperature of the student's softmax.
        teacher_temperature: Of the teacher's, after its warm-up; None = 0.02 to iBOT's 0.07 by the number
            of images.
        teacher_temperature_start: Where the warm-up begins, at most ``teacher_temperature``; None = 0.02
            to iBOT's 0.04 by the number of images.
        teacher_temperature_warmup: Share of the training over which it rises, in a straight line.
        center_momentum: Share of the centres that a step keeps.
        momentum: Share of itself that the teacher keeps in a step, at the start; rises to 1 along a
            cosine. None = 0.99 to DINOv2's 0.992 by the number of images, lower for few steps.
        patch_weight: Weight of the patch term.
        koleo_weight: Weight of the KoLeo term of each large crop; 0 = without.
        mask_probability: Share of the large crops in which patches are masked.
        mask_ratio_min: Least share of such a crop's patches that is masked.
        mask_ratio_max: Largest share.
        local_crops: Small views per image, for the student alone; None = 0 below 64 px, else 6 or 8.
        local_size: Their side in pixels; 0 = 3/7 of ``model.image_size``, in whole patches.
        augment: How the first large view is made. ``crop_min``: None = 0.32 with local crops (DINOv2),
            0.14 without (iBOT).
        augment_2: How the second large view is made.
        local_augment: How small views are made. ``crop_max``: None = ``augment.crop_min``.
        export: Whose weights are kept, ``teacher`` or ``student``.
    """

    name: str = "ibot"
    output_dim: int | None = None
    hidden_dim: int = 2048
    bottleneck_dim: int = 256
    shared_head: bool = False
    freeze_last_layer: float | None = None
    student_temperature: float = 0.1
    teacher_temperature: float | None = None
    teacher_temperature_start: float | None = None
    teacher_temperature_warmup: float = 0.3
    center_momentum: float = 0.9
    momentum: float | None = None
    patch_weight: float = 1.0
    koleo_weight: float = 0.1
    mask_probability: float = 0.5
    mask_ratio_min: float = 0.1
    mask_ratio_max: float = 0.5
    local_crops: int | None = None
    local_size: int = 0
    augment: CropAugment = field(default_factory=lambda: _augment(blur=1.0))
    augment_2: CropAugment = field(default_factory=lambda: _augment(blur=0.1, solarize=0.2))
    local_augment: CropAugment = field(default_factory=lambda: _augment(blur=0.5))
    export: str = "teacher"


def defaults(facts: Facts) -> Choices:
    """Choose what the papers fix for ImageNet and larger sets, and what smaller ones need instead."""
    by_images = {20_000: 1024, 50_000: 2048, 100_000: 4096}
    scaled = f"between small sets and ImageNet, for {facts.num_images:,} images"
    freeze = min(0.05, 1250 / facts.num_steps)
    chosen: Choices = {
        "method.output_dim": (facts.step_limit(8192, by_images), f"{facts.num_images:,} images"),
        "method.teacher_temperature": (round(facts.between(0.02, 0.07), 4), scaled),
        "method.teacher_temperature_start": (round(facts.between(0.02, 0.04), 4), scaled),
        "method.momentum": (facts.momentum(facts.between(0.99, 0.992)), f"{scaled}, lower for few steps"),
        "method.freeze_last_layer": (freeze, "1250 steps, at most a twentieth of the training"),
    }
    return chosen | multi_crop.choices(facts, 8) | _optimizer(facts)


def _optimizer(facts: Facts) -> Choices:
    """Take DINOv2's learning rate for many images only.

    At a batch of 256 it is 0.002, four times that of iBOT and DINO. It was found with batches of about
    2048, and is borne because the lower layers get much less of it. Small sets come with small batches
    and a warm-up of few steps; for them iBOT's is the safer one.
    """
    chosen: Choices = {
        "optimizer.name": ("adamw", "as the papers"),
        "optimizer.clip": (3.0, "as the papers"),
        "optimizer.clip_mode": ("each", "iBOT's code"),
    }
    if facts.pretrained:
        why = "gentle, for learned weights"
        return chosen | {
            "optimizer.lr": (3e-4, why),
            "optimizer.scale": ("none", why),
            "optimizer.weight_decay": (1e-4, why),
        }
    chosen |= {
        "optimizer.weight_decay": (0.04, "as the papers"),
        "optimizer.weight_decay_end": (0.4, "as the papers"),
    }
    if facts.num_images <= 500_000:
        why = f"iBOT's, for {facts.num_images:,} images: DINOv2's is for many more"
        return chosen | {
            "optimizer.lr": (5e-4, why),
            "optimizer.scale": ("linear", why),
            "optimizer.final_lr": (round(0.512 / facts.batch_size, 6), "iBOT's code: ends at 1e-6"),
        }
    return chosen | {
        "optimizer.lr": (0.004 / math.sqrt(1024), "DINOv2's code: 0.004 at a batch of 1024"),
        "optimizer.scale": ("sqrt", "DINOv2's code"),
        "optimizer.final_lr": (round(0.008 / math.sqrt(facts.batch_size), 6), "DINOv2's code: ends at 1e-6"),
        "optimizer.layer_decay": (0.9, "DINOv2's code"),
        "optimizer.patch_embed_lr": (0.2, "DINOv2's code"),
    }


class Method(BaseMethod):
    """iBOT around a timm ViT.

    Logs the three parts of the loss, and ``teacher_entropy``: the mean entropy of the teacher's codes of
    images as a share of log K. At 1 the teacher says nothing about any image; near 0 from the start, one
    prototype takes all.
    """

    advice = (
        "a lower method.teacher_temperature where the teacher_entropy stays at 1, a higher one where it "
        "falls to 0; a smaller method.output_dim; a larger method.koleo_weight"
    )
    multi_crop: bool = True

    def __init__(self, cfg: Config, backbone: nn.Module) -> None:
        """Put heads on the backbone and copy all of it for the teacher.

        Args:
            cfg: See `Config`, with no None left.
            backbone: A ViT with a class token from `backbones.make`, with ``dynamic_size`` if there are
                local crops.

        Raises:
            UserError: Another network, or a setting out of range.
        """
        super().__init__()
        _check(cfg)
        vit = masks.require_vit(backbone, "ibot")
        if given(cfg.local_crops) > 0 and not vit.dynamic_img_size:
            raise UserError(
                f"method.local_crops={cfg.local_crops}: this network takes images of one size only: set "
                "method.local_crops=0"
            )
        self.cfg = cfg
        self.keep(cfg.export)
        self._augments = _augments(cfg)
        self.encoder = backbone
        self.mask_token = nn.Parameter(torch.zeros(1, 1, vit.embed_dim))
        self.heads = nn.ModuleDict({"images": _head(backbones.feature_dim(backbone), cfg)})
        if not cfg.shared_head:
            self.heads["patches"] = _head(vit.embed_dim, cfg)
        self._patch_head = "images" if cfg.shared_head else "patches"
        self.teacher = ema.copy_of(backbone)
        self.teacher_heads = ema.copy_of(self.heads)
        codes = given(cfg.output_dim)
        self.image_loss = DINOLoss(
            codes, student_temp=cfg.student_temperature, center_momentum=cfg.center_momentum
        )
        self.patch_loss = IBOTPatchLoss(codes, student_temp=cfg.student_temperature)
        self.patch_loss.center = TokenCenter((1, codes), momentum=cfg.center_momentum)
        self.koleo = KoLeoLoss()

    def views(self, image_size: int) -> list[View | Noise]:
        """Ask for two large views, made differently, the small ones, and numbers for two masks.

        Raises:
            UserError: Too few patches.
        """
        vit: Any = self.encoder
        masks.grid_side(vit, image_size)
        *large, small = self._augments
        crops = multi_crop.make_views(
            large,
            small,
            image_size=image_size,
            local_crops=given(self.cfg.local_crops),
            local_size=self.cfg.local_size,
            patch_size=backbones.patch_size(vit),
        )
        return [*crops, Noise(_GLOBAL_VIEWS * masks.BLOCK_NUMBERS)]

    def teacher_temperature(self, progress: float) -> float:
        """Give the temperature of the teacher's softmax."""
        end = given(self.cfg.teacher_temperature)
        start = min(end, given(self.cfg.teacher_temperature_start))
        return linear(progress, start, end, self.cfg.teacher_temperature_warmup)

    def step(self, views: list[Tensor], progress: float) -> StepOutput:
        """Add up DINO over all views, the masked patches, and KoLeo over each large view.

        Args:
            views: Two float [B, 3, S, S], then small ones, then float [B, numbers].
            progress: Drives the teacher's temperature.
        """
        *crops, noise = views
        large, small = torch.cat(crops[:_GLOBAL_VIEWS]), crops[_GLOBAL_VIEWS:]
        vit: Any = self.encoder
        teacher: Any = self.teacher
        mask = self._masks(noise, masks.grid_side(vit, large.shape[-1]))
        with torch.no_grad():
            seen = teacher.forward_features(large)
            targets = self.teacher_heads["images"](teacher.forward_head(seen, pre_logits=True))
            patch_targets = self.teacher_heads[self._patch_head](_hidden(seen, mask))
        guessed = masks.encode_masked(vit, large, mask.flatten(1), self.mask_token)
        features = [vit.forward_head(guessed, pre_logits=True)]
        patch_logits = self.heads[self._patch_head](_hidden(guessed, mask))
        if small:
            features.append(multi_crop.features(vit, small))
        logits = self.heads["images"](torch.cat(features))
        temperature = self.teacher_temperature(progress)
        # Divided by small temperatures, the rounding of half types would become whole units: fp32.
        with torch.autocast(logits.device.type, enabled=False):
            targets, logits = targets.float(), logits.float()
            sharp = ((targets - self.image_loss.center[0]) / temperature).softmax(dim=1)
            entropy = torch.special.entr(sharp).sum(1).mean() / math.log(targets.shape[1])
            images = self.image_loss(
                list(targets.chunk(_GLOBAL_VIEWS)), list(logits.chunk(len(crops))), teacher_temp=temperature
            )
            patches = self.patch_loss(patch_targets.float(), patch_logits.float(), mask, temperature)
            koleo = self._koleo(features[0].float())
            loss = images + self.cfg.patch_weight * patches + self.cfg.koleo_weight * koleo
        parts = {"image_loss": images, "patch_loss": patches, "koleo": koleo}
        logs = {name: part.detach() for name, part in parts.items()}
        return StepOutput(loss=loss, logs=logs | {"teacher_entropy": entropy})

    def projectors(self) -> dict[str, nn.Module]:
        """Give the heads on what the networks pool; those on patches have another input."""
        return {"student": self.heads["images"], "teacher": self.teacher_heads.get_submodule("images")}

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Average the backbone and the heads."""
        return [(self.teacher, self.encoder), (self.teacher_heads, self.heads)]

    def momentum(self, progress: float) -> float:
        """Give the teacher's momentum: a cosine up to 1."""
        return cosine(progress, given(self.cfg.momentum), 1.0)

    def before_update(self, progress: float) -> None:
        """Keep the last layers as they are for the first share of the training."""
        if progress < given(self.cfg.freeze_last_layer):
            for name, parameter in self.heads.named_parameters():
                if ".last_layer." in name:
                    parameter.grad = None

    def _masks(self, noise: Tensor, side: int) -> Tensor:
        """Choose the patches that the student misses: bool [2B, side, side]."""
        cfg = self.cfg
        chosen = masks.block_masks(
            torch.cat(noise.chunk(_GLOBAL_VIEWS, dim=1)),
            (side, side),
            probability=cfg.mask_probability,
            ratio_min=cfg.mask_ratio_min,
            ratio_max=cfg.mask_ratio_max,
        )
        return chosen.unflatten(1, (side, side))

    def _koleo(self, features: Tensor) -> Tensor:
        """Add up KoLeo over the large views: float [2B, D], the rows of one view after the other's."""
        if self.cfg.koleo_weight == 0:
            return features.new_zeros(())
        # Neighbours are sought in the batches of all processes, or their number would change the loss.
        views = [distributed.gather(view) for view in features.chunk(_GLOBAL_VIEWS)]
        return torch.stack([self.koleo(view) for view in views]).sum()


class TokenCenter(Center):
    """A moving mean of the teacher's codes of masked patches.

    lightly's own averages the means of the processes, which is off where they mask different numbers of
    patches, and NaN for good after one step in which a process masks none.
    """

    center: Tensor

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Move towards the mean over all processes of float [N, K]; stay where they have no row."""
        total = distributed.mean(torch.cat([x.sum(dim=0), x.new_tensor([len(x)])]))
        count = total[-1]
        moved = center_momentum(self.center, total[:-1] / count, self.momentum)
        self.center = torch.where(count > 0, moved, self.center)


def _head(dim: int, cfg: Config) -> nn.Module:
    return projection_head(
        dim, given(cfg.output_dim), hidden_dim=cfg.hidden_dim, bottleneck_dim=cfg.bottleneck_dim
    )


def _hidden(tokens: Tensor, mask: Tensor) -> Tensor:
    """Pick the masked patches: float [2B, prefix + T, D] and bool [2B, side, side] -> [masked, D]."""
    chosen = mask.flatten(1)
    return tokens[:, -chosen.shape[1] :][chosen]


def _augments(cfg: Config) -> tuple[Augment, Augment, Augment]:
    """Fill the crops' sizes: small ones end where large ones begin."""
    border = 0.32 if given(cfg.local_crops) > 0 else 0.14
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
    shares = ("freeze_last_layer", "teacher_temperature_warmup", "center_momentum", "momentum")
    for name in (*shares, "mask_probability"):
        if not 0 <= given(getattr(cfg, name)) <= 1:
            raise UserError(f"method.{name}={getattr(cfg, name)}: a share in [0, 1] is needed")
    if not 0 < cfg.mask_ratio_min <= cfg.mask_ratio_max < 1:
        raise UserError(
            f"method.mask_ratio_min={cfg.mask_ratio_min}, mask_ratio_max={cfg.mask_ratio_max}: 0 < "
            "mask_ratio_min <= mask_ratio_max < 1"
        )
    if min(cfg.patch_weight, cfg.koleo_weight) < 0:
        raise UserError(
            f"method.patch_weight={cfg.patch_weight}, koleo_weight={cfg.koleo_weight}: must not be negative"
        )
