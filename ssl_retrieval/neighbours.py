"""The nearest gallery images of each query, as a sparse matrix: what re-ranking starts from.

Who may be a neighbour is decided here, once for all methods. A query that stands in the gallery itself is
left out by its own index, never as "the first result": a duplicate may come before it. An image without
features (a vector of zeros) has no neighbours and is nobody's; a place that it would take stays empty.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from ssl_retrieval.search import top_k
from ssl_retrieval.types import IntArray, VectorArray


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Gallery images per query, nearest first.

    Attributes:
        indices: int64 [Q, k] gallery indices; -1 where there is none.
        scores: float32 [Q, k] cosines; 0 where there is none.
        num_gallery: N.
    """

    indices: IntArray
    scores: VectorArray
    num_gallery: int

    @property
    def present(self) -> Any:
        """Where there is a neighbour: bool [Q, k]."""
        return self.indices >= 0

    def matrix(self, exponent: float) -> sparse.csr_matrix:
        """Weigh the neighbours by their cosine to a power, negative ones by 0.

        Args:
            exponent: 0 or more; with 0 every neighbour weighs 1, whatever its cosine.

        Returns:
            float32 [Q, N] with sorted indices and no stored zeros.
        """
        if exponent == 0:
            weights = np.ones_like(self.scores)
        else:
            weights = np.maximum(self.scores, 0) ** np.float32(exponent)
        rows = np.broadcast_to(np.arange(len(self.indices))[:, None], self.indices.shape)
        kept = self.present & (weights > 0)
        shape = len(self.indices), self.num_gallery
        found = sparse.csr_matrix((weights[kept], (rows[kept], self.indices[kept])), shape, np.float32)
        found.sort_indices()
        return found


def neighbours(
    queries: VectorArray, gallery: VectorArray, k: int, own: Sequence[IntArray] | None = None
) -> Neighbours:
    """Find the ``k`` nearest gallery images of each query.

    Args:
        queries: float32 [Q, D], rows of length 1 or 0.
        gallery: float32 [N, D], likewise.
        k: How many; of a smaller gallery all.
        own: Q arrays: where the query itself stands in the gallery; None = nowhere.

    >>> photos = np.array([[1, 0], [1, 0], [0, 1], [0, 0]], np.float32)
    >>> neighbours(photos[:1], photos, k=3, own=[np.array([0])]).indices
    array([[ 1,  2, -1]])
    """
    found = top_k(queries, gallery, min(k, len(gallery)), own)
    has_features = np.asarray(gallery.any(axis=1))
    present = (found.indices >= 0) & has_features[found.indices] & np.asarray(queries.any(axis=1))[:, None]
    return Neighbours(
        np.where(present, found.indices, -1), np.where(present, found.scores, np.float32(0)), len(gallery)
    )


def among_themselves(gallery: VectorArray, k: int) -> Neighbours:
    """Find the ``k`` nearest others of each gallery image (float32 [N, D])."""
    return neighbours(gallery, gallery, k, list(np.arange(len(gallery))[:, None]))
