"""Multi-similarity: pairs weigh by how they compare with the margin and with the other pairs of their image.

Wang, Han, Huang, Dong, Scott: Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning,
CVPR 2019 (arXiv 1904.06627), with its mining.
"""

from dataclasses import dataclass

from pytorch_metric_learning.losses import MultiSimilarityLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner
from torch import nn

from ssl_retrieval.errors import UserError
from ssl_retrieval.methods.labelled import PairsConfig, PairsMethod
from ssl_retrieval.methods.labelled import pair_defaults as defaults

__all__ = ["Config", "Method", "defaults"]


@dataclass
class Config(PairsConfig):
    """The objective's settings.

    Attributes:
        alpha: How much the hardest positives count.
        beta: How much the hardest negatives count.
        base: Similarity that pairs are compared with.
        epsilon: How much easier than the hardest of the other kind a pair may be and still count.
    """

    name: str = "multi_similarity"
    alpha: float = 2.0
    beta: float = 50.0
    base: float = 0.5
    epsilon: float = 0.1


class Method(PairsMethod):
    """The multi-similarity loss around a timm backbone."""

    def __init__(self, cfg: Config, backbone: nn.Module) -> None:
        """Make the loss.

        Args:
            cfg: See `Config`.
            backbone: A network from `backbones.make`.
        """
        super().__init__(cfg, backbone)
        if cfg.alpha <= 0 or cfg.beta <= 0:
            raise UserError(f"method.alpha={cfg.alpha}, beta={cfg.beta}: both must be positive")
        self.criterion = MultiSimilarityLoss(alpha=cfg.alpha, beta=cfg.beta, base=cfg.base)
        self.miner = MultiSimilarityMiner(epsilon=cfg.epsilon)
