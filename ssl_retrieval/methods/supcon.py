"""SupCon: all images of a class attract, each against all others of the batch.

Khosla et al.: Supervised Contrastive Learning, NeurIPS 2020 (arXiv 2004.11362), with one view per image;
the mean over positives stands outside the logarithm.
"""

from dataclasses import dataclass

from pytorch_metric_learning.losses import SupConLoss
from torch import nn

from ssl_retrieval.errors import UserError
from ssl_retrieval.methods.labelled import PairsConfig, PairsMethod
from ssl_retrieval.methods.labelled import pair_defaults as defaults

__all__ = ["Config", "Method", "defaults"]


@dataclass
class Config(PairsConfig):
    """The objective's settings.

    Attributes:
        temperature: Of the softmax over cosines; the paper's is 0.1.
    """

    name: str = "supcon"
    temperature: float = 0.1


class Method(PairsMethod):
    """SupCon around a timm backbone."""

    def __init__(self, cfg: Config, backbone: nn.Module) -> None:
        """Make the loss.

        Args:
            cfg: See `Config`.
            backbone: A network from `backbones.make`.
        """
        super().__init__(cfg, backbone)
        if cfg.temperature <= 0:
            raise UserError(f"method.temperature={cfg.temperature}: must be positive")
        self.criterion = SupConLoss(temperature=cfg.temperature)
