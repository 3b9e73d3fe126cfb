"""Visual words: centres of local descriptors, found by k-means, and the nearest word of a descriptor."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ssl_retrieval.console import say
from ssl_retrieval.types import IntArray, VectorArray

ITERATIONS = 15
_LEAST_SAMPLE = 100_000
_PER_WORD = 30
"""faiss itself warns below 39 descriptors per word; each one more is paid in every iteration."""

_BLOCK = 256
"""Descriptors whose distances to all words are held at once."""


def sample(counts: Sequence[int], limit: int, seed: int) -> list[IntArray]:
    """Draw rows evenly from all descriptors of all images.

    Args:
        counts: Number of descriptors of each image.
        limit: Draw at most so many in all.
        seed: Of the draw.

    Returns:
        For each image int64 [m]: the rows that were drawn, ascending.

    >>> [rows.tolist() for rows in sample([2, 0, 3], limit=4, seed=0)]
    [[1], [], [0, 1, 2]]
    """
    ends = np.cumsum(np.asarray(counts, np.int64))
    total = int(ends[-1]) if len(ends) else 0
    rows = np.arange(total)
    if total > limit:
        rows = np.sort(np.random.default_rng(seed % 2**32).choice(total, limit, replace=False))
    parts = np.split(rows, np.searchsorted(rows, ends))[:-1]
    return [part - (end - count) for part, end, count in zip(parts, ends, counts, strict=True)]


def sample_size(num_words: int) -> int:
    """Tell how many descriptors k-means should see at most: enough for its words, few enough to wait for."""
    return max(_LEAST_SAMPLE, _PER_WORD * num_words)


def learn_words(descriptors: VectorArray, num_words: int, seed: int) -> VectorArray:
    """Find words by k-means; the same descriptors and seed give the same words.

    Args:
        descriptors: float32 [N, D], N at least 1.
        num_words: How many; where there are fewer descriptors, each of them is a word, and that is said.
        seed: Of the first centres.

    Returns:
        float32 [K, D], K at most ``num_words``.
    """
    import faiss

    assert len(descriptors) > 0
    count = fewer_if_short(num_words, len(descriptors), "words")
    means = faiss.Kmeans(
        descriptors.shape[1],
        count,
        niter=ITERATIONS,
        seed=seed % 2**31,
        min_points_per_centroid=1,
        max_points_per_centroid=max(1, len(descriptors)),
    )
    means.train(np.ascontiguousarray(descriptors))
    words = means.centroids
    assert words is not None
    return words


def fewer_if_short(wanted: int, available: int, what: str) -> int:
    """Give the number of words that can be learned; say so where it is less than was asked for."""
    if available < wanted:
        say(f"vocabulary: only {available} descriptors to learn from, so {available} {what}, not {wanted}")
    return min(wanted, available)


def nearest(descriptors: Tensor, words: Tensor) -> Tensor:
    """Find the nearest word of each descriptor by Euclidean distance, the first of equally near ones.

    It multiplies with torch and not with faiss, whose OpenMP does not survive a fork: embedding runs it in
    forked processes, where torch keeps to one thread.

    Args:
        descriptors: float32 [n, D].
        words: float32 [K, D].

    Returns:
        int64 [n].

    >>> nearest(torch.tensor([[0.9], [0.1]]), torch.tensor([[0.0], [1.0]])).tolist()
    [1, 0]
    """
    half_squares = (words * words).sum(dim=1) / 2
    parts = [
        torch.addmm(half_squares, part, words.T, alpha=-1).argmin(dim=1) for part in descriptors.split(_BLOCK)
    ]
    return torch.cat(parts)
