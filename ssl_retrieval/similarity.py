"""Scores of all queries against all gallery images, where they are more than a product of two matrices."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ssl_retrieval.types import IntArray, VectorArray


class Similarity(Protocol):
    """Scores by rows: what `search` asks where there are no vectors to multiply (inverted files, fusion)."""

    @property
    def num_queries(self) -> int:
        """Count the rows."""
        ...

    @property
    def num_gallery(self) -> int:
        """Count the columns."""
        ...

    def scores(self, rows: slice) -> VectorArray:
        """Score some queries: float32 [len(rows), num_gallery], finite, higher is nearer.

        Args:
            rows: A range of queries with explicit start and stop.
        """
        ...


@dataclass(frozen=True, eq=False)
class Cosine:
    """Dot products of rows that have length 1.

    Attributes:
        queries: float32 [Q, D].
        gallery: float32 [N, D].
    """

    queries: VectorArray
    gallery: VectorArray

    @property
    def num_queries(self) -> int:
        """Count the queries."""
        return len(self.queries)

    @property
    def num_gallery(self) -> int:
        """Count the gallery images."""
        return len(self.gallery)

    def scores(self, rows: slice) -> VectorArray:
        """Multiply."""
        product: VectorArray = self.queries[rows] @ self.gallery.T
        return product


@dataclass(frozen=True, eq=False)
class Rows:
    """Some queries of another similarity.

    Attributes:
        whole: All queries.
        rows: int64 [M]: those that count here, in this order.
    """

    whole: Similarity
    rows: IntArray

    @property
    def num_queries(self) -> int:
        """Count the chosen queries."""
        return len(self.rows)

    @property
    def num_gallery(self) -> int:
        """Count the gallery images."""
        return self.whole.num_gallery

    def scores(self, rows: slice) -> VectorArray:
        """Score the chosen ones among ``rows``."""
        parts = [self.whole.scores(slice(int(row), int(row) + 1)) for row in self.rows[rows]]
        return np.concatenate([np.empty((0, self.num_gallery), np.float32), *parts])
