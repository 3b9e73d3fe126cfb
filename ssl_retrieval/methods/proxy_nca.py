"""Proxy-NCA: each image is drawn to one learned vector of its class and away from those of the others.

Movshovitz-Attias et al.: No Fuss Distance Metric Learning using Proxies, ICCV 2017 (arXiv 1703.07464). As in
pytorch-metric-learning the own class stands in the denominator too.
"""

from dataclasses import dataclass

from pytorch_metric_learning.losses import ProxyNCALoss
from torch import nn

from ssl_retrieval.errors import UserError
from ssl_retrieval.methods.labelled import ClassesConfig, ClassesMethod
from ssl_retrieval.methods.labelled import class_defaults as defaults

__all__ = ["Config", "Method", "defaults"]


@dataclass
class Config(ClassesConfig):
    """The objective's settings.

    Attributes:
        scale: What squared distances are multiplied with; the paper's is 1, later ones' (ProxyNCA++) 9.
    """

    name: str = "proxy_nca"
    scale: float = 9.0


class Method(ClassesMethod):
    """Proxy-NCA around a timm backbone."""

    def __init__(self, cfg: Config, backbone: nn.Module) -> None:
        """Make the loss.

        Args:
            cfg: See `Config`.
            backbone: A network from `backbones.make`.
        """
        super().__init__(cfg, backbone)
        if cfg.scale <= 0:
            raise UserError(f"method.scale={cfg.scale}: must be positive")
        self.criterion = ProxyNCALoss(self.num_classes, self.head.dim, softmax_scale=cfg.scale)
