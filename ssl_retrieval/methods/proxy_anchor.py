"""Proxy-Anchor: each class's learned vector draws its images, the hardest most, and repels others.

Kim, Kim, Cho, Kwak: Proxy Anchor Loss for Deep Metric Learning, CVPR 2020 (arXiv 2003.13911).
"""

from dataclasses import dataclass

from pytorch_metric_learning.losses import ProxyAnchorLoss
from torch import nn

from ssl_retrieval.errors import UserError
from ssl_retrieval.methods.labelled import ClassesConfig, ClassesMethod
from ssl_retrieval.methods.labelled import class_defaults as defaults

__all__ = ["Config", "Method", "defaults"]


@dataclass
class Config(ClassesConfig):
    """The objective's settings.

    Attributes:
        margin: Cosine that images of the class are to exceed, and others to stay below the negative of.
        alpha: How much the hardest count.
    """

    name: str = "proxy_anchor"
    margin: float = 0.1
    alpha: float = 32.0


class Method(ClassesMethod):
    """Proxy-Anchor around a timm backbone; the paper gives proxies 100 times the learning rate."""

    def __init__(self, cfg: Config, backbone: nn.Module) -> None:
        """Make the loss.

        Args:
            cfg: See `Config`.
            backbone: A network from `backbones.make`.
        """
        super().__init__(cfg, backbone)
        if cfg.margin < 0 or cfg.alpha <= 0:
            raise UserError(f"method.margin={cfg.margin}, alpha={cfg.alpha}: 0 or more, and positive")
        self.criterion = ProxyAnchorLoss(self.num_classes, self.head.dim, margin=cfg.margin, alpha=cfg.alpha)
