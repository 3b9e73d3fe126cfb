"""What altered photos find among the photos: their originals, and their originals' neighbours. No labels."""

import numpy as np

from ssl_retrieval import metrics
from ssl_retrieval.adaptation.probe import IDENTITY, Probe
from ssl_retrieval.search import relevant_ranks, top_k
from ssl_retrieval.types import FloatArray, IntArray, VectorArray

K = 10
"""Neighbours that are compared."""


def nearest_others(queries: VectorArray, photos: VectorArray, k: int = K) -> IntArray:
    """Find the nearest photos of each photo's view, never the photo itself.

    Args:
        queries: float32 [N, D], views of the photos, row by row.
        photos: float32 [N, D], N at least 2.
        k: How many; at most N - 1.

    Returns:
        int64 [N, k].
    """
    itself = list(np.arange(len(photos))[:, None])
    return top_k(queries, photos, min(k, len(photos) - 1), itself).indices


def shared(first: IntArray, second: IntArray) -> FloatArray:
    """Give the share of neighbours that two lists have in common, row by row: float64 [N] in [0, 1].

    >>> shared(np.array([[1, 2]]), np.array([[2, 3]])).tolist()
    [0.5]
    """
    assert first.shape == second.shape
    return (first[:, :, None] == second[:, None, :]).any(axis=2).mean(axis=1)


def jaccard(overlap: FloatArray) -> FloatArray:
    """Turn the share that two lists of equal length have in common into intersection over union.

    >>> jaccard(np.array([0.5, 1.0])).round(3).tolist()
    [0.333, 1.0]
    """
    return overlap / (2 - overlap)


def found_again(probe: Probe) -> dict[str, FloatArray]:
    """Search each altered photo's original among all photos: copy detection as the judge of features.

    Douze et al.: The 2021 Image Similarity Dataset and Challenge (arXiv 2106.09672) is the task; here with
    one right answer, so that the average precision is 1 / its rank.

    Returns:
        Transformation -> float64 [N], the average precision of each photo.
    """
    itself = list(np.arange(len(probe))[:, None])
    return {
        name: metrics.compute("mAP", relevant_ranks(views, probe.photos, itself))
        for name, views in probe.vectors.items()
        if name != IDENTITY
    }


def agreement(probe: Probe, k: int = K) -> dict[str, FloatArray]:
    """See whether an altered photo has the neighbours of its original, the original left out.

    Copy detection asks whether a photo is told from all others. This asks whether the *others* come in the
    same order, as a search for other photos needs; features that only tell photos apart fail it. The idea
    is that of judging features by the neighbours they share between views (Dwibedi et al., NNCLR, ICCV
    2021, arXiv 2104.14548, train on them).

    Args:
        probe: At least 2 photos.
        k: Neighbours.

    Returns:
        Transformation -> float64 [N], the share of the k neighbours that both have.
    """
    of_photos = nearest_others(probe.photos, probe.photos, k)
    return {
        name: shared(of_photos, nearest_others(views, probe.photos, k))
        for name, views in probe.vectors.items()
        if name != IDENTITY
    }
