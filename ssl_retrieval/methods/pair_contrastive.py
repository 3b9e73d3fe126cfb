"""Contrastive loss on pairs: the two are drawn together, hard negatives pushed away up to a margin.

Radenović, Tolias, Chum: Fine-tuning CNN Image Retrieval with No Human Annotation, TPAMI 2019 (arXiv
1711.02512). The loss is pytorch-metric-learning's: distances are not squared, and the mean is taken over the
pairs that are not yet as they should be.
"""

from dataclasses import dataclass

from pytorch_metric_learning.losses import ContrastiveLoss
from torch import nn

from ssl_retrieval.errors import UserError
from ssl_retrieval.methods.tuples import TuplesConfig, TuplesMethod
from ssl_retrieval.methods.tuples import tuple_defaults as defaults

__all__ = ["Config", "Method", "defaults"]


@dataclass
class Config(TuplesConfig):
    """The objective's settings.

    Attributes:
        margin: Distance, of vectors of length 1, beyond which a negative no longer counts.
    """

    name: str = "pair_contrastive"
    margin: float = 0.7


class Method(TuplesMethod):
    """The contrastive loss on tuples around a timm backbone."""

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
