"""Normalised softmax: a softmax over the cosines of a vector with one learned vector per class.

Zhai, Wu: Classification is a Strong Baseline for Deep Metric Learning, BMVC 2019 (arXiv 1811.12649).
"""

from dataclasses import dataclass

from pytorch_metric_learning.losses import NormalizedSoftmaxLoss
from torch import nn

from ssl_retrieval.errors import UserError
from ssl_retrieval.methods.labelled import ClassesConfig, ClassesMethod
from ssl_retrieval.methods.labelled import class_defaults as defaults

__all__ = ["Config", "Method", "defaults"]


@dataclass
class Config(ClassesConfig):
    """The objective's settings.

    Attributes:
        temperature: What cosines are divided by; the paper's is 0.05.
    """

    name: str = "normalised_softmax"
    temperature: float = 0.05


class Method(ClassesMethod):
    """Normalised softmax around a timm backbone."""

    def __init__(self, cfg: Config, backbone: nn.Module) -> None:
        """Make the loss.

        Args:
            cfg: See `Config`.
            backbone: A network from `backbones.make`.
        """
        super().__init__(cfg, backbone)
        if cfg.temperature <= 0:
            raise UserError(f"method.temperature={cfg.temperature}: must be positive")
        self.criterion = NormalizedSoftmaxLoss(self.num_classes, self.head.dim, temperature=cfg.temperature)
