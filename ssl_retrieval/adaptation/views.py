"""Label-free values of each photo, so that two networks can be compared photo by photo.

What its altered copies find (itself, and its neighbours), and how clearly it belongs to a group.
"""

import itertools

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances, silhouette_samples

from ssl_retrieval import metrics
from ssl_retrieval.adaptation.probe import IDENTITY, Probe
from ssl_retrieval.search import relevant_ranks, top_k
from ssl_retrieval.types import FloatArray, IntArray, VectorArray

K = 10
"""Neighbours that are compared."""

GROUP_SIZES = (28, 14, 7, 3.5)
NUM_CLUSTERINGS = 8
"""Photos per cluster, and clusterings of each size. One number of clusters alone, from one draw of their
centres, makes the silhouette as noisy as what it is to tell: of two networks with equal groups, one came out
clearly ahead on the same photos in one draw and behind in the next."""

_CLUSTER_DIM = 64
"""Principal directions in which clusters are sought: k-means is ten times as fast there."""


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


def silhouettes(photos: VectorArray) -> FloatArray:
    """See how much nearer a photo is to its own cluster than to the next one (Rousseeuw, 1987).

    Averaged over k-means with several numbers of clusters and draws of their centres.

    Args:
        photos: float32 [N, D].

    Returns:
        float64 [N] in [-1, 1]; 0 for all where there are too few different photos to form clusters.
    """
    num_different = len(np.unique(photos, axis=0))
    counts = {round(len(photos) / size) for size in GROUP_SIZES}
    counts = {count for count in counts if 2 <= count < num_different}
    if not counts:
        return np.zeros(len(photos))
    distances = pairwise_distances(photos.astype(np.float64))
    reduced = PCA(min(_CLUSTER_DIM, *photos.shape), svd_solver="full").fit_transform(photos)
    found = []
    for count, draw in itertools.product(sorted(counts), range(NUM_CLUSTERINGS)):
        labels = KMeans(count, n_init=1, random_state=draw).fit_predict(reduced)
        if 2 <= len(np.unique(labels)) < len(photos):
            found.append(silhouette_samples(distances, labels, metric="precomputed"))
    return np.mean(found or [np.zeros(len(photos))], axis=0)
