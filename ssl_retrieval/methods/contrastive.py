"""Contrastive: images of a class are drawn together, others pushed apart up to a margin.

Hadsell, Chopra, LeCun: Dimensionality Reduction by Learning an Invariant Mapping, CVPR 2006; for retrieval
Radenović, Tolias, Chum, TPAMI 2019 (arXiv 1711.02512).
"""

from dataclasses import dataclass

from pytorch_metric_learning.losses import ContrastiveLoss
from torch import nn

from ssl_retrieval.errors import UserError
from ssl_retrieval.methods.labelled import PairsConfig, PairsMethod
from ssl_retrieval.methods.labelled import pair_defaults as defaults

__all__ = ["Config", "Method", "defaults"]


@dataclass
class Config(PairsConfig):
    """The objective's settings.

    Attributes:
        margin: Distance, of vectors of length 1, beyond which other classes no longer count.
    """

    name: str = "contrastive"
    margin: float = 0.7


class Method(PairsMethod):
    """The contrastive loss around a timm backbone."""

    def __init__(self, cfg: Config, backbone: nn.Module) -> None:
        """Make the loss.

        Args:
            cfg: See `Config`.
            backbone: A network from `backbones.make`.
        """
        super().__init__(cfg, backbone)
        if not 0 < cfg.margin <= 2:
            raise UserError(f"method.margin={cfg.margin}: a distance in (0, 2] is needed")
        self.criterion = ContrastiveLoss(pos_margin=0, neg_margin=cfg.margin)
