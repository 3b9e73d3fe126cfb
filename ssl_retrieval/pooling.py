"""Pooling of convolutional maps: pure functions [B, C, H, W] -> [B, D]."""

from collections.abc import Callable

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from ssl_retrieval import regions
from ssl_retrieval.errors import UserError

GEM_P = 3.0
"""Exponent of `gem` where nothing else is said."""

MAX_GEM_P = 10.0
"""Powers of activations must stay within float32."""


def avg(maps: Tensor) -> Tensor:
    """Average over positions.

    Args:
        maps: float [B, C, H, W].

    Returns:
        float [B, C].
    """
    return maps.mean(dim=(2, 3))


def mac(maps: Tensor) -> Tensor:
    """Maximum over positions: the maximum activations of convolutions (Azizpour et al., 2015).

    Args:
        maps: float [B, C, H, W].

    Returns:
        float [B, C].
    """
    return maps.amax(dim=(2, 3))


def spoc(maps: Tensor) -> Tensor:
    """Sum over positions under a Gaussian around the centre (SPoC: Babenko & Lempitsky, ICCV 2015).

    The standard deviation is a third of the distance from the centre to the nearest border. Without the
    Gaussian the sum would be `avg`, up to its length.

    Args:
        maps: float [B, C, H, W].

    Returns:
        float [B, C].

    >>> spoc(torch.eye(3).reshape(1, 1, 3, 3)).item()  # 1 in the centre, e^-4 in two of the corners
    1.0366...
    """
    height, width = maps.shape[2:]
    sigma = min(height, width) / 6
    down, right = (
        torch.arange(size, device=maps.device, dtype=maps.dtype) - (size - 1) / 2 for size in (height, width)
    )
    weights = torch.exp(-(down[:, None] ** 2 + right**2) / (2 * sigma**2))
    return (maps * weights).sum(dim=(2, 3))


def crow(maps: Tensor, eps: float = 1e-6) -> Tensor:
    """Sum over positions, weighted by position and by channel (CroW: Kalantidis et al., ECCVW 2016).

    A position counts by the root of its share in the activations of all channels (the paper's a = 2, b = 2),
    a channel by ``log (Σ_h Q_h / Q)``, where ``Q`` is the share of positions where it is active: what is
    active everywhere tells little. Activations below 0 count as 0.

    Args:
        maps: float [B, C, H, W].
        eps: Added to each ``Q``.

    Returns:
        float [B, C], at least 0.
    """
    maps = maps.clamp(min=0)
    of_position = maps.sum(dim=1, keepdim=True)
    of_position = functional.normalize(of_position.flatten(1), dim=1).view_as(of_position).sqrt()
    active = (maps > 0).to(maps.dtype).mean(dim=(2, 3)) + eps
    of_channel = (active.sum(dim=1, keepdim=True) / active).log()
    return (maps * of_position).sum(dim=(2, 3)) * of_channel


def gem(maps: Tensor, p: float | Tensor = GEM_P, eps: float = 1e-6) -> Tensor:
    """Generalised mean (Radenović et al., 2018): ``mean(max(x, eps)^p)^(1/p)`` over positions.

    ``p = 1`` is the average (of activations cut at ``eps``), a growing ``p`` comes near the maximum.

    Args:
        maps: float [B, C, H, W].
        p: Exponent, positive; float [1] where it is trained.
        eps: Floor of the activations.

    Returns:
        float [B, C], at least ``eps``.

    >>> import torch
    >>> gem(torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 2, 2)).item()  # (100 / 4) ** (1 / 3)
    2.92...
    """
    return maps.clamp(min=eps).pow(p).mean(dim=(2, 3)).pow(1.0 / p)


def scda(maps: Tensor) -> Tensor:
    """Average and maximum over the main object (SCDA: Wei et al., IEEE TIP 2017).

    The object is the largest connected group of positions whose activation, summed over the channels, is
    above the map's mean; neighbours touch at a side or a corner. Average and maximum are both scaled to
    length 1.

    Args:
        maps: float [B, C, H, W].

    Returns:
        float [B, 2 C].
    """
    chosen = object_mask(maps)[:, None]
    average = (maps * chosen).sum(dim=(2, 3)) / chosen.sum(dim=(2, 3))
    largest = maps.masked_fill(~chosen, -torch.inf).amax(dim=(2, 3))
    return torch.cat([functional.normalize(part, dim=1) for part in (average, largest)], dim=1)


def object_mask(maps: Tensor) -> Tensor:
    """Tell where `scda` sees the main object.

    Of several groups of the same size the first in reading order is taken; where no position is above the
    mean, as in a uniform map, all are.

    Args:
        maps: float [B, C, H, W].

    Returns:
        bool [B, H, W], true somewhere in each map.
    """
    # In double precision: a position near the mean must not change sides with the size of the batch.
    of_position = maps.sum(dim=1, dtype=torch.float64).cpu().numpy()
    above = of_position > of_position.mean(axis=(1, 2), keepdims=True)
    above |= ~above.any(axis=(1, 2), keepdims=True)
    within_a_map = np.zeros((3, 3, 3), bool)
    within_a_map[1] = True
    groups, _ = ndimage.label(above, within_a_map)
    sizes = np.bincount(groups.ravel())
    sizes[0] = 0
    of_position = sizes[groups].reshape(len(maps), -1)
    main = groups.reshape(len(maps), -1)[np.arange(len(maps)), of_position.argmax(axis=1)]
    return torch.from_numpy(groups == main[:, None, None]).to(maps.device)


POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "avg": avg,
    "mac": mac,
    "spoc": spoc,
    "crow": crow,
    "rmac": regions.rmac,
    "gem": gem,
    "scda": scda,
    "mean": avg,
}
"""Name in a config -> pooling of a map. ``mean`` is what ``avg`` is called where positions are patches."""

OF_GRIDS = ("spoc", "rmac", "scda")
"""Those that must know which positions are neighbours."""

OF_NETWORKS = ("model", "fc", "cls")
"""What a config may also name, and only the network itself can give (see `extractors.base`)."""


def parse(pool: str) -> tuple[str, ...]:
    """Take apart what a config asks for.

    Args:
        pool: A name, or several joined by ``+``.

    Returns:
        The names.

    Raises:
        UserError: No such pooling; the text lists the known ones.

    >>> parse("cls + gem")
    ('cls', 'gem')
    """
    parts = tuple(part.strip() for part in pool.split("+"))
    known = ["model", *POOLINGS, *(name for name in OF_NETWORKS if name != "model")]
    for part in parts:
        if part not in known:
            raise UserError(f"model.pool={pool!r}: use one of {', '.join(known)}, or several joined by +")
    return parts
