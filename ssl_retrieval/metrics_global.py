"""Metrics of one ranking of all queries together: is the score itself to be trusted, across queries?

A metric per query only asks whether the right items come first. These ask in addition whether right pairs
of one query score higher than wrong pairs of another, as a threshold on the score would need.
"""

import numpy as np

from ssl_retrieval.search import GlobalCounts
from ssl_retrieval.types import BoolArray, FloatArray

REQUIRED_PRECISION = 0.9


def uap(counts: GlobalCounts) -> float:
    """``uap``: micro average precision, the AP of one global ranking of all query-candidate pairs.

    Precision at each relevant pair's score, where pairs with that score all count, averaged over all
    relevant pairs. NaN when there is none. Copydays' and DISC21's metric (Douze et al., arXiv 2106.09672).
    """
    if len(counts.num_relevant) == 0:
        return np.nan
    precision = counts.num_relevant / counts.num_candidates
    new_relevant = np.diff(counts.num_relevant, prepend=0)
    return float((precision * new_relevant).sum() / counts.num_relevant[-1])


def recall_at_p90(counts: GlobalCounts) -> float:
    """``recall_at_p90``: the largest share of all relevant pairs that a threshold finds at 90 % precision.

    One threshold for all queries; pairs with the same score are above it or below it together. 0 when no
    threshold is that precise (isc2021 reports none), NaN when there is no relevant pair. DISC21's second
    metric (Douze et al., arXiv 2106.09672).

    >>> recall_at_p90(GlobalCounts(np.array([1, 9, 10]), np.array([2, 10, 12])))
    0.9
    """
    if len(counts.num_relevant) == 0:
        return np.nan
    precise = counts.num_relevant / counts.num_candidates >= REQUIRED_PRECISION
    return float(counts.num_relevant[precise].max(initial=0) / counts.num_relevant[-1])


def gap(scores: FloatArray, hits: BoolArray, has_relevant: BoolArray) -> float:
    """``gap``: GLDv2's Global Average Precision, of each query's top prediction only.

    The predictions of all queries make one ranking by score. The precisions at the right ones are summed
    and divided by the number of queries that have anything to find, whether they predict it or not; a query
    that has nothing to find can only do harm. Weyand et al., CVPR 2020, and the ``GlobalAveragePrecision`` of
    its code, which orders equal scores by the query's id. Where each query has one relevant item, it is the
    ``uap`` of a ranking in which only the top predictions are listed; otherwise it is not, as ``uap`` divides
    by all relevant pairs.

    Args:
        scores: float [Q], of each query's best candidate; -inf where it has none. Rows in order of the
            queries' ids, as that settles ties.
        hits: bool [Q], whether that candidate is relevant.
        has_relevant: bool [Q], whether the query has anything to find.

    Returns:
        In [0, 1]; NaN when no query has anything to find.

    >>> gap(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]), np.array([True, False, True]))
    0.8333333333333333
    """
    assert scores.shape == hits.shape == has_relevant.shape
    if not has_relevant.any():
        return np.nan
    order = np.argsort(-scores, kind="stable")
    predicted = hits[order][np.isfinite(scores[order])]
    precision = predicted.cumsum() / np.arange(1, len(predicted) + 1)
    return float(precision[predicted].sum() / has_relevant.sum())
