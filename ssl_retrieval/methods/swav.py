"""SwAV: from one view of an image, predict the cluster that another view was assigned to.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin: Unsupervised Learning of Visual Features by Contrasting
Cluster Assignments, NeurIPS 2020 (arXiv 2006.09882). Clusters are directions on the sphere (prototypes);
assignments are balanced over the batch of all processes and, for small batches, over a queue of earlier
images.
"""

import math
from dataclasses import dataclass, field

import torch
from lightly.loss import SwaVLoss
from lightly.models.modules import SwaVProjectionHead, SwaVPrototypes
from torch import Tensor, nn
from torch.nn import functional as nnf

from ssl_retrieval import backbones, distributed, multi_crop
from ssl_retrieval.augment import Augment, View
from ssl_retrieval.defaults import Facts, gentle, given, optimizer
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods.base import BaseMethod, StepOutput
from ssl_retrieval.types import Choices

_GLOBAL_VIEWS = 2

_LEAST_EPSILON = 0.02


def _augment(crop_min: float, crop_max: float) -> Augment:
    return Augment(
        crop_min=crop_min, crop_max=crop_max, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur=0.5
    )


@dataclass
class Config:
    """The objective's settings; None = by the data.

    Attributes:
        temperature: Of the softmax over prototypes.
        epsilon: Of the assignments: smaller = nearer to one prototype per image; at least 0.02.
        sinkhorn_iterations: How often rows and columns are balanced.
        hidden_dim: Width of the projection head; 0 = the feature's.
        output_dim: Dimension of the sphere.
        num_prototypes: Number of clusters; None = by the number of images, 300 to 3000.
        freeze_prototypes: Share of the training during which prototypes keep their places; None = one
            epoch.
        queue_length: Earlier images, per large view, that assignments are balanced over as well; None =
            0 when a batch has as many images as there are prototypes.
        queue_start: Share of the training after which the queue is filled; it is used once it is full.
        local_crops: Small views per image; None = 0 below 64 px, else 6.
        local_size: Their side in pixels; 0 = 3/7 of ``model.image_size``, in whole patches.
        augment: How both large views are made.
        local_augment: How small views are made.
    """

    name: str = "swav"
    temperature: float = 0.1
    epsilon: float = 0.05
    sinkhorn_iterations: int = 3
    hidden_dim: int = 0
    output_dim: int = 128
    num_prototypes: int | None = None
    freeze_prototypes: float | None = None
    queue_length: int | None = None
    queue_start: float = 0.075
    local_crops: int | None = None
    local_size: int = 0
    augment: Augment = field(default_factory=lambda: _augment(0.14, 1.0))
    local_augment: Augment = field(default_factory=lambda: _augment(0.05, 0.14))


def defaults(facts: Facts) -> Choices:
    """Choose what the paper tunes for ImageNet, and what smaller sets and batches need instead."""
    prototypes = facts.step_limit(3000, {20_000: 300, 100_000: 512, 500_000: 1500})
    epoch = (facts.num_images / facts.batch_size) / facts.num_steps
    chosen: Choices = {
        "method.num_prototypes": (prototypes, f"{facts.num_images:,} images"),
        "method.freeze_prototypes": (min(0.05, epoch), "an epoch, at most a twentieth of the training"),
        "method.queue_length": _queue_length(facts, prototypes),
    }
    return chosen | multi_crop.choices(facts, 6) | _optimizer(facts)


def _queue_length(facts: Facts, prototypes: int) -> tuple[int, str]:
    if facts.batch_size >= prototypes:
        return 0, f"a batch is enough for {prototypes} prototypes"
    # The paper's 3840 for 3000 prototypes and batches of 256.
    batches = min(math.ceil(1.25 * prototypes / facts.batch_size), facts.num_images // (2 * facts.batch_size))
    return batches * facts.batch_size, f"{batches} batches, for {prototypes} prototypes"


def _optimizer(facts: Facts) -> Choices:
    if facts.pretrained:
        return gentle()
    if facts.transformer:
        more = {"weight_decay_end": 0.4, "clip": 3.0, "clip_mode": "each"}
        return optimizer("DINO's, for ViTs", "adamw", 5e-4, "linear", 0.04) | {
            f"optimizer.{key}": (value, "DINO's, for ViTs") for key, value in more.items()
        }
    # 0.6 at 256 images, but 4.8 at 4096.
    lr = 0.6 if facts.batch_size <= 512 else 0.3
    chosen = optimizer("the authors' code", "lars", lr, "linear", 1e-6)
    return chosen | {"optimizer.final_lr": (0.001, "the authors' code")}


class Method(BaseMethod):
    """SwAV around a timm backbone.

    Logs ``prototypes_used``: the share of prototypes that are nearest to some large view of the batch.
    """

    advice = "a method.epsilon of 0.03, fewer method.num_prototypes or a longer method.freeze_prototypes"
    multi_crop: bool = True

    queue: Tensor
    filled: Tensor

    def __init__(self, cfg: Config, backbone: nn.Module) -> None:
        """Put a projection head and prototypes on the backbone.

        Args:
            cfg: See `Config`, with no None left.
            backbone: A network from `backbones.make`; a ViT with ``dynamic_size``.
        """
        super().__init__()
        _check(cfg)
        self.cfg = cfg
        self.patch_size = backbones.patch_size(backbone)
        self.encoder = backbone
        dim = backbones.feature_dim(backbone)
        self.head = SwaVProjectionHead(dim, cfg.hidden_dim or dim, cfg.output_dim)
        self.prototypes = SwaVPrototypes(cfg.output_dim, given(cfg.num_prototypes))
        # lightly adds a bias, with which scores would not be cosines; the authors have none.
        self.prototypes.heads[0].register_parameter("bias", None)
        self.prototypes.normalize()
        self.criterion = SwaVLoss(
            cfg.temperature,
            cfg.sinkhorn_iterations,
            cfg.epsilon,
            sinkhorn_gather_distributed=torch.distributed.is_available(),
        )
        self.register_buffer("queue", torch.zeros(_GLOBAL_VIEWS, given(cfg.queue_length), cfg.output_dim))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    def views(self, image_size: int) -> list[View]:
        """Ask for two large views made alike, and for the small ones."""
        return multi_crop.make_views(
            [self.cfg.augment] * _GLOBAL_VIEWS,
            self.cfg.local_augment,
            image_size=image_size,
            local_crops=given(self.cfg.local_crops),
            local_size=self.cfg.local_size,
            patch_size=self.patch_size,
        )

    def step(self, views: list[Tensor], progress: float) -> StepOutput:
        """Compute the swapped prediction loss.

        Args:
            views: Two float [B, 3, S, S], then small ones.
            progress: Says when the queue begins.
        """
        self.prototypes.normalize()
        projected = self.head(multi_crop.features(self.encoder, views))
        # The balancing takes exp(20 · cosine), far beyond half types: fp32.
        with torch.autocast(projected.device.type, enabled=False):
            embedded = nnf.normalize(projected.float(), dim=1)
            scores = list(self.prototypes(embedded).chunk(len(views)))
            large, small = scores[:_GLOBAL_VIEWS], scores[_GLOBAL_VIEWS:]
            loss = self.criterion(large, small, self._queue_scores()).squeeze(0)
            if progress >= self.cfg.queue_start:
                self._remember(embedded.detach().chunk(len(views))[:_GLOBAL_VIEWS])
        nearest = torch.cat(large).argmax(1)
        used = torch.zeros_like(large[0][0]).index_fill_(0, nearest, 1.0).mean()
        return StepOutput(loss=loss, logs={"prototypes_used": used})

    def before_update(self, progress: float) -> None:
        """Keep the prototypes where they are for the first share of the training."""
        if progress < given(self.cfg.freeze_prototypes):
            for parameter in self.prototypes.parameters():
                parameter.grad = None

    @torch.no_grad()
    def _queue_scores(self) -> list[Tensor] | None:
        """Score this process's part of the queue against the prototypes of now; None until it is full."""
        length = self.queue.shape[1]
        if length == 0 or int(self.filled) < length:
            return None
        # All processes hold the same queue, and each image is to count once.
        part = length // distributed.world_size()
        rows = self.queue[:, distributed.rank() * part :][:, :part]
        return [self.prototypes(view) for view in rows]

    @torch.no_grad()
    def _remember(self, embedded: tuple[Tensor, ...]) -> None:
        """Put the images of all processes in front; the oldest drop out."""
        length = self.queue.shape[1]
        if length == 0:
            return
        new = torch.stack([distributed.gather(rows) for rows in embedded])
        self.queue.copy_(torch.cat([new, self.queue], dim=1)[:, :length])
        self.filled.add_(new.shape[1]).clamp_(max=length)


def _check(cfg: Config) -> None:
    cfg.augment.check()
    cfg.local_augment.check()
    if cfg.temperature <= 0:
        raise UserError(f"method.temperature={cfg.temperature}: must be positive")
    if cfg.epsilon < _LEAST_EPSILON:
        raise UserError(
            f"method.epsilon={cfg.epsilon}: must be at least {_LEAST_EPSILON}: exp(1 / epsilon) overflows"
        )
    for name, least in (
        ("sinkhorn_iterations", 1),
        ("hidden_dim", 0),
        ("output_dim", 1),
        ("num_prototypes", 2),
        ("queue_length", 0),
    ):
        if given(getattr(cfg, name)) < least:
            raise UserError(f"method.{name}={getattr(cfg, name)}: must be at least {least}")
    for name in ("freeze_prototypes", "queue_start"):
        if not 0 <= given(getattr(cfg, name)) <= 1:
            raise UserError(f"method.{name}={getattr(cfg, name)}: a share in [0, 1] is needed")
