"""Retrieval metrics: pure functions on where the relevant items landed.

Every function takes ``ranks`` (int64 [Q, R_max], 1-based, ascending, then padded with 0),
``num_relevant`` (int64 [Q]) and ``num_candidates`` (int64 [Q]), those with a cut-off also ``k``, and
returns float64 [Q] in [0, 1] unless it says otherwise: NaN where a query has no relevant item. A relevant
item that was never found has no rank but counts in ``num_relevant``.

``compute`` finds them by name. A metric's name says how it is normalised.
"""

import difflib
import re
from collections.abc import Callable
from typing import Literal

import numpy as np

from ssl_retrieval.errors import UserError
from ssl_retrieval.search import GlobalCounts, RelevantRanks
from ssl_retrieval.types import FloatArray, IntArray, Ranking

DEFAULT_METRICS = (
    "mAP",
    "mAP@R",
    "mAP@100",
    "mAP_trapezoid",
    "precision@1",
    "precision@10",
    "recall@10",
    "hit_rate@1",
    "hit_rate@5",
    "hit_rate@10",
    "ndcg@10",
    "r_precision",
    "mrr",
)

# Queries are handled so many table entries at a time, to bound the float64 temporaries (8 MiB each).
CHUNK_ENTRIES = 2**20


def average_precision(ranks: IntArray, num_relevant: IntArray, num_candidates: IntArray) -> FloatArray:
    """``mAP``: mean, over all relevant items, of the precision at each one's rank; full ranking.

    >>> average_precision(np.array([[1, 3, 8, 10]]), np.array([4]), np.array([10])).round(4)
    array([0.6104])
    """
    return _divide(_precisions(ranks).sum(axis=1), num_relevant)


def average_precision_trapezoid(
    ranks: IntArray, num_relevant: IntArray, num_candidates: IntArray
) -> FloatArray:
    """``mAP_trapezoid``: area under the precision-recall curve by trapezoids, as for ROxford / RParis.

    At each relevant item the precision just before it and at it are averaged (before rank 1 it is 1);
    divided by the number of relevant items.

    >>> average_precision_trapezoid(np.array([[1, 3, 8, 10]]), np.array([4]), np.array([10])).round(4)
    array([0.5701])
    """
    hits_before = np.arange(ranks.shape[1])
    precision_before = np.where(ranks == 1, 1.0, hits_before * _inverse(ranks - 1))
    return _divide((precision_before + _precisions(ranks)).sum(axis=1) / 2, num_relevant)


def average_precision_at_k(
    ranks: IntArray, num_relevant: IntArray, num_candidates: IntArray, k: int
) -> FloatArray:
    """``mAP@k``: precision at the rank of each relevant item in the top k, over min(num_relevant, k).

    >>> average_precision_at_k(np.array([[1, 3, 8, 10]]), np.array([4]), np.array([10]), k=5).round(4)
    array([0.4167])
    """
    precisions = np.where(ranks <= k, _precisions(ranks), 0.0)
    return _divide(precisions.sum(axis=1), np.minimum(num_relevant, k))


def average_precision_at_r(ranks: IntArray, num_relevant: IntArray, num_candidates: IntArray) -> FloatArray:
    """``mAP@R``: as ``mAP@k`` with k the query's own number of relevant items, which also divides."""
    precisions = np.where(ranks <= num_relevant[:, None], _precisions(ranks), 0.0)
    return _divide(precisions.sum(axis=1), num_relevant)


def precision_at_k(ranks: IntArray, num_relevant: IntArray, num_candidates: IntArray, k: int) -> FloatArray:
    """``precision@k``: relevant items in the top k, divided by k even where fewer candidates exist."""
    return _divide(_hits_within(ranks, k), np.where(num_relevant > 0, k, 0))


def recall_at_k(ranks: IntArray, num_relevant: IntArray, num_candidates: IntArray, k: int) -> FloatArray:
    """``recall@k``, information retrieval's: relevant items in the top k, over all relevant items.

    What metric learning calls Recall@k is ``hit_rate@k``.
    """
    return _divide(_hits_within(ranks, k), num_relevant)


def hit_rate_at_k(ranks: IntArray, num_relevant: IntArray, num_candidates: IntArray, k: int) -> FloatArray:
    """``hit_rate@k``: 1 when the top k hold any relevant item, otherwise 0."""
    return _divide(np.minimum(_hits_within(ranks, k), 1), np.minimum(num_relevant, 1))


def ndcg_at_k(ranks: IntArray, num_relevant: IntArray, num_candidates: IntArray, k: int) -> FloatArray:
    """``ndcg@k``: relevant items in the top k, each worth 1 / log2(1 + rank), over the best possible sum.

    The best possible has min(num_relevant, k) relevant items first.
    """
    discounts = 1 / np.log2(np.arange(2, min(k, int(num_relevant.max(initial=0))) + 2))
    ideal = np.concatenate([[0.0], discounts.cumsum()])[np.minimum(num_relevant, k)]
    counted = (ranks > 0) & (ranks <= k)
    gains = np.divide(1, np.log2(ranks + 1.0), out=np.zeros(ranks.shape), where=counted)
    return _divide(gains.sum(axis=1), ideal)


def r_precision(ranks: IntArray, num_relevant: IntArray, num_candidates: IntArray) -> FloatArray:
    """``r_precision``: the share of relevant items among the first num_relevant."""
    found = (ranks > 0) & (ranks <= num_relevant[:, None])
    return _divide(found.sum(axis=1), num_relevant)


def reciprocal_rank(ranks: IntArray, num_relevant: IntArray, num_candidates: IntArray) -> FloatArray:
    """``mrr``: one over the rank of the first relevant item."""
    return _divide(_inverse(ranks[:, :1]).sum(axis=1), np.minimum(num_relevant, 1))


def ns_score(ranks: IntArray, num_relevant: IntArray, num_candidates: IntArray) -> FloatArray:
    """``ns_score``: how many relevant items are in the top 4, from 0 to 4, undivided.

    UKBench's score: there the query itself stays in the gallery and is one of the four.
    """
    return _divide(_hits_within(ranks, 4), np.minimum(num_relevant, 1))


FULL: dict[str, Callable[[IntArray, IntArray, IntArray], FloatArray]] = {
    "mAP": average_precision,
    "mAP_trapezoid": average_precision_trapezoid,
    "mAP@R": average_precision_at_r,
    "r_precision": r_precision,
    "mrr": reciprocal_rank,
    "ns_score": ns_score,
}
AT_K: dict[str, Callable[[IntArray, IntArray, IntArray, int], FloatArray]] = {
    "mAP": average_precision_at_k,
    "precision": precision_at_k,
    "recall": recall_at_k,
    "hit_rate": hit_rate_at_k,
    "ndcg": ndcg_at_k,
}


def compute(
    name: str, ranks: RelevantRanks, ties: Literal["gallery_index", "best", "worst"] = "gallery_index"
) -> FloatArray:
    """Compute a metric by name.

    Args:
        name: ``mAP``, ``mAP_trapezoid``, ``mAP@R``, ``r_precision``, ``mrr``, ``ns_score``, or one of
            ``mAP``, ``precision``, ``recall``, ``hit_rate``, ``ndcg`` with ``@`` and a cut-off.
        ranks: Where the relevant items landed.
        ties: How equal scores are ordered; ``best`` and ``worst`` give the band that ties leave open.

    Returns:
        float64 [Q], NaN where a query has no relevant item.

    Raises:
        UserError: No metric has this name.
    """
    metric = _find(name)
    table = {"gallery_index": ranks.ranks, "best": ranks.best_ranks, "worst": ranks.worst_ranks}[ties]
    num_queries, width = table.shape
    values = np.empty(num_queries)
    step = max(1, CHUNK_ENTRIES // max(1, width))
    for start in range(0, num_queries, step):
        rows = slice(start, start + step)
        values[rows] = metric(table[rows], ranks.num_relevant[rows], ranks.num_candidates[rows])
    return values


def uap(counts: GlobalCounts) -> float:
    """Micro average precision (uAP, GAP): the AP of one global ranking of all query-candidate pairs.

    Precision at each relevant pair's score, where pairs with that score all count, averaged over all
    relevant pairs. NaN when there is none.
    """
    if len(counts.num_relevant) == 0:
        return np.nan
    precision = counts.num_relevant / counts.num_candidates
    new_relevant = np.diff(counts.num_relevant, prepend=0)
    return float((precision * new_relevant).sum() / counts.num_relevant[-1])


def knn_accuracy(
    ranking: Ranking,
    query_labels: IntArray,
    gallery_labels: IntArray,
    k: int = 20,
    temperature: float = 0.07,
) -> FloatArray:
    """Classify each query by its neighbours' weighted vote, the protocol known from DINO.

    Each of the top k votes for its class with weight exp(score / temperature); equal votes go to the lower
    class index.

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


def _find(name: str) -> Callable[[IntArray, IntArray, IntArray], FloatArray]:
    if name in FULL:
        return FULL[name]
    match = re.fullmatch(r"(\w+)@([1-9]\d*)", name, re.ASCII)
    if match and match[1] in AT_K:
        metric, k = AT_K[match[1]], int(match[2])
        return lambda ranks, num_relevant, num_candidates: metric(ranks, num_relevant, num_candidates, k)
    known = {known_name.lower(): known_name for known_name in [*FULL, *(f"{stem}@k" for stem in AT_K)]}
    wanted = re.sub(r"@[-\d.]*$", "@k", name.lower())
    nearest = difflib.get_close_matches(wanted, known, n=3, cutoff=0.5) or sorted(known)
    listed = ", ".join(known[key] for key in nearest)
    raise UserError(f"unknown metric {name!r}: the nearest known are {listed} (k = 1, 2, 3, …)")


def _divide(sums: FloatArray | IntArray, counts: FloatArray | IntArray) -> FloatArray:
    """Divide, giving NaN where there is nothing to divide by."""
    out: FloatArray = np.full(sums.shape, np.nan)
    np.divide(sums, counts, out=out, where=counts > 0)
    return out


def _inverse(ranks: IntArray) -> FloatArray:
    """Give 1 / rank, and 0 where there is no rank."""
    out: FloatArray = np.zeros(ranks.shape)
    np.divide(1, ranks, out=out, where=ranks > 0)
    return out


def _precisions(ranks: IntArray) -> FloatArray:
    """Give the precision at each relevant item's rank, 0 where padded."""
    return _inverse(ranks) * np.arange(1, ranks.shape[1] + 1)


def _hits_within(ranks: IntArray, k: int) -> IntArray:
    return ((ranks > 0) & (ranks <= k)).sum(axis=1)
