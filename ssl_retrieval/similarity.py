"""Scores of all queries against all gallery images, where they are more than a product of two matrices."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ssl_retrieval.types import FloatArray, IntArray, VectorArray

_BLOCK_BYTES = 64 << 20


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


@dataclass(frozen=True, eq=False)
class Listed:
    """Some gallery images of each query in a new order, before all others in the old one.

    Attributes:
        base: The old scores.
        indices: int64 [Q, L] gallery indices; -1 where there is none.
        lifted: float32 [Q, L]: their new scores, above every old one.
    """

    base: Similarity
    indices: IntArray
    lifted: VectorArray

    @classmethod
    def of(cls, base: Similarity, indices: IntArray, scores: FloatArray) -> "Listed":
        """Lift new scores above the old ones.

        All queries' new scores are lifted alike, so that they can still be compared across queries. Where
        float32 could not tell two of them apart any more, the lower one goes down by the smallest step.

        Args:
            base: The old scores.
            indices: int64 [Q, L] gallery indices, each at most once per query, best first; then -1.
            scores: float64 [Q, L], 0 or more and finite, descending where there is an image. Equal scores
                stay equal.
        """
        listed = indices >= 0
        assert indices.shape == scores.shape == (base.num_queries, indices.shape[1])
        assert np.isfinite(scores).all()
        assert (scores >= 0).all()
        highest = _highest(base)
        lift = highest + 1 + abs(highest) / 100
        lifted = (lift + scores).astype(np.float32)
        for column in range(1, indices.shape[1]):
            both = listed[:, column]
            assert (scores[both, column] <= scores[both, column - 1]).all()
            before = lifted[:, column - 1]
            tied = scores[:, column] == scores[:, column - 1]
            ceiling = np.where(tied, before, np.nextafter(before, np.float32(-np.inf)))
            lifted[:, column] = np.minimum(lifted[:, column], ceiling)
        assert (lifted > highest)[listed].all()
        return cls(base, indices, lifted)

    @property
    def num_queries(self) -> int:
        """Count the queries."""
        return self.base.num_queries

    @property
    def num_gallery(self) -> int:
        """Count the gallery images."""
        return self.base.num_gallery

    def scores(self, rows: slice) -> VectorArray:
        """Overwrite the old scores of what is listed."""
        found = np.array(self.base.scores(rows))
        indices = self.indices[rows]
        row, column = np.nonzero(indices >= 0)
        found[row, indices[row, column]] = self.lifted[rows][row, column]
        return found


def row_blocks(similarity: Similarity) -> list[slice]:
    """Cut the queries into blocks whose scores take some tens of MiB."""
    step = max(1, _BLOCK_BYTES // (4 * max(1, similarity.num_gallery)))
    count = similarity.num_queries
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def _highest(similarity: Similarity) -> float:
    return max(float(similarity.scores(rows).max()) for rows in row_blocks(similarity))
