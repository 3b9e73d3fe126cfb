"""SimCLR: two views of an image attract, all other images of the batch repel.

Chen, Kornblith, Norouzi, Hinton: A Simple Framework for Contrastive Learning of Visual
Representations, ICML 2020 (arXiv 2002.05709). As in the authors' code, both views go through the
network in one batch, and all layers of the projection head are normalised and have no bias; the last
normalisation has a scale but no shift.
"""

from dataclasses import dataclass, field

import torch
from lightly.models.modules import SimCLRProjectionHead
from torch import Tensor, nn
from torch.nn import functional as nnf

from ssl_retrieval import backbones, distributed
from ssl_retrieval.augment import Augment, View
from ssl_retrieval.defaults import Facts, cifar, gentle, given, optimizer
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods.base import BaseMethod, StepOutput
from ssl_retrieval.types import Choices


@dataclass
class Config:
    """The objective's settings.

    Attributes:
        temperature: Of the softmax over similarities; None = by the images: the paper takes 0.1 for
            ImageNet and 0.5 for CIFAR-10.
        hidden_dim: Width of the projection head; 0 = the feature's.
        output_dim: Dimension in which similarities are taken.
        num_layers: Layers of the head, 2 (SimCLR) or 3 (SimCLR v2).
        augment: How both views are made.
    """

    name: str = "simclr"
    temperature: float | None = None
    hidden_dim: int = 0
    output_dim: int = 128
    num_layers: int = 2
    augment: Augment = field(default_factory=Augment)


def defaults(facts: Facts) -> Choices:
    """Choose the temperature and the optimizer by what is trained."""
    small = facts.image_size <= 64
    chosen: Choices = {
        "method.temperature": (0.5, "small images: the paper's for CIFAR-10")
        if small and not facts.pretrained
        else (0.1, "the paper's for ImageNet")
    }
    if facts.pretrained:
        return chosen | gentle()
    if facts.transformer:
        return chosen | {"optimizer.name": ("adamw", "for a ViT")}
    if small:
        return chosen | cifar()
    if facts.batch_size <= 2048 and facts.epochs <= 200:
        why = "the authors' code up to batches of 2048 and 200 epochs"
        return chosen | optimizer(why, "lars", 0.075, "sqrt", 1e-4)
    why = f"the authors' code for batches of {facts.batch_size} and about {facts.epochs:.0f} epochs"
    return chosen | optimizer(why, "lars", 0.3, "linear", 1e-4)


class NTXent(nn.Module):
    """NT-Xent: cross-entropy of finding an image's other view among all views but itself (equation 1).

    lightly's picks similarities by masks, for which a GPU must be waited for four times a step.
    """

    def __init__(self, temperature: float) -> None:
        """Take what similarities are divided by, positive."""
        super().__init__()
        self.temperature = temperature

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Compute the mean over all 2B views.

        Args:
            first: float [B, D], of any length.
            second: The same images' other views.
        """
        everything = nnf.normalize(torch.cat([first, second]), dim=1)
        logits = everything @ everything.T / self.temperature
        itself = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        partner = torch.arange(len(logits), device=logits.device).roll(len(first))
        return nnf.cross_entropy(logits.masked_fill(itself, -torch.inf), partner)


class Method(BaseMethod):
    """SimCLR around a timm backbone; in several processes every image repels those of all of them."""

    advice = "a larger batch_size, or a temperature between 0.1 and 0.5"

    def __init__(self, cfg: Config, backbone: nn.Module) -> None:
        """Put a projection head on the backbone.

        Args:
            cfg: See `Config`.
            backbone: A network from `backbones.make`.
        """
        super().__init__()
        cfg.augment.check()
        temperature = given(cfg.temperature)
        if temperature <= 0:
            raise UserError(f"method.temperature={temperature}: must be positive")
        if cfg.num_layers < 2 or cfg.output_dim < 1:
            raise UserError("method.num_layers must be at least 2 and method.output_dim at least 1")
        self.cfg = cfg
        self.encoder = backbone
        dim = backbones.feature_dim(backbone)
        self.head = SimCLRProjectionHead(dim, cfg.hidden_dim or dim, cfg.output_dim, cfg.num_layers)
        # The authors' has no shift: one for all images would only make them more alike.
        self.head.layers[-1].bias.requires_grad_(False)
        self.criterion: nn.Module = NTXent(temperature)

    def views(self, image_size: int) -> list[View]:
        """Ask for two views made alike."""
        return [View(self.cfg.augment, image_size)] * 2

    def step(self, views: list[Tensor], progress: float) -> StepOutput:
        """Compute NT-Xent over the 2B projections.

        Args:
            views: Two float [B, 3, S, S].
            progress: Not used: SimCLR has no schedule of its own.
        """
        projected = self.head(backbones.own_pooling(self.encoder, torch.cat(views)))
        # The softmax over 2B similarities loses precision in half types: fp32, whatever came before.
        with torch.autocast(projected.device.type, enabled=False):
            # Every process computes the whole loss: lightly's own gathering fails on GPUs (`eye_rank`).
            first, second = (distributed.gather(half) for half in projected.float().chunk(2))
            return StepOutput(loss=self.criterion(first, second))
