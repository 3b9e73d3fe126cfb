"""Pooling of convolutional maps: pure functions [B, C, H, W] -> [B, C]."""

from collections.abc import Callable

from torch import Tensor

from ssl_retrieval.errors import UserError


def avg(maps: Tensor) -> Tensor:
    """Average over positions.

    Args:
        maps: float [B, C, H, W].

    Returns:
        float [B, C].
    """
    return maps.mean(dim=(2, 3))


def gem(maps: Tensor, p: float = 3.0, eps: float = 1e-6) -> Tensor:
    """Generalised mean (Radenović et al., 2018): ``mean(max(x, eps)^p)^(1/p)`` over positions.

    ``p = 1`` is the average (of activations cut at ``eps``), a growing ``p`` comes near the maximum.

    Args:
        maps: float [B, C, H, W].
        p: Exponent, positive.
        eps: Floor of the activations.

    Returns:
        float [B, C], at least ``eps``.

    >>> import torch
    >>> gem(torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 2, 2)).item()  # (100 / 4) ** (1 / 3)
    2.92...
    """
    return maps.clamp(min=eps).pow(p).mean(dim=(2, 3)).pow(1.0 / p)


_POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {"avg": avg, "gem": gem}


def get(name: str) -> Callable[[Tensor], Tensor]:
    """Find a pooling by name.

    Raises:
        UserError: No such pooling; the text lists the known ones.
    """
    if name not in _POOLINGS:
        raise UserError(f"model.pool={name!r}: use one of model, {', '.join(_POOLINGS)}")
    return _POOLINGS[name]
