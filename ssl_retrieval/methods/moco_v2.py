"""MoCo v2: find an image's other view among a queue of keys from earlier batches.

Chen, Fan, Girshick, He: Improved Baselines with Momentum Contrastive Learning, 2020 (arXiv 2003.04297),
after He et al.: Momentum Contrast, CVPR 2020 (arXiv 1911.05722). Keys come from a slowly moving copy of
the network, so that old ones still compare with new ones.

What differs: the papers shuffle the images among GPUs before the keys are made, since keys and queries
that share a batch can be told from the queue by the batch's statistics. Here batch normalisation sees the
whole batch, over all processes with ``sync_batchnorm``, so that there is nothing to shuffle; statistics
over hundreds of images betray little. Batches should not be small.
"""

from dataclasses import dataclass, field

import torch
from lightly.models.modules import MoCoProjectionHead
from torch import Tensor, nn
from torch.nn import functional as nnf

from ssl_retrieval import backbones, distributed, ema
from ssl_retrieval.augment import Augment, View
from ssl_retrieval.defaults import Facts, cifar, gentle, given, optimizer
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods.base import BaseMethod, StepOutput
from ssl_retrieval.types import Choices

PAPER_QUEUE = 65536


@dataclass
class Config:
    """The objective's settings.

    Attributes:
        temperature: Of the softmax over similarities.
        queue_length: Keys that are kept; None = by the number of images, up to the paper's 65536. A queue
            longer than the data holds old keys of the very image that is looked for.
        momentum: Share of its own weights that the key network keeps; None = by the number of images, up to
            the paper's 0.999, lower for few steps.
        symmetric: Let each view be the query once, as the authors' notebook for CIFAR-10 can; twice the work
            per step.
        hidden_dim: Width of the projection head; 0 = the feature's.
        output_dim: Dimension in which similarities are taken.
        export: ``student`` (the query network, which the paper keeps) or ``teacher`` (the key network).
        augment: How both views are made.
    """

    name: str = "moco_v2"
    temperature: float = 0.2
    queue_length: int | None = None
    momentum: float | None = None
    symmetric: bool = False
    hidden_dim: int = 0
    output_dim: int = 128
    export: str = "student"
    augment: Augment = field(default_factory=Augment)


def defaults(facts: Facts) -> Choices:
    """Choose the queue, the key network's momentum and the optimizer by what is trained."""
    sixth = 2 ** max(0, (facts.num_images // 6).bit_length() - 1)
    chosen: Choices = {
        "method.queue_length": (
            max(facts.batch_size, min(PAPER_QUEUE, sixth)),
            f"at most a sixth of {facts.num_images} images, but a batch",
        ),
        "method.momentum": (
            facts.momentum(facts.between(0.99, 0.999)),
            f"{facts.num_images} images, lower for few steps: keys must follow soon",
        ),
    }
    if facts.pretrained:
        return chosen | gentle()
    if facts.transformer:
        return chosen | {"optimizer.name": ("adamw", "for a ViT")}
    if facts.image_size <= 64:
        return chosen | cifar()
    chosen["optimizer.warmup"] = (0.0, "the authors' code")
    return chosen | optimizer("the authors' code", "sgd", 0.03, "linear", 1e-4)


class Method(BaseMethod):
    """MoCo v2 around a timm backbone; the queue holds the keys of all processes.

    Attributes:
        queue: float32 [K, D], unit rows; random ones at the start, as in the authors' code.
        pointer: int64 scalar, the row that is written next.
    """

    queue: Tensor
    pointer: Tensor
    advice = "a temperature between 0.1 and 0.5, a larger batch_size or a lower optimizer.lr"

    def __init__(self, cfg: Config, backbone: nn.Module) -> None:
        """Put a projection head on the backbone, copy both for the keys and fill the queue at random.

        Args:
            cfg: See `Config`; filled.
            backbone: A network from `backbones.make`.
        """
        super().__init__()
        cfg.augment.check()
        if cfg.temperature <= 0:
            raise UserError(f"method.temperature={cfg.temperature}: must be positive")
        if not 0 <= given(cfg.momentum) <= 1:
            raise UserError(f"method.momentum={cfg.momentum}: must be in [0, 1]")
        if min(given(cfg.queue_length), cfg.output_dim) < 1 or cfg.hidden_dim < 0:
            raise UserError(
                "method.queue_length and method.output_dim must be at least 1, hidden_dim at least 0"
            )
        self.cfg = cfg
        self.keep(cfg.export)
        self.encoder = backbone
        dim = backbones.feature_dim(backbone)
        self.projector = MoCoProjectionHead(dim, cfg.hidden_dim or dim, cfg.output_dim)
        self.teacher = ema.copy_of(self.encoder)
        self.teacher_projector = ema.copy_of(self.projector)
        keys = torch.randn(given(cfg.queue_length), cfg.output_dim)
        self.register_buffer("queue", nnf.normalize(keys))
        self.register_buffer("pointer", torch.tensor(0))

    def views(self, image_size: int) -> list[View]:
        """Ask for two views made alike: the query's and the key's."""
        return [View(self.cfg.augment, image_size)] * 2

    def pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Give the key network and its head, each with the query's."""
        return [(self.teacher, self.encoder), (self.teacher_projector, self.projector)]

    def momentum(self, progress: float) -> float:
        """Stay as it is: the paper has no schedule."""
        return given(self.cfg.momentum)

    def step(self, views: list[Tensor], progress: float) -> StepOutput:
        """Compute InfoNCE of queries against their own keys and the queue, then put the keys into it.

        Args:
            views: Two float [B, 3, S, S]; the first is the query's.
            progress: Not used: MoCo v2 has no schedule of its own.

        Returns:
            The loss, and ``accuracy``: the share of queries that are nearest to their own key.
        """
        pairs = [(views[0], views[1]), (views[1], views[0])] if self.cfg.symmetric else [(views[0], views[1])]
        # A copy, because the queue changes before the backward pass needs what the queries saw.
        negatives = self.queue.clone()
        losses, hits, made = [], [], []
        for query_view, key_view in pairs:
            query = self.projector(backbones.own_pooling(self.encoder, query_view))
            with torch.no_grad():
                key = self.teacher_projector(backbones.own_pooling(self.teacher, key_view))
            with torch.autocast(query.device.type, enabled=False):
                key = nnf.normalize(key.float())
                logits = contrast(nnf.normalize(query.float()), key, negatives) / self.cfg.temperature
                losses.append(nnf.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64)))
            hits.append((logits.detach().argmax(1) == 0).float().mean())
            made.append(key)
        for keys in made:
            self._enqueue(distributed.gather(keys))
        return StepOutput(torch.stack(losses).mean(), {"accuracy": torch.stack(hits).mean()})

    @torch.no_grad()
    def _enqueue(self, keys: Tensor) -> None:
        """Write keys over the oldest ones: float [N, D] of all processes."""
        length = len(self.queue)
        if len(keys) > length:
            raise UserError(
                f"method.queue_length={length} is less than the {len(keys)} keys of a step: make it larger, "
                "or batch_size smaller"
            )
        # Places are computed on the device: reading the pointer would make the GPU wait at every step.
        places = (self.pointer + torch.arange(len(keys), device=keys.device)) % length
        self.queue[places] = keys
        self.pointer.add_(len(keys)).remainder_(length)


def contrast(queries: Tensor, keys: Tensor, negatives: Tensor) -> Tensor:
    """Take the similarities of queries to their own key, and to all negatives.

    Args:
        queries: float [B, D], unit rows.
        keys: float [B, D], unit rows.
        negatives: float [K, D], unit rows.

    Returns:
        float [B, 1 + K]; the own key's comes first.
    """
    own = (queries * keys).sum(1, keepdim=True)
    return torch.cat([own, queries @ negatives.T], dim=1)
