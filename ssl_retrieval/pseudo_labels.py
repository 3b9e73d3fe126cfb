"""Labels that nobody gave: clusters of the vectors by k-means, and how far two such labellings agree.

Caron, Bojanowski, Joulin, Douze: Deep Clustering for Unsupervised Learning of Visual Features, ECCV 2018
(arXiv 1807.05520).
"""

import numpy as np
from sklearn.metrics import normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from ssl_retrieval.errors import UserError
from ssl_retrieval.types import IntArray, VectorArray
from ssl_retrieval.whitening import Pca

ITERATIONS = 20

DIM, POWER = 256, 0.25
"""Dimensions of the PCA, and how far it whitens. The paper whitens fully (0.5). On a few thousand photos that
is better than nothing with 128 dimensions and not with 256; half of the way is better with either."""


def clusters_for(num_images: int) -> int:
    """Choose a number of clusters: ten images in each on average, between 2 and 10,000 clusters.

    More clusters than there are classes are better than fewer (figure 2c of the paper): a class in several
    clusters still teaches what is alike, several classes in one teach a mistake.

    >>> [clusters_for(n) for n in (15, 2_640, 1_280_000)]
    [2, 264, 10000]
    """
    return max(2, min(num_images // 10, 10_000))


def cluster(vectors: VectorArray, count: int, seed: int) -> IntArray:
    """Find clusters: PCA, half whitened; length 1; spherical k-means, which compares as the search does.

    Where k-means leaves a cluster empty, it gets the image that lies farthest from the centre of its own.

    Args:
        vectors: float32 [N, D], of length 1.
        count: C, the number of clusters.
        seed: Of the first centres.

    Returns:
        int64 [N] in [0, C), each of which occurs.

    Raises:
        UserError: Fewer images than clusters.
    """
    import faiss

    if count > len(vectors):
        raise UserError(
            f"method.clusters={count}: there are {len(vectors)} training images: set method.clusters to a "
            f"tenth of that, {clusters_for(len(vectors))}"
        )
    points = _of_length_1(Pca(DIM, power=POWER).fit(vectors).apply(vectors, "gallery"))
    means = faiss.Kmeans(
        points.shape[1],
        count,
        niter=ITERATIONS,
        seed=seed % 2**31,
        spherical=True,
        min_points_per_centroid=1,
    )
    means.train(points)
    similarities, nearest = means.index.search(points, 1)
    return _all_filled(nearest[:, 0].astype(np.int64), similarities[:, 0], count)


def centres(vectors: VectorArray, labels: IntArray) -> VectorArray:
    """Give the mean direction of each label's vectors: float32 [C, D], of length 1.

    Args:
        vectors: float32 [N, D], of length 1.
        labels: int64 [N] in [0, C), each of which occurs.
    """
    sums = np.zeros((int(labels.max()) + 1, vectors.shape[1]), np.float32)
    np.add.at(sums, labels, vectors)
    return _of_length_1(sums)


def describe(labels: IntArray, before: IntArray | None) -> str:
    """Say how large clusters are, and how far they are those of the last round.

    Args:
        labels: int64 [N].
        before: int64 [N], those of the last round; None = there was none.

    >>> describe(np.array([0, 0, 1, 1, 1, 1]), np.array([1, 1, 0, 0, 0, 1]))
    '2 clusters of 2 to 4 images, median 3; NMI 0.48 with the last round, 17% of images changed company'
    """
    sizes = np.bincount(labels)
    words = f"{len(sizes)} clusters of {sizes.min()} to {sizes.max()} images, median {np.median(sizes):g}"
    if before is None:
        return words
    # Clusters have no names that last: each is compared with the old one that it shares most images with.
    shared = contingency_matrix(labels, before, sparse=True).max(axis=1).sum()
    agreement = normalized_mutual_info_score(before, labels)
    changed = 1 - shared / len(labels)
    return f"{words}; NMI {agreement:.2f} with the last round, {changed:.0%} of images changed company"


def _all_filled(labels: IntArray, similarities: VectorArray, count: int) -> IntArray:
    sizes = np.bincount(labels, minlength=count)
    worst_first = iter(np.argsort(similarities, kind="stable").tolist())
    for empty in np.flatnonzero(sizes == 0).tolist():
        image = next(image for image in worst_first if sizes[labels[image]] > 1)
        sizes[labels[image]] -= 1
        labels[image] = empty
        sizes[empty] = 1
    return labels


def _of_length_1(vectors: VectorArray) -> VectorArray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: VectorArray = np.ascontiguousarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)
    return unit
