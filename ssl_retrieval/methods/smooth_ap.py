"""Smooth-AP: average precision itself, with ranks made differentiable by sigmoids.

Brown, Xie, Kalogeiton, Zisserman: Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval, ECCV
2020 (arXiv 2007.12163).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssl_retrieval.errors import UserError
from ssl_retrieval.methods.labelled import PairsConfig, PairsMethod
from ssl_retrieval.methods.labelled import pair_defaults as defaults

__all__ = ["Config", "Method", "defaults"]


@dataclass
class Config(PairsConfig):
    """The objective's settings; a cross-batch memory has no place in it.

    Attributes:
        temperature: Of the sigmoid that stands for a step, in cosines; the paper's is 0.01.
    """

    name: str = "smooth_ap"
    temperature: float = 0.01


class SmoothAP(nn.Module):
    """1 minus the mean smoothed average precision (equation 8), for classes of any sizes.

    As in the authors' code an image is its own first find. pytorch-metric-learning's groups a batch rightly
    only where it holds as many classes as images of each.
    """

    def __init__(self, temperature: float) -> None:
        """Take the temperature, positive."""
        super().__init__()
        self.temperature = temperature

    def forward(self, vectors: Tensor, labels: Tensor, _: None = None) -> Tensor:
        """Compute the loss; memory grows with B³.

        Args:
            vectors: float [B, D], of length 1.
            labels: int64 [B].
        """
        similarity = vectors @ vectors.T
        relevant = (labels[:, None] == labels).to(vectors.dtype)
        # above[i, j, k]: how far k ranks above j for query i.
        above = torch.sigmoid((similarity[:, None] - similarity[:, :, None]) / self.temperature)
        above = above * (1 - torch.eye(len(vectors), device=vectors.device, dtype=vectors.dtype))
        rank = 1 + above.sum(dim=2)
        rank_among_relevant = 1 + (above * relevant[:, None]).sum(dim=2)
        precision = (rank_among_relevant / rank * relevant).sum(dim=1) / relevant.sum(dim=1)
        return 1 - precision.mean()


class Method(PairsMethod):
    """Smooth-AP around a timm backbone."""

    def __init__(self, cfg: Config, backbone: nn.Module) -> None:
        """Make the loss.

        Args:
            cfg: See `Config`.
            backbone: A network from `backbones.make`.
        """
        super().__init__(cfg, backbone)
        if cfg.temperature <= 0:
            raise UserError(f"method.temperature={cfg.temperature}: must be positive")
        if cfg.memory:
            raise UserError("method.memory: Smooth-AP ranks within a batch: set method.memory=0")
        self.criterion = SmoothAP(cfg.temperature)
