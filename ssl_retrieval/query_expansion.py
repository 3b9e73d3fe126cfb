"""Query expansion: search again with the query and what it found; the same for the images of the gallery."""

from collections.abc import Sequence

import numpy as np
from sklearn.svm import LinearSVC

from ssl_retrieval.neighbours import among_themselves, neighbours
from ssl_retrieval.postprocess import l2_normalize
from ssl_retrieval.search import top_k
from ssl_retrieval.types import IntArray, VectorArray


def expand_queries(
    queries: VectorArray,
    gallery: VectorArray,
    n: int,
    alpha: float,
    own: Sequence[IntArray] | None = None,
) -> VectorArray:
    """Add to each query its ``n`` nearest gallery images, weighted by their cosine to the power ``alpha``.

    ``q' = q + Σ max(q·x, 0)^α x``, brought to length 1. With ``alpha`` 0 every neighbour weighs as much as
    the query: average query expansion (Chum et al., ICCV 2007); above 0 it is αQE (Radenović, Tolias and
    Chum, TPAMI 2019).

    Args:
        queries: float32 [Q, D], rows of length 1 or 0; a row of zeros stays zero.
        gallery: float32 [N, D], likewise.
        n: How many neighbours; of a smaller gallery all.
        alpha: 0 or more.
        own: Q arrays: where the query itself stands in the gallery, which must not count twice.

    Returns:
        float32 [Q, D], rows of length 1 or 0.

    >>> gallery = np.array([[0.6, 0.8], [-1, 0]], np.float32)
    >>> expand_queries(np.array([[1, 0]], np.float32), gallery, n=2, alpha=1).round(4).tolist()
    [[0.94..., 0.33...]]
    """
    weights = neighbours(queries, gallery, n, own).matrix(alpha)
    return l2_normalize(queries + weights @ gallery)


def augment_gallery(gallery: VectorArray, n: int, alpha: float) -> VectorArray:
    """Do the same to each gallery image with its ``n`` nearest others.

    Database-side augmentation (Turcot and Lowe, ICCV Workshops 2009; Arandjelović and Zisserman, CVPR 2012).

    Args:
        gallery: float32 [N, D], rows of length 1 or 0; a row of zeros stays zero.
        n: How many others; of a smaller gallery all.
        alpha: See `expand_queries`; the image itself weighs 1.
    """
    return l2_normalize(gallery + among_themselves(gallery, n).matrix(alpha) @ gallery)


def discriminative_queries(
    queries: VectorArray,
    gallery: VectorArray,
    n: int,
    negatives: int,
    c: float,
    own: Sequence[IntArray] | None = None,
) -> VectorArray:
    """Replace each query by the normal of a linear SVM between its nearest and its farthest images.

    Discriminative query expansion (Arandjelović and Zisserman, CVPR 2012): positives are the query and its
    ``n`` nearest gallery images, negatives the farthest ones; the gallery is ranked by the distance to the
    plane between them, that is by ``w·x``.

    Args:
        queries: float32 [Q, D], rows of length 1 or 0; a row of zeros stays zero.
        gallery: float32 [N, D], likewise; images without features are neither.
        n: How many positives besides the query.
        negatives: How many negatives, none of them a positive; fewer where the gallery is small. Where not
            even one is left the query stays as it is.
        c: Penalty of the SVM (scikit-learn's ``C``).
        own: Q arrays: where the query itself stands in the gallery.

    Returns:
        float32 [Q, D]: ``w`` brought to length 1.
    """
    near = neighbours(queries, gallery, n, own)
    taken = [
        np.union1d(of_query[of_query >= 0], [] if own is None else own[i]).astype(np.int64)
        for i, of_query in enumerate(near.indices)
    ]
    far = top_k(-queries, gallery, min(negatives, len(gallery)), taken).indices
    has_features = np.asarray(gallery.any(axis=1))
    result = queries.copy()
    for row in np.flatnonzero(queries.any(axis=1)):
        positive, negative = near.indices[row], far[row]
        positive = positive[positive >= 0]
        negative = negative[negative >= 0]
        negative = negative[has_features[negative]]
        if len(negative) == 0:
            continue
        examples = np.concatenate([queries[row : row + 1], gallery[positive], gallery[negative]])
        is_positive = np.arange(len(examples)) <= len(positive)
        # The dual has one variable per example, of which there are fewer than dimensions.
        svm = LinearSVC(C=c, dual=True, random_state=0, max_iter=10_000).fit(examples, is_positive)
        result[row] = svm.coef_[0]
    return l2_normalize(result)
