"""Hard negatives: what looks like a query and does not match it (Radenović, Tolias, Chum, arXiv 1711.02512).

As in that paper's code (cnnimageretrieval) the negatives of a query are the nearest images of clusters other
than its own, one per cluster: five views of one thing would teach little more than one.
"""

import numpy as np

from ssl_retrieval.errors import UserError
from ssl_retrieval.search import top_k
from ssl_retrieval.types import IntArray, VectorArray

_ROWS = 4096
"""Queries at a time: bounds the memory where a cluster is large and many images must be passed over."""


def hard_negatives(
    vectors: VectorArray,
    queries: IntArray,
    clusters: IntArray,
    count: int,
    *,
    pool: IntArray | None = None,
    spared: IntArray | None = None,
) -> IntArray:
    """Find the nearest images of other clusters than the query's, each of another cluster, nearest first.

    Args:
        vectors: float32 [N, D], rows of length 1: all images.
        queries: int64 [Q] image numbers.
        clusters: int64 [N]: each image's cluster.
        count: Negatives per query.
        pool: int64 [P], ascending: the images that may be negatives; None = all.
        spared: int64 [Q, S]: images that may not be this query's negatives, each once; -1 = none.

    Returns:
        int64 [Q, count] image numbers.

    Raises:
        UserError: A query has fewer clusters to take negatives from.

    >>> vectors = np.array([[1, 0], [0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0, 1]], np.float32)
    >>> hard_negatives(vectors, np.array([0]), np.array([5, 5, 6, 6, 7]), count=2)
    array([[2, 4]])
    """
    pool = np.arange(len(vectors)) if pool is None else pool
    gallery, their_clusters = vectors[pool], clusters[pool]
    found = np.empty((len(queries), count), np.int64)
    for start in range(0, len(queries), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(queries)))
        width = min(len(pool), 8 * count + _largest_share(their_clusters))
        while len(rows):
            ignored = None if spared is None else _places(spared[rows], pool)
            near = top_k(vectors[queries[rows]], gallery, width, ignored).indices
            chosen = [
                _of_other_clusters(listed[listed >= 0], their_clusters, own, count)
                for listed, own in zip(near, clusters[queries[rows]], strict=True)
            ]
            is_full = np.array([len(places) == count for places in chosen])
            for row, places in zip(rows, chosen, strict=True):
                if len(places) == count:
                    found[row] = pool[places]
            rows = rows[~is_full]
            if len(rows) and width == len(pool):
                raise UserError(
                    f"method.negatives={count}: an image has only {min(map(len, chosen))} clusters to take "
                    f"negatives from, among {len(pool)} images: lower method.negatives, method.skip or "
                    "method.k, or give more images"
                )
            width = min(len(pool), 4 * width)
    return found


def _largest_share(clusters: IntArray) -> int:
    """Guess how many images of the own cluster stand before others: the mean cluster of an image."""
    sizes = np.bincount(np.unique(clusters, return_inverse=True)[1])
    return int((sizes**2).sum() / max(1, sizes.sum()))


def _of_other_clusters(places: IntArray, clusters: IntArray, own: int, count: int) -> IntArray:
    """Take the first place of each cluster but ``own``, the first ``count`` of them."""
    _, first = np.unique(clusters[places], return_index=True)
    kept = places[np.sort(first)]
    return kept[clusters[kept] != own][:count]


def _places(images: IntArray, pool: IntArray) -> list[IntArray]:
    """Say where in the pool images stand: int64 [Q, S] -> Q arrays, without those that are not in it."""
    places = np.searchsorted(pool, images)
    is_there = (images >= 0) & (pool[np.minimum(places, len(pool) - 1)] == images)
    return [row[there] for row, there in zip(places, is_there, strict=True)]
