"""NT-Xent on labels: each pair of a class is to be found among all images of other classes.

Sohn: Improved Deep Metric Learning with Multi-class N-pair Loss Objective, NeurIPS 2016; the temperature is
SimCLR's (Chen et al., ICML 2020, arXiv 2002.05709), which takes views for labels.
"""

from dataclasses import dataclass

from pytorch_metric_learning.losses import NTXentLoss
from torch import nn

from ssl_retrieval.errors import UserError
from ssl_retrieval.methods.labelled import PairsConfig, PairsMethod
from ssl_retrieval.methods.labelled import pair_defaults as defaults

__all__ = ["Config", "Method", "defaults"]


@dataclass
class Config(PairsConfig):
    """The objective's settings.

    Attributes:
        temperature: Of the softmax over cosines.
    """

    name: str = "nt_xent"
    temperature: float = 0.1


class Method(PairsMethod):
    """NT-Xent on labels around a timm backbone."""

    def __init__(self, cfg: Config, backbone: nn.Module) -> None:
        """Make the loss.

        Args:
            cfg: See `Config`.
            backbone: A network from `backbones.make`.
        """
        super().__init__(cfg, backbone)
        if cfg.temperature <= 0:
            raise UserError(f"method.temperature={cfg.temperature}: must be positive")
        self.criterion = NTXentLoss(temperature=cfg.temperature)
