"""ArcFace: a softmax over cosines in which the angle to the own class counts as larger than it is.

Deng, Guo, Xue, Zafeiriou: ArcFace: Additive Angular Margin Loss for Deep Face Recognition, CVPR 2019 (arXiv
1801.07698). The paper's margin of 0.5 radians and scale of 64 are for faces; landmark retrieval takes less.
"""

from dataclasses import dataclass

from pytorch_metric_learning.losses import ArcFaceLoss
from torch import nn

from ssl_retrieval.errors import UserError
from ssl_retrieval.methods.labelled import ClassesConfig, ClassesMethod
from ssl_retrieval.methods.labelled import class_defaults as defaults

__all__ = ["Config", "Method", "defaults"]


@dataclass
class Config(ClassesConfig):
    """The objective's settings.

    Attributes:
        margin: By which an image must be nearer to its own class, in degrees.
        scale: What cosines are multiplied with.
    """

    name: str = "arcface"
    margin: float = 17.2
    scale: float = 30.0


class Method(ClassesMethod):
    """ArcFace around a timm backbone."""

    def __init__(self, cfg: Config, backbone: nn.Module) -> None:
        """Make the loss.

        Args:
            cfg: See `Config`.
            backbone: A network from `backbones.make`.
        """
        super().__init__(cfg, backbone)
        if not 0 <= cfg.margin < 90 or cfg.scale <= 0:
            raise UserError(
                f"method.margin={cfg.margin}, scale={cfg.scale}: degrees in [0, 90) and a positive scale"
            )
        self.criterion = ArcFaceLoss(self.num_classes, self.head.dim, margin=cfg.margin, scale=cfg.scale)
