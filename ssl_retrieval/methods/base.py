"""What every method gives to the training loop."""

from dataclasses import dataclass, field

from torch import Tensor, nn

from ssl_retrieval.augment import View


@dataclass(frozen=True)
class StepOutput:
    """The result of one step.

    Attributes:
        loss: float32 scalar, with gradient.
        logs: Name -> scalar tensor without gradient.
    """

    loss: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)


class BaseMethod(nn.Module):
    """A training objective around a backbone; logs nothing, saves nothing, knows no loader.

    Attributes:
        encoder: The network that is kept after training.
    """

    encoder: nn.Module

    def views(self, image_size: int) -> list[View]:
        """Say which views of a batch the objective needs."""
        raise NotImplementedError

    def step(self, views: list[Tensor], progress: float) -> StepOutput:
        """Compute the loss.

        Args:
            views: float [B, 3, S, S], as ordered by `views`.
            progress: Share of the training done, in [0, 1]; drives every schedule.
        """
        raise NotImplementedError

    def after_step(self, progress: float) -> None:
        """Do what comes after the optimizer's step (EMA teachers); nothing by default."""
