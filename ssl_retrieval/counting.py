"""How many candidates come before each relevant item, without sorting the candidates.

Scores are thrown into some thousands of bins of equal width. Whatever lies in a higher bin comes before,
whatever lies in a lower one after; only the few that share a bin with a relevant item are looked at one by
one. A value's bin never falls when the value rises, in float32 arithmetic too, so the counts are exact.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_retrieval.score_keys import LOW_BITS, NOTHING, keys_of, scores_of, sort_rows
from ssl_retrieval.types import IntArray, VectorArray

NUM_BINS = 2**14
MIN_BINNED_WIDTH = 2**13
"""Narrower blocks are sorted: bins would cost more than they save."""
MAX_SORTED_WIDTH = 2**15


def count_before(scores: Tensor, start: int, relevant_keys: Tensor) -> Tensor:
    """Count the candidates of a block that rank before each relevant item.

    Args:
        scores: float32 [q, g]; -inf where an item is no candidate (it is relevant itself, or ignored).
        start: The gallery index of the first column.
        relevant_keys: int64 [q, R], `NOTHING` where there are fewer.

    Returns:
        int64 [q, 3, R]: equal scores ordered by gallery index, won, and lost by the relevant item. Without
        meaning where there is no relevant item.
    """
    if scores.device.type == "cpu" and scores.shape[1] >= MIN_BINNED_WIDTH:
        return _binned(scores, start, relevant_keys)
    thresholds = torch.cat(_thresholds(relevant_keys), dim=1)
    before = torch.zeros_like(thresholds)
    for piece_start in range(0, scores.shape[1], MAX_SORTED_WIDTH):
        piece = scores[:, piece_start : piece_start + MAX_SORTED_WIDTH]
        indices = torch.arange(piece.shape[1], device=scores.device) + (start + piece_start)
        keys = sort_rows(keys_of(piece, indices))
        before += keys.shape[1] - torch.searchsorted(keys, thresholds, right=True)
    return before.reshape(len(scores), 3, -1)


def _thresholds(keys: Tensor) -> list[Tensor]:
    # No item but a relevant one can have these keys, or lie between them and the true key without being
    # tied, so the same count answers for indexed, won and lost ties.
    return [keys, keys | LOW_BITS, keys & ~LOW_BITS]


def _binned(scores: Tensor, start: int, relevant_keys: Tensor) -> Tensor:
    before = np.zeros((len(scores), 3, relevant_keys.shape[1]), np.int64)

    def count(row: int) -> None:
        keys = relevant_keys[row]
        keys = keys[keys != NOTHING]
        if len(keys):
            before[row, :, : len(keys)] = _count_in_row(scores[row], start, keys)

    assert ((relevant_keys[:, 1:] == NOTHING) | (relevant_keys[:, :-1] != NOTHING)).all()
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(count, range(len(scores))))
    return torch.from_numpy(before)


def _count_in_row(row: Tensor, start: int, relevant_keys: Tensor) -> IntArray:
    """Count for one query: float32 [g] and int64 [R] -> int64 [3, R]."""
    values, relevant = row.numpy(), scores_of(relevant_keys).numpy()
    low, high = relevant.min(), max(relevant.max(), values.max())
    bins, relevant_bins = _bins(values, low, high), _bins(relevant, low, high)
    counts = torch.bincount(torch.from_numpy(bins), minlength=NUM_BINS).numpy()
    shared = np.zeros(NUM_BINS, bool)
    shared[relevant_bins] = True
    counts[shared] = 0
    above = counts.sum() - counts.cumsum()
    close = np.flatnonzero(shared.take(bins))
    keys = keys_of(row[close], torch.from_numpy(close + start)).numpy()
    keys.sort()
    exact = [len(keys) - np.searchsorted(keys, t.numpy(), side="right") for t in _thresholds(relevant_keys)]
    return np.stack(exact) + above[relevant_bins]


def _bins(values: VectorArray, low: np.float32, high: np.float32) -> NDArray[np.int32]:
    """Put what lies below ``low`` into bin 0, and ``low`` to ``high`` into the others."""
    with np.errstate(over="ignore", divide="ignore"):
        # Bounded, for infinity times 0 is no number: a blanked score is minus infinity.
        scale = np.clip(np.float32(NUM_BINS - 2) / (high - low), np.float32(1e-38), np.float32(1e30))
        position = values - low
        position *= scale
    position += np.float32(1)
    return np.clip(position, 0, NUM_BINS - 1, out=position).astype(np.int32)
