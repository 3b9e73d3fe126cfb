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

import numpy as np

from ssl_retrieval.errors import UserError
from ssl_retrieval.search import RelevantRanks
from ssl_retrieval.types import FloatArray, IntArray

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


def precision_revisited_at_k(
    ranks: IntArray, num_relevant: IntArray, num_candidates: IntArray, k: int
) -> FloatArray:
    """``precision_revisited@k``: precision@k, with k shrunk to the rank of the last relevant item.

    The mP@k of ROxford and RParis (revisitop's ``evaluate.py``): a query whose relevant items all come first
    scores 1 however few they are. Not comparable with ``precision@k``, which it never falls below. A
    relevant item that was never found counts as ranked beyond k.

    >>> precision_revisited_at_k(np.array([[1, 3]]), np.array([2]), np.array([50]), k=10).round(4)
    array([0.6667])
    """
    last = np.where((ranks > 0).sum(axis=1) < num_relevant, k, ranks.max(axis=1, initial=0))
    return _divide(_hits_within(ranks, k), np.where(num_relevant > 0, np.minimum(last, k), 0))


def precision_modified_at_k(
    ranks: IntArray, num_relevant: IntArray, num_candidates: IntArray, k: int
) -> FloatArray:
    """``mMP@k``: the share of relevant items in the top m, where m is min(num_relevant, k).

    The mMP@5 of UnED (Ypsilantis et al., ICCV 2023) and of the Google Universal Image Embedding Challenge,
    whose sum ends at m too: with fewer relevant items than k it is ``r_precision``.

    >>> precision_modified_at_k(np.array([[1, 3]]), np.array([2]), np.array([50]), k=5)
    array([0.5])
    """
    depth = np.minimum(num_relevant, k)
    return _divide(((ranks > 0) & (ranks <= depth[:, None])).sum(axis=1), depth)


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
    "precision_revisited": precision_revisited_at_k,
    "mMP": precision_modified_at_k,
    "recall": recall_at_k,
    "hit_rate": hit_rate_at_k,
    "ndcg": ndcg_at_k,
}


TIES = ("best", "worst")
"""Endings of a name: the value if every relevant item wins, or loses, its ties against items that are not."""

ELSEWHERE = ("gap", "knn@k", "recall_at_p90", "uap")
"""Metrics that need more than ranks, for the hint at the nearest name; see `measuring`."""


def compute(name: str, ranks: RelevantRanks) -> FloatArray:
    """Compute a metric by name.

    Args:
        name: One of ``FULL``, or one of ``AT_K`` with ``@`` and a cut-off. Equal scores are ordered by
            gallery index; a name with ``_best`` or ``_worst`` behind it gives an end of the band that ties
            leave open, e.g. ``mAP_worst`` or ``hit_rate@1_best``.
        ranks: Where the relevant items landed.

    Returns:
        float64 [Q], NaN where a query has no relevant item.

    Raises:
        UserError: No metric has this name.
    """
    base, _, ending = name.rpartition("_")
    if ending not in TIES:
        base, ending = name, ""
    metric = _find(base)
    table = {"": ranks.ranks, "best": ranks.best_ranks, "worst": ranks.worst_ranks}[ending]
    num_queries, width = table.shape
    values = np.empty(num_queries)
    step = max(1, CHUNK_ENTRIES // max(1, width))
    for start in range(0, num_queries, step):
        rows = slice(start, start + step)
        values[rows] = metric(table[rows], ranks.num_relevant[rows], ranks.num_candidates[rows])
    return values


def _find(name: str) -> Callable[[IntArray, IntArray, IntArray], FloatArray]:
    if name in FULL:
        return FULL[name]
    match = re.fullmatch(r"(\w+)@([1-9]\d*)", name, re.ASCII)
    if match and match[1] in AT_K:
        metric, k = AT_K[match[1]], int(match[2])
        return lambda ranks, num_relevant, num_candidates: metric(ranks, num_relevant, num_candidates, k)
    names = [*FULL, *(f"{stem}@k" for stem in AT_K), *ELSEWHERE]
    known = {known_name.lower(): known_name for known_name in names}
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
