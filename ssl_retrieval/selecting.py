"""The best items of a block of scores, with equal scores settled by gallery index."""

import torch
from torch import Tensor

from ssl_retrieval.score_keys import NOTHING, keys_of

MARGIN = 16
"""Items selected beyond k: where ties end among them, nothing else needs a look."""


def highest_keys(scores: Tensor, start: int, k: int) -> Tensor:
    """Give the keys (see `score_keys`) of the best items.

    Selecting floats is several times faster than making and selecting integer keys of all of them, but which
    of equal floats are selected is left open. Only rows whose ties at rank k go on beyond the margin are
    therefore looked through as keys.

    Args:
        scores: float32 [q, g]; minus infinity = does not count.
        start: Gallery index of the first column.
        k: How many, at least 1.

    Returns:
        int64 [q, min(k, g)], descending; NOTHING where fewer items count.

    >>> from ssl_retrieval.score_keys import indices_of
    >>> indices_of(highest_keys(torch.tensor([[0.5, 0.7, 0.5]]), start=10, k=2))
    tensor([[11, 10]])
    """
    k = min(k, scores.shape[1])
    width = min(k + MARGIN, scores.shape[1])
    values, columns = scores.topk(width, dim=1)
    best = _keys(values, columns + start).topk(k, dim=1).values
    if width < scores.shape[1]:
        is_open = (values[:, k - 1] == values[:, -1]) & (values[:, -1] > -torch.inf)
        rows = is_open.nonzero()[:, 0]
        if len(rows):
            indices = torch.arange(start, start + scores.shape[1], device=scores.device)
            best[rows] = _keys(scores[rows], indices).topk(k, dim=1).values
    return best


def _keys(scores: Tensor, indices: Tensor) -> Tensor:
    return keys_of(scores, indices).masked_fill_(scores == -torch.inf, NOTHING)
