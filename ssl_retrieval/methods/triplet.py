"""Triplet: an image must be nearer to one of its class than to one of another, by a margin.

Schroff, Kalenichenko, Philbin: FaceNet, CVPR 2015 (arXiv 1503.03832), with its semi-hard negatives; or the
hardest of the batch, as Hermans, Beyer, Leibe (arXiv 1703.07737).
"""

from dataclasses import dataclass

from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner, TripletMarginMiner
from torch import nn

from ssl_retrieval.data.base import one_of
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods.labelled import PairsConfig, PairsMethod
from ssl_retrieval.methods.labelled import pair_defaults as defaults

__all__ = ["Config", "Method", "defaults"]


@dataclass
class Config(PairsConfig):
    """The objective's settings.

    Attributes:
        margin: By which, in distances of vectors of length 1.
        mining: Which triplets count: ``semihard``: the negative is farther than the positive, by less than
            the margin; ``hard``: for each image the farthest positive and the nearest negative; ``all``.
    """

    name: str = "triplet"
    margin: float = 0.1
    mining: str = "semihard"


class Method(PairsMethod):
    """The triplet loss around a timm backbone."""

    def __init__(self, cfg: Config, backbone: nn.Module) -> None:
        """Make the loss.

        Args:
            cfg: See `Config`.
            backbone: A network from `backbones.make`.
        """
        super().__init__(cfg, backbone)
        if not 0 < cfg.margin < 2:
            raise UserError(f"method.margin={cfg.margin}: a distance in (0, 2) is needed")
        one_of("method.mining", cfg.mining, ("semihard", "hard", "all"))
        self.criterion = TripletMarginLoss(margin=cfg.margin)
        if cfg.mining == "semihard":
            self.miner = TripletMarginMiner(margin=cfg.margin, type_of_triplets="semihard")
        elif cfg.mining == "hard":
            self.miner = BatchHardMiner()
