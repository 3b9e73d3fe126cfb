"""Softmax: the network learns to name the class; its features are what is searched with.

The baseline of classification-based fine-tuning (Babenko et al., Neural Codes for Image Retrieval, ECCV
2014, arXiv 1404.1777); Zhai and Wu (BMVC 2019, arXiv 1811.12649) show how strong it is.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as nnf

from ssl_retrieval.errors import UserError
from ssl_retrieval.methods.labelled import ClassesConfig, ClassesMethod
from ssl_retrieval.methods.labelled import class_defaults as defaults

__all__ = ["Config", "Method", "defaults"]


@dataclass
class Config(ClassesConfig):
    """The objective's settings.

    Attributes:
        proxy_lr: See `ClassesConfig`; a classifier begins with small values.
        label_smoothing: Share of the target that is spread over all classes.
    """

    name: str = "softmax"
    proxy_lr: float = 10.0
    label_smoothing: float = 0.0


class Method(ClassesMethod):
    """Softmax cross-entropy over a linear classifier, of vectors as long as the network makes them."""

    unit_length = False

    def __init__(self, cfg: Config, backbone: nn.Module) -> None:
        """Put a classifier behind the embedding.

        Args:
            cfg: See `Config`.
            backbone: A network from `backbones.make`.
        """
        super().__init__(cfg, backbone)
        if not 0 <= cfg.label_smoothing < 1:
            raise UserError(f"method.label_smoothing={cfg.label_smoothing}: a share in [0, 1) is needed")
        self.smoothing = cfg.label_smoothing
        self.criterion = nn.Linear(self.head.dim, self.num_classes)

    def loss(self, vectors: Tensor, labels: Tensor, progress: float) -> Tensor:
        """Compute the cross-entropy: float [B, D], int64 [B] -> a scalar."""
        return nnf.cross_entropy(self.criterion(vectors), labels, label_smoothing=self.smoothing)
