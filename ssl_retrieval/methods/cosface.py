"""CosFace: a softmax over cosines in which the cosine with the own class counts as smaller than it is.

Wang et al.: CosFace: Large Margin Cosine Loss for Deep Face Recognition, CVPR 2018 (arXiv 1801.09414).
"""

from dataclasses import dataclass

from pytorch_metric_learning.losses import CosFaceLoss
from torch import nn

from ssl_retrieval.errors import UserError
from ssl_retrieval.methods.labelled import ClassesConfig, ClassesMethod
from ssl_retrieval.methods.labelled import class_defaults as defaults

__all__ = ["Config", "Method", "defaults"]


@dataclass
class Config(ClassesConfig):
    """The objective's settings.

    Attributes:
        margin: By which an image must be nearer to its own class, as a cosine; the paper's is 0.35.
        scale: What cosines are multiplied with; the paper's is 64.
    """

    name: str = "cosface"
    margin: float = 0.2
    scale: float = 30.0


class Method(ClassesMethod):
    """CosFace around a timm backbone."""

    def __init__(self, cfg: Config, backbone: nn.Module) -> None:
        """Make the loss.

        Args:
            cfg: See `Config`.
            backbone: A network from `backbones.make`.
        """
        super().__init__(cfg, backbone)
        if not 0 <= cfg.margin < 1 or cfg.scale <= 0:
            raise UserError(
                f"method.margin={cfg.margin}, scale={cfg.scale}: a cosine in [0, 1) and a positive scale"
            )
        self.criterion = CosFaceLoss(self.num_classes, self.head.dim, margin=cfg.margin, scale=cfg.scale)
