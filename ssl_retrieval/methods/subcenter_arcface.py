"""Sub-centre ArcFace: ArcFace with several vectors per class, of which the nearest counts.

Deng, Guo, Liu, Gong, Zafeiriou: Sub-center ArcFace: Boosting Face Recognition by Large-scale Noisy Web Faces,
ECCV 2020. For classes that look several ways, and for labels with mistakes.
"""

from dataclasses import dataclass

from pytorch_metric_learning.losses import SubCenterArcFaceLoss
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
        sub_centers: Vectors per class.
    """

    name: str = "subcenter_arcface"
    margin: float = 17.2
    scale: float = 30.0
    sub_centers: int = 3


class Method(ClassesMethod):
    """Sub-centre ArcFace around a timm backbone."""

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
        if cfg.sub_centers < 1:
            raise UserError(f"method.sub_centers={cfg.sub_centers}: must be at least 1")
        self.criterion = SubCenterArcFaceLoss(
            num_classes=self.num_classes,
            embedding_size=self.head.dim,
            margin=cfg.margin,
            scale=cfg.scale,
            sub_centers=cfg.sub_centers,
        )
