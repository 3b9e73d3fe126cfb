"""Inverted files: for each visual word the images that have it, so that only shared words cost time."""

from dataclasses import dataclass
from typing import Any

from scipy import sparse
from sklearn.preprocessing import normalize

from ssl_retrieval.types import VectorArray


@dataclass(frozen=True, eq=False)
class InvertedFile:
    """Cosines of sparse vectors: a `Similarity` (Sivic & Zisserman, ICCV 2003).

    Attributes:
        queries: ``scipy.sparse.csr_array`` float32 [Q, K], rows of length 1 or 0.
        postings: ``scipy.sparse.csr_array`` float32 [K, N]: a row lists the images with that word.
    """

    queries: Any
    postings: Any

    @classmethod
    def of(cls, queries: VectorArray, gallery: VectorArray) -> "InvertedFile":
        """Build it.

        Args:
            queries: float32 [Q, K], mostly zeros, of any length.
            gallery: float32 [N, K], likewise.
        """
        postings = normalize(sparse.csr_array(gallery)).T
        return cls(normalize(sparse.csr_array(queries)), sparse.csr_array(postings))

    @property
    def num_queries(self) -> int:
        """Count the queries."""
        return int(self.queries.shape[0])

    @property
    def num_gallery(self) -> int:
        """Count the gallery images."""
        return int(self.postings.shape[1])

    def scores(self, rows: slice) -> VectorArray:
        """Walk the lists of the words that each query has: float32 [len(rows), N]."""
        found: VectorArray = (self.queries[rows] @ self.postings).toarray()
        return found
