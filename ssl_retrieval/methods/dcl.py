"""DCL: SimCLR without the positive pair in the denominator of its softmax.

Yeh, Hong, Hsu, Liu, Chen, LeCun: Decoupled Contrastive Learning, ECCV 2022 (arXiv 2110.06848). With the
pair gone, easy positives no longer take the gradient away from the negatives, which makes small batches
enough. Everything but the loss is `simclr`'s.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

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
        self.criterion = DCL(given(cfg.temperature), cfg.sigma if cfg.weighted else None)


class DCL(nn.Module):
    """The decoupled loss (equation 6); as `simclr.NTXent` it waits for no device, where lightly's does."""

    def __init__(self, temperature: float, sigma: float | None = None) -> None:
        """Take the settings.

        Args:
            temperature: What similarities are divided by, positive.
            sigma: See `pair_weights`; None = all pairs weigh the same.
        """
        super().__init__()
        self.temperature, self.sigma = temperature, sigma

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Compute the mean over all 2B views.

        Args:
            first: float [B, D], of any length.
            second: The same images' other views.
        """
        first, second = nnf.normalize(first, dim=1), nnf.normalize(second, dim=1)
        everything = torch.cat([first, second])
        same_image = torch.eye(len(first), dtype=torch.bool, device=first.device).repeat(2, 2)
        logits = everything @ everything.T / self.temperature
        repelled = logits.masked_fill(same_image, -torch.inf).logsumexp(dim=1)
        attracted = (first * second).sum(dim=1) / self.temperature
        if self.sigma is not None:
            attracted = attracted * pair_weights(first, second, self.sigma)
        return repelled.mean() - attracted.mean()


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
