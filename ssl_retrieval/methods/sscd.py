"""SSCD: SimCLR for copy detection, with the vectors of different images pushed apart from their nearest ones.

Pizzi, Roy, Ravindra, Goyal, Douze: A Self-Supervised Descriptor for Image Copy Detection, CVPR 2022
(arXiv 2202.10261). What the loss sees is what is searched with: GeM features under one linear layer, exported
with the network. The regularizer, Kozachenko and Leonenko's estimate of the entropy, keeps an image's nearest
other one at a distance, so that one threshold on the similarity can tell copies from look-alikes everywhere.

Left out of the paper: mixed images (MixUp, CutMix), and overlaid text, emoji and JPEG artefacts; a move onto
a plain ground stands for copies that are pasted. Features are scaled to length 1 before the linear layer.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from ssl_retrieval import distributed, pooling
from ssl_retrieval.augment import Augment, View
from ssl_retrieval.defaults import Facts, cifar, gentle, optimizer
from ssl_retrieval.embedding_head import EmbeddingHead
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods.base import BaseMethod, StepOutput
from ssl_retrieval.methods.simclr import NTXent
from ssl_retrieval.types import Choices

_LEAST_SQUARED = 1e-6
"""Squared distances below count as this, without gradient: exact duplicates must not push with all force."""


def copies() -> Augment:
    """Give the paper's strong blur on SimCLR's colours, and some views moved onto a plain ground."""
    return Augment(
        brightness=0.8,
        contrast=0.8,
        saturation=0.8,
        hue=0.2,
        blur=0.5,
        blur_sigma_min=1.0,
        blur_sigma_max=5.0,
        affine=0.1,
        rotate=180.0,
    )


@dataclass
class Config:
    """The objective's settings.

    Attributes:
        temperature: Of the softmax over similarities.
        entropy_weight: Weight λ of the regularizer; 0 = SimCLR alone.
        pool: How the last map is pooled: ``model`` (as the network does), ``avg``, ``gem`` or ``cls``.
        gem_p: Exponent of ``gem``.
        dim: Dimension of the descriptor.
        whiten: Let the linear layer begin as the PCA whitening of the training images; for learned weights.
        augment: How both views are made.
    """

    name: str = "sscd"
    temperature: float = 0.05
    entropy_weight: float = 30.0
    pool: str = "gem"
    gem_p: float = pooling.GEM_P
    dim: int = 512
    whiten: bool = False
    augment: Augment = field(default_factory=copies)


def defaults(facts: Facts) -> Choices:
    """Choose the optimizer by what is trained."""
    if facts.pretrained:
        return gentle()
    if facts.transformer:
        return {"optimizer.name": ("adamw", "for a ViT")}
    if facts.image_size <= 64:
        return cifar()
    return optimizer("the authors' code", "lars", 0.3, "linear", 1e-6)


class Entropy(nn.Module):
    """The mean of -log of the distance to the nearest view of another image (equation 3).

    lightly's `KoLeoLoss` takes the nearest of all other vectors, which would push the two views of an image
    apart.
    """

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Compute the mean over all 2B views.

        Args:
            first: float32 [B, D], of any length, B at least 2.
            second: The same images' other views.
        """
        everything = nnf.normalize(torch.cat([first, second]), dim=1)
        count = len(first)
        with torch.no_grad():
            image = torch.arange(2 * count, device=first.device) % count
            same = image[:, None] == image
            nearest = (everything @ everything.T).masked_fill(same, -torch.inf).argmax(dim=1)
        # From the difference: 2 - 2 cos loses what is small.
        squared = (everything - everything[nearest]).square().sum(dim=1)
        return -0.5 * squared.clamp(min=_LEAST_SQUARED).log().mean()


class Method(BaseMethod):
    """SSCD around a timm backbone; in several processes every image is compared with those of all of them."""

    advice = "a lower optimizer.lr, a lower method.entropy_weight, or a larger batch_size"

    def __init__(self, cfg: Config, backbone: nn.Module) -> None:
        """Put the descriptor's layer on the backbone.

        Args:
            cfg: See `Config`.
            backbone: A network from `backbones.make`.
        """
        super().__init__()
        cfg.augment.check()
        if cfg.temperature <= 0:
            raise UserError(f"method.temperature={cfg.temperature}: must be positive")
        if cfg.entropy_weight < 0:
            raise UserError(f"method.entropy_weight={cfg.entropy_weight}: must not be negative")
        if cfg.dim < 1:
            raise UserError(f"method.dim={cfg.dim}: must be at least 1; the paper takes 512")
        self.cfg = cfg
        self.encoder = backbone
        self.head = EmbeddingHead(backbone, cfg.pool, cfg.gem_p, cfg.dim)
        assert self.head.projection is not None
        # As the authors: a bias at random would be as long as what it is added to.
        nn.init.xavier_uniform_(self.head.projection.weight)
        nn.init.zeros_(self.head.projection.bias)
        self.criterion = NTXent(cfg.temperature)
        self.entropy = Entropy()

    def views(self, image_size: int) -> list[View]:
        """Ask for two views made alike."""
        return [View(self.cfg.augment, image_size)] * 2

    def begin(self, batches: Iterator[list[Tensor]]) -> None:
        """Whiten, if the config says so."""
        if self.cfg.whiten:
            self.head.whiten_on_views(self.encoder, batches)

    def embedding_head(self) -> EmbeddingHead:
        """Give the head, for the export and the monitor."""
        return self.head

    def step(self, views: list[Tensor], progress: float) -> StepOutput:
        """Compute NT-Xent and the entropy of the 2B descriptors.

        Args:
            views: Two float [B, 3, S, S].
            progress: Not used: SSCD has no schedule of its own.
        """
        vectors = self.head(self.encoder, torch.cat(views))
        # Softmax and distances lose precision in half types: fp32, whatever came before.
        with torch.autocast(vectors.device.type, enabled=False):
            first, second = (distributed.gather(half) for half in vectors.float().chunk(2))
            contrast, entropy = self.criterion(first, second), self.entropy(first, second)
        logs = {"contrast": contrast.detach(), "entropy": entropy.detach()}
        return StepOutput(loss=contrast + self.cfg.entropy_weight * entropy, logs=logs)
