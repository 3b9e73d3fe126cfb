"""The layers of a projector as places to take an embedding from.

A projector is what training puts on a network's pooled vector and throws away afterwards. The layers before
its end may search better than both ends (Chen et al., Big Self-Supervised Models are Strong Semi-Supervised
Learners, NeurIPS 2020, arXiv 2006.10029, keep the first one; Bordes et al., Guillotine Regularization, TMLR
2023, arXiv 2206.13378).
"""

import re

import torch
from torch import Tensor, nn

from ssl_retrieval.errors import UserError

FORM = "projector.1"


class ProjectorPoint(nn.Module):
    """Pooled vector -> what the projector has made of it after some of its linear layers.

    What stands between two linear layers (normalisation, activation) belongs to the first of them.

    Attributes:
        projection: The whole projector.
        layer: After how many of its linear layers the vector is taken.
    """

    def __init__(self, projector: nn.Module, layer: int, dim: int) -> None:
        """Find where the next linear layer is.

        Args:
            projector: float [B, dim] -> [B, D].
            layer: From 1 to `num_layers`.
            dim: Dimension of the pooled vector.

        Raises:
            UserError: There is no such layer.
        """
        super().__init__()
        order = linear_layers(projector, dim)
        if not 1 <= layer <= len(order):
            raise UserError(
                f"model.point=projector.{layer}: this projector has the points projector.1 to "
                f"projector.{len(order)}"
            )
        self.projection, self.layer = projector, layer
        self._next = order[layer] if layer < len(order) else None

    def project(self, pooled: Tensor) -> Tensor:
        """Give the vector: float [B, dim] -> [B, D]."""
        if self._next is None:
            found: Tensor = self.projection(pooled)
            return found
        seen: list[Tensor] = []
        following = self.projection.get_submodule(self._next)
        handle = following.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            self.projection(pooled)
        finally:
            handle.remove()
        return seen[0]


def layer_of(point: str) -> int:
    """Read ``projector.2``.

    Raises:
        UserError: It is written otherwise.

    >>> layer_of("projector.2")
    2
    """
    found = re.fullmatch(r"projector\.([1-9]\d?)", point)
    if found is None:
        raise UserError(f"model.point={point!r}: it is written {FORM}, as the layers of a projector count")
    return int(found[1])


@torch.no_grad()
def linear_layers(projector: nn.Module, dim: int) -> list[str]:
    """Name a projector's linear layers, in the order in which they are used.

    Args:
        projector: float [B, dim] -> [B, D]; it is left in eval mode.
        dim: Dimension of what it takes.
    """
    order: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda _, __, name=name: order.append(name))
        for name, module in projector.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        projector.eval()(torch.zeros(2, dim, device=next(projector.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return order


def num_layers(projector: nn.Module, dim: int) -> int:
    """Count the points of a projector: float [B, dim] -> …."""
    return len(linear_layers(projector, dim))
