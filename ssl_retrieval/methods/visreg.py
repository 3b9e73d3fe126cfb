"""VISReg: LeJEPA with scale and shape of the Gaussian asked for separately.

Wu, Balestriero, Levine: VISReg: Variance-Invariance-Sketching Regularization for JEPA training, 2026
(arXiv 2606.02572). Outputs are held at mean 0 and standard deviation 1, and once they are normalised,
their sorted projections onto random directions at the quantiles of the normal distribution. Unlike
LeJEPA's, this regularizer keeps its gradient when all embeddings are the same.
"""

from dataclasses import dataclass

import torch
from lightly.loss.visreg_loss import visreg_center_loss, visreg_scale_loss
from torch import Tensor, nn

from ssl_retrieval import distributed
from ssl_retrieval.defaults import Facts, given
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods import lejepa
from ssl_retrieval.types import Choices


@dataclass
class Config(lejepa.Config):
    """The objective's settings: LeJEPA's, and the parts of the regularizer.

    Attributes:
        scale: Weight of the squared distance of standard deviations from 1.
        shape: Weight of the distance from the normal distribution; the paper advises more for long-tailed
            data.
        center: Weight of the squared mean.
    """

    name: str = "visreg"
    num_slices: int | None = 4096
    scale: float = 1.0
    shape: float = 1.0
    center: float = 1.0


def defaults(facts: Facts) -> Choices:
    """Choose the weight of the regularizer, the projector and the optimizer by what is trained."""
    chosen = lejepa.defaults(facts) | {
        "method.weight": (round(facts.between(0.6, 0.9), 2), "the paper's 0.6 for few images, 0.9 for many"),
        "method.output_dim": (128, "the authors' for few images, up to 200,000")
        if facts.num_images <= 200_000
        else (256, "the paper's for ImageNet"),
    }
    if facts.pretrained:
        return chosen
    return chosen | {
        "optimizer.lr": (9e-4, "the paper's for 100 epochs on ImageNet"),
        "optimizer.clip": (1.0, "the authors' code"),
    }


class Method(lejepa.Method):
    """VISReg around a timm backbone; each process takes its share of the directions for all batches."""

    advice = "a larger method.scale or a larger method.weight"
    activation = nn.GELU

    def __init__(self, cfg: Config, backbone: nn.Module) -> None:
        """Put a projector on the backbone.

        Args:
            cfg: See `Config`.
            backbone: A network from `backbones.make`.
        """
        super().__init__(cfg, backbone)
        for name in ("scale", "shape", "center"):
            if getattr(cfg, name) < 0:
                raise UserError(f"method.{name}={getattr(cfg, name)}: must not be negative")
        if given(cfg.num_slices) % distributed.world_size():
            raise UserError(
                f"method.num_slices={cfg.num_slices}: must be a multiple of the "
                f"{distributed.world_size()} processes, each of which takes as many"
            )
        self.parts = {"scale": cfg.scale, "shape": cfg.shape, "center": cfg.center}

    def regularize(self, projected: Tensor, directions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Measure scale, shape and centre of each view's projections.

        Args:
            projected: float32 [V, B, D], every view's projections.
            directions: float32 [D, num_slices], of length 1, the same in all processes.

        Returns:
            Scalar, and what to log.
        """
        everywhere = distributed.gather(projected.transpose(0, 1)).transpose(0, 1)
        share = directions[:, distributed.rank() :: distributed.world_size()]
        found = {
            "scale": visreg_scale_loss(everywhere),
            "shape": shape_loss(everywhere, share),
            "center": visreg_center_loss(everywhere),
        }
        loss = torch.stack([self.parts[name] * part for name, part in found.items()]).sum()
        return loss, {name: part.detach() for name, part in found.items()}


def shape_loss(projected: Tensor, directions: Tensor) -> Tensor:
    """Compute the squared Wasserstein distance from the normal distribution along each direction.

    Args:
        projected: float32 [V, N, D]; the views are samples of their own.
        directions: float32 [D, num], of length 1.

    Returns:
        Scalar: the mean over directions and views.
    """
    count = projected.shape[1]
    deviation, mean = torch.std_mean(projected, dim=1, correction=0, keepdim=True)
    # Scale is another term's: no gradient through the deviation.
    normal = (projected - mean) / (deviation.detach() + 1e-4)
    place = torch.arange(1, count + 1, device=projected.device) / (count + 1)
    quantile = torch.special.ndtri(place).unsqueeze(-1)
    return ((normal @ directions).sort(dim=1).values - quantile).square().mean()
