"""What methods share that see one view of each image and have an embedding head of their own."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn

from ssl_retrieval import pooling
from ssl_retrieval.augment import Augment, View
from ssl_retrieval.embedding_head import EmbeddingHead
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods.base import BaseMethod

EXPONENT_LR = 10.0
"""Factor on the learning rate of a trained exponent of GeM, as in cnnimageretrieval."""


def crops() -> Augment:
    """Give crops and mirror images alone, as papers on metric learning do: colour tells things apart."""
    return Augment(crop_min=0.2, jitter=0.0, grayscale=0.0)


@dataclass
class OneViewConfig:
    """How an image becomes a vector.

    Attributes:
        pool: How the last map is pooled: ``model`` (its own way), ``avg``, ``gem``, ``rmac`` or ``cls``.
        gem_p: Exponent of ``gem``.
        learn_gem_p: Train the exponent, at ten times the learning rate, as cnnimageretrieval does.
        dim: Dimension of a learned projection; 0 = the pooled vector itself is trained and searched with.
        whiten: Let the projection begin as the PCA whitening of the training images.
        augment: How the view is made.
    """

    name: str = "???"
    pool: str = "model"
    gem_p: float = pooling.GEM_P
    learn_gem_p: bool = False
    dim: int = 0
    whiten: bool = False
    augment: Augment = field(default_factory=crops)


class OneViewMethod(BaseMethod):
    """A backbone and an `EmbeddingHead`."""

    advice = "a lower optimizer.lr, model.freeze, or a milder method.augment"

    def __init__(self, cfg: OneViewConfig, backbone: nn.Module) -> None:
        """Put the embedding head on the backbone.

        Args:
            cfg: The method's config.
            backbone: A network from `backbones.make`.
        """
        super().__init__()
        cfg.augment.check()
        if cfg.whiten and not cfg.dim:
            raise UserError("method.whiten=true needs a projection: set method.dim, e.g. method.dim=512")
        self.augment, self.whiten = cfg.augment, cfg.whiten
        self.encoder = backbone
        self.head = EmbeddingHead(backbone, cfg.pool, cfg.gem_p, cfg.dim, cfg.learn_gem_p)

    def views(self, image_size: int) -> list[View]:
        """Ask for one view."""
        return [View(self.augment, image_size)]

    def begin(self, batches: Iterator[list[Tensor]]) -> None:
        """Whiten, if the config says so."""
        if self.whiten:
            self.head.whiten_on_views(self.encoder, batches)

    def lr_factors(self) -> dict[str, float]:
        """Let a trained exponent move."""
        return {"head.exponent": EXPONENT_LR}

    def embedding_head(self) -> EmbeddingHead:
        """Give the head, for the export and the monitor."""
        return self.head
