"""Several representations as one: weighted concatenation, sum of scores, reciprocal ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ssl_retrieval.postprocess import l2_normalize
from ssl_retrieval.similarity import Similarity
from ssl_retrieval.types import VectorArray

RANK_OFFSET = 60
"""The constant of reciprocal-rank fusion (Cormack, Clarke and Büttcher, 2009)."""


def concatenate(parts: Sequence[VectorArray], weights: Sequence[float]) -> VectorArray:
    """Join vectors of the same images.

    The cosine of two joined vectors is the mean of the parts' cosines, weighted by the weights' squares.

    Args:
        parts: float32 [N, D₁], [N, D₂], …; each row is brought to length 1 first, rows of zeros stay zero.
        weights: One per part.

    Returns:
        float32 [N, D₁ + D₂ + …], rows of length 1 or 0.

    >>> concatenate([np.array([[2, 0]], np.float32), np.array([[5]], np.float32)], [1, 1]).round(3).tolist()
    [[0.7..., 0.0, 0.7...]]
    """
    scaled = [np.float32(w) * l2_normalize(part) for part, w in zip(parts, weights, strict=True)]
    return l2_normalize(np.concatenate(scaled, axis=1))


@dataclass(frozen=True, eq=False)
class _Fused:
    """What both kinds of late fusion share.

    Attributes:
        parts: Similarities of the same queries and the same gallery.
        weights: One per part.
    """

    parts: Sequence[Similarity]
    weights: Sequence[float]

    @property
    def num_queries(self) -> int:
        """Count the queries."""
        return self.parts[0].num_queries

    @property
    def num_gallery(self) -> int:
        """Count the gallery images."""
        return self.parts[0].num_gallery

    def scores(self, rows: slice) -> VectorArray:
        """Score some queries: float32 [len(rows), N]."""
        total = np.zeros((rows.stop - rows.start, self.num_gallery), np.float64)
        for part, weight in zip(self.parts, self.weights, strict=True):
            total += weight * self._contribution(part.scores(rows))
        return total.astype(np.float32)

    def _contribution(self, scores: VectorArray) -> VectorArray:
        raise NotImplementedError


class ScoreSum(_Fused):
    """The weighted sum of the parts' scores, each as it is."""

    def _contribution(self, scores: VectorArray) -> VectorArray:
        return scores


class ReciprocalRank(_Fused):
    """The weighted sum of ``1 / (60 + rank)`` (Cormack, Clarke and Büttcher, SIGIR 2009).

    Ranks are of the whole gallery, whatever is ignored later; equal scores share their mean rank, so that the
    order of the gallery does not leak into the fused scores.
    """

    def _contribution(self, scores: VectorArray) -> VectorArray:
        from scipy.stats import rankdata

        return (1 / (RANK_OFFSET + rankdata(-scores, axis=1))).astype(np.float32)
