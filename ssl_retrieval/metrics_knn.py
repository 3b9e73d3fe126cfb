"""kNN classification: do the nearest neighbours vote for the right class?"""

import re
from dataclasses import dataclass

import numpy as np

from ssl_retrieval.errors import UserError
from ssl_retrieval.metrics import CHUNK_ENTRIES
from ssl_retrieval.types import FloatArray, IntArray, Ranking

TEMPERATURE = 0.07


@dataclass(frozen=True)
class Vote:
    """How a ``knn@K`` metric votes.

    Attributes:
        k: How many neighbours vote.
        temperature: Lower = the nearest count for more.
    """

    k: int
    temperature: float = TEMPERATURE

    @classmethod
    def named(cls, name: str) -> "Vote | None":
        """Read a name such as ``knn@20`` or ``knn@200_t0.1``; None when it is another metric's.

        Raises:
            UserError: It starts like one, but has no number of neighbours, or no temperature above 0.

        >>> Vote.named("knn@200_t0.1"), Vote.named("mAP")
        (Vote(k=200, temperature=0.1), None)
        """
        if not re.match(r"knn(@|$)", name):
            return None
        found = re.fullmatch(r"knn@([1-9]\d*)(?:_t(\d+(?:\.\d+)?))?", name, re.ASCII)
        temperature = float(found[2] or TEMPERATURE) if found else 0.0
        if found is None or not temperature > 0:
            raise UserError(f"unknown metric {name!r}: write knn@20, or knn@20_t0.1 for another temperature")
        return cls(int(found[1]), temperature)


def knn_accuracy(
    ranking: Ranking,
    query_labels: IntArray,
    gallery_labels: IntArray,
    k: int = 20,
    temperature: float = TEMPERATURE,
) -> FloatArray:
    """``knn@k``: whether the k nearest, each weighing exp(score / 0.07), vote for the query's class.

    The protocol known from DINO (Caron et al., ICCV 2021; k = 10, 20, 100, 200): weights as in Wu et al.,
    CVPR 2018. Equal votes go to the lower class index. ``knn@k_t0.1`` has another temperature.

    Args:
        ranking: At least k wide, or as wide as the gallery.
        query_labels: int64 [Q].
        gallery_labels: int64 [N].
        k: How many neighbours vote.
        temperature: Lower = the nearest count for more.

    Returns:
        float64 [Q]: 1 where the vote is the query's class, 0 where not, NaN where no neighbour exists.
    """
    assert ranking.indices.shape[1] >= min(k, len(gallery_labels))
    indices, scores = ranking.indices[:, :k], ranking.scores[:, :k].astype(np.float64)
    correct = np.full(len(indices), np.nan)
    num_classes = int(gallery_labels.max(initial=0)) + 1
    step = max(1, CHUNK_ENTRIES // max(num_classes, k))
    voted = np.flatnonzero(indices[:, 0] >= 0)
    for start in range(0, len(voted), step):
        rows = voted[start : start + step]
        # Relative to the best, so that no weight overflows; a padded place weighs exp(-inf) = 0.
        weights = np.exp((scores[rows] - scores[rows, :1]) / temperature)
        cells = np.arange(len(rows))[:, None] * num_classes + gallery_labels[indices[rows]]
        votes = np.bincount(cells.ravel(), weights.ravel(), minlength=len(rows) * num_classes)
        winner = votes.reshape(len(rows), num_classes).argmax(axis=1)
        correct[rows] = winner == query_labels[rows]
    return correct
