"""Triplet loss on pairs: the positive must be nearer to the query than each hard negative, by a margin.

Schroff, Kalenichenko, Philbin: FaceNet, CVPR 2015 (arXiv 1503.03832), on the tuples of Radenović, Tolias,
Chum (arXiv 1711.02512).
"""

from dataclasses import dataclass

from pytorch_metric_learning.losses import TripletMarginLoss
from torch import nn

from ssl_retrieval.errors import UserError
from ssl_retrieval.methods.tuples import TuplesConfig, TuplesMethod
from ssl_retrieval.methods.tuples import tuple_defaults as defaults

__all__ = ["Config", "Method", "defaults"]


@dataclass
class Config(TuplesConfig):
    """The objective's settings.

    Attributes:
        margin: By which, in distances of vectors of length 1.
    """

    name: str = "pair_triplet"
    margin: float = 0.1


class Method(TuplesMethod):
    """The triplet loss on tuples around a timm backbone."""

    def __init__(self, cfg: Config, backbone: nn.Module) -> None:
        """Make the loss.

        Args:
            cfg: See `Config`.
            backbone: A network from `backbones.make`.
        """
        super().__init__(cfg, backbone)
        if not 0 < cfg.margin < 2:
            raise UserError(f"method.margin={cfg.margin}: a distance in (0, 2) is needed")
        self.criterion = TripletMarginLoss(margin=cfg.margin)
