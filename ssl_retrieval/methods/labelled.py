"""What all methods that learn from labels share: one view, an embedding head, a loss of vectors and labels.

Labels are those of the data, or clusters of the network's own vectors, found anew every now and then.

Losses and miners are pytorch-metric-learning's (Musgrave, Belongie, Lim, arXiv 2008.09164) where it has them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from ssl_retrieval import distributed, pseudo_labels
from ssl_retrieval.console import say
from ssl_retrieval.cross_batch_memory import CrossBatchMemory
from ssl_retrieval.data.base import one_of
from ssl_retrieval.defaults import Facts, gentle, given
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods.base import BaseMethod, StepOutput
from ssl_retrieval.methods.one_view import OneViewConfig, OneViewMethod
from ssl_retrieval.rounds import Round, Seen, Signal
from ssl_retrieval.types import Choices

SPREAD = 0.3
"""How far the vectors of one class begin apart, for objectives that have several."""


@dataclass
class LabelledConfig(OneViewConfig):
    """What every objective on labels can be told.

    Attributes:
        labels: ``given``: those of the data; ``clusters``: the run makes its own (see `pseudo_labels`), and
            sees no others.
        clusters: How many; None = a tenth of the images.
    """

    labels: str = "given"
    clusters: int | None = None


@dataclass
class ClassesConfig(LabelledConfig):
    """Classification-based objectives: vectors are compared with learned ones, one or more per class.

    Attributes:
        num_classes: None = by the labels.
        proxy_lr: Factor on the learning rate of the classes' vectors, which begin at random, with values
            around 1, and must find their places in few steps.
    """

    num_classes: int | None = None
    proxy_lr: float = 100.0


@dataclass
class PairsConfig(LabelledConfig):
    """Verification-based objectives: vectors of a batch are compared with each other.

    Attributes:
        memory: Length of a cross-batch memory: the loss is also taken against so many earlier vectors;
            0 = none (Wang et al., CVPR 2020, arXiv 1912.06798).
        memory_start: Share of the training after which it is used: early vectors change too fast.
    """

    memory: int = 0
    memory_start: float = 0.1


def class_defaults(facts: Facts) -> Choices:
    """Choose what classification-based objectives leave open; with given labels plain batches will do."""
    if facts.own_labels:
        # Or little more than the few largest clusters would be learned (section 3.3 of the paper).
        balanced = (2, "each cluster as often as any other, as in DeepCluster")
        return _optimizer(facts) | _clusters(facts) | {"images_per_class": balanced}
    return _optimizer(facts) | {"method.num_classes": (facts.num_classes, "as many as the labels name")}


def pair_defaults(facts: Facts) -> Choices:
    """Choose what verification-based objectives leave open: in a batch each class needs its pairs."""
    own = _clusters(facts) if facts.own_labels else {}
    return _optimizer(facts) | own | {"images_per_class": (4, "pairs of a class must meet in a batch")}


def _clusters(facts: Facts) -> Choices:
    return {
        "method.clusters": (pseudo_labels.clusters_for(facts.num_images), "ten images in each on average"),
        "renew_every": (1.0, "once per epoch, as DeepCluster"),
    }


def _optimizer(facts: Facts) -> Choices:
    return gentle() if facts.pretrained else {}


class LabelledMethod(OneViewMethod):
    """A backbone, an `EmbeddingHead` and a loss; in several processes the loss is that of the whole batch.

    Subclasses set ``criterion``, a loss of vectors and labels as pytorch-metric-learning's.

    Attributes:
        unit_length: Whether the loss sees vectors of length 1, as the search does.
    """

    needs_labels = True
    family = "fine-tuned"
    unit_length = True
    criterion: nn.Module

    def __init__(self, cfg: LabelledConfig, backbone: nn.Module) -> None:
        """Put the embedding head on the backbone.

        Args:
            cfg: The method's config.
            backbone: A network from `backbones.make`.
        """
        super().__init__(cfg, backbone)
        if cfg.clusters is not None and (cfg.labels == "given" or cfg.clusters < 2):
            raise UserError(
                f"method.clusters={cfg.clusters}: at least 2, together with method.labels=clusters"
            )
        self.cfg = cfg

    @classmethod
    def signal(cls, cfg: Any) -> Signal:
        """Say whose labels are learned from."""
        one_of("method.labels", cfg.labels, ("given", "clusters"))
        if cfg.labels == "given":
            return Signal(given=True, renewed=False, family=cls.family)
        return Signal(given=False, renewed=True, family=BaseMethod.family)

    def renew(self, seen: Seen) -> Round:
        """Cluster the vectors."""
        labels = pseudo_labels.cluster(seen.vectors, given(self.cfg.clusters), seen.seed)
        before = None if seen.last is None else seen.last.labels.numpy()
        say(f"  {pseudo_labels.describe(labels, before)}")
        centres = torch.from_numpy(pseudo_labels.centres(seen.vectors, labels))
        return Round(torch.from_numpy(labels), centres=centres)

    def step(self, views: list[Tensor], progress: float) -> StepOutput:
        """Compute the loss.

        Args:
            views: float [B, 3, S, S], then int64 [B], the labels.
            progress: Share of the training done.
        """
        images, labels = views
        vectors = self.head(self.encoder, images)
        # Differences of similarities near 1 vanish in half types: fp32, whatever came before.
        with torch.autocast(vectors.device.type, enabled=False):
            vectors, labels = distributed.gather(vectors.float()), distributed.gather(labels)
            if self.unit_length:
                vectors = nnf.normalize(vectors, dim=1)
            return StepOutput(loss=self.loss(vectors, labels, progress))

    def loss(self, vectors: Tensor, labels: Tensor, progress: float) -> Tensor:
        """Compare vectors: float [B, D], int64 [B] -> a scalar."""
        loss: Tensor = self.criterion(vectors, labels)
        return loss


class ClassesMethod(LabelledMethod):
    """Compares vectors with learned ones of the classes, which have a learning rate of their own."""

    def __init__(self, cfg: ClassesConfig, backbone: nn.Module) -> None:
        """Take the number of classes.

        Args:
            cfg: The method's config.
            backbone: A network from `backbones.make`.
        """
        super().__init__(cfg, backbone)
        if cfg.labels == "clusters" and cfg.num_classes is not None:
            raise UserError(
                f"method.num_classes={cfg.num_classes}: with method.labels=clusters, method.clusters says "
                "how many: leave num_classes out"
            )
        self.num_classes = given(cfg.num_classes if cfg.labels == "given" else cfg.clusters)
        if self.num_classes < 2:
            raise UserError(f"method.num_classes={self.num_classes}: at least 2 are needed")
        if cfg.proxy_lr <= 0:
            raise UserError(f"method.proxy_lr={cfg.proxy_lr}: must be positive")
        self.proxy_lr = cfg.proxy_lr

    @torch.no_grad()
    def begin_round(self, found: Round) -> list[nn.Parameter]:
        """Put each class's vectors at the centre of its new cluster; they stay as long as they were."""
        assert found.centres is not None
        for name, values in self.criterion.named_parameters():
            if name == "bias":
                values.zero_()
                continue
            # pytorch-metric-learning keeps the classes of some losses in columns, called W.
            rows = values.T if name == "W" else values
            centres = found.centres.repeat_interleave(len(rows) // len(found.centres), dim=0)
            if len(rows) > len(found.centres):
                # Vectors of one class that began alike would stay alike.
                noise = torch.randn(centres.shape, generator=torch.Generator().manual_seed(0))
                centres = nnf.normalize(centres + SPREAD * nnf.normalize(noise, dim=1), dim=1)
            rows.copy_(centres.to(values) * rows.norm(dim=1).mean())
        return list(self.criterion.parameters())

    def lr_factors(self) -> dict[str, float]:
        """Give the classes' vectors their own rate."""
        return super().lr_factors() | {"criterion.": self.proxy_lr}


class PairsMethod(LabelledMethod):
    """Compares the vectors of a batch with each other and, with a memory, with earlier ones.

    Subclasses may set ``miner``, which chooses the pairs or triplets of the batch that count.
    """

    advice = "more classes in a batch (batch_size / images_per_class), or a lower optimizer.lr"
    miner: nn.Module | None

    def __init__(self, cfg: PairsConfig, backbone: nn.Module) -> None:
        """Make the memory.

        Args:
            cfg: The method's config.
            backbone: A network from `backbones.make`.
        """
        super().__init__(cfg, backbone)
        if cfg.memory < 0 or not 0 <= cfg.memory_start < 1:
            raise UserError(
                f"method.memory={cfg.memory}, memory_start={cfg.memory_start}: a length of 0 or more and a "
                "share in [0, 1) are needed"
            )
        self.miner = None
        self.memory = CrossBatchMemory(cfg.memory, self.head.dim) if cfg.memory else None
        self.memory_start = cfg.memory_start

    def begin_round(self, found: Round) -> list[nn.Parameter]:
        """Forget earlier vectors: their labels mean something else now."""
        if self.memory is not None:
            self.memory.clear()
        return []

    def loss(self, vectors: Tensor, labels: Tensor, progress: float) -> Tensor:
        """Compare vectors: float [B, D], int64 [B] -> a scalar."""
        chosen = None if self.miner is None else self.miner(vectors, labels)
        loss: Tensor = self.criterion(vectors, labels, chosen)
        if self.memory is None:
            return loss
        earlier, their_labels = self.memory.content()
        if progress >= self.memory_start and len(earlier):
            chosen = None if self.miner is None else self.miner(vectors, labels, earlier, their_labels)
            loss = loss + self.criterion(vectors, labels, chosen, earlier, their_labels)
        self.memory.add(vectors, labels)
        return loss
