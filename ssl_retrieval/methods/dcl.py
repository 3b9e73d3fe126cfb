"""DCL: SimCLR without the positive pair in the denominator of its softmax.

Yeh, Hong, Hsu, Liu, Chen, LeCun: Decoupled Contrastive Learning, ECCV 2022 (arXiv 2110.06848). With the
pair gone, easy positives no longer take the gradient away from the negatives, which makes small batches
enough. Everything but the loss is `simclr`'s.
"""

from dataclasses import dataclass
from functools import partial

from lightly.loss import DCLLoss
from torch import Tensor, nn

from ssl_retrieval.defaults import Facts, given
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods import simclr
from ssl_retrieval.types import Choices


@dataclass
class Config(simclr.Config):
    """The objective's settings: SimCLR's, with None as temperature = 0.1, and two more.

    Attributes:
        weighted: Weigh every positive pair, far ones more (DCLW in the paper).
        sigma: Temperature of these weights, positive; the paper's is 0.5.
    """

    name: str = "dcl"
    weighted: bool = False
    sigma: float = 0.5


def defaults(facts: Facts) -> Choices:
    """Choose as for SimCLR, but for the temperature."""
    return simclr.defaults(facts) | {"method.temperature": (0.1, "lightly's benchmarks with DCL")}


class Method(simclr.Method):
    """DCL around a timm backbone; in several processes every image repels those of all of them."""

    def __init__(self, cfg: Config, backbone: nn.Module) -> None:
        """Put a projection head on the backbone.

        Args:
            cfg: See `Config`.
            backbone: A network from `backbones.make`.
        """
        super().__init__(cfg, backbone)
        if cfg.sigma <= 0:
            raise UserError(f"method.sigma={cfg.sigma}: must be positive")
        weigh = partial(pair_weights, sigma=cfg.sigma) if cfg.weighted else None
        self.criterion = DCLLoss(given(cfg.temperature), weigh)


def pair_weights(first: Tensor, second: Tensor, sigma: float) -> Tensor:
    """Weigh positive pairs by a negative von Mises-Fisher function; the mean weight is 1.

    Args:
        first: float [B, D], of length 1.
        second: The same images' other views.
        sigma: Temperature.

    Returns:
        float [B] below 2, without gradient.
    """
    similarity = (first * second).sum(1).detach() / sigma
    return 2 - len(first) * similarity.softmax(0)
