"""How other libraries score one ranking: their formulas, restated to explain their numbers.

Each formula takes a `OneRanking`, its hits in the order that the library would see (bool [N], best first)
and a cut-off. What a library does with a query that has nothing to find is part of its formula. None of the
libraries is needed; the tests compare with those that are installed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ssl_retrieval.metrics_one_ranking import OneRanking
from ssl_retrieval.types import BoolArray, FloatArray

NAN = float("nan")

Formula = Callable[[OneRanking, BoolArray, int], float]


@dataclass(frozen=True)
class Reason:
    """Why a library's number may differ from ours.

    Attributes:
        applies: Whether it matters for a ranking and a cut-off.
        text: What it does; may name ``{hits}`` (relevant items listed), ``{R}`` (all) and ``{k}``.
    """

    applies: Callable[[OneRanking, int], bool]
    text: str


@dataclass(frozen=True)
class Peer:
    """One library's version of a metric.

    Attributes:
        ours: Our metric that people take for the same, ``@k`` left open.
        package: The library or code base.
        call: Its function or key, ``{k}`` left open.
        formula: See the module.
        reasons: Why it may differ from ours.
        ties: Equal scores are taken as ``listed``, or in an order left ``open``, or are the ``formula``'s.
    """

    ours: str
    package: str
    call: str
    formula: Formula
    reasons: tuple[Reason, ...] = ()
    ties: Literal["listed", "open", "formula"] = "open"


def mean_of_precisions(hits: BoolArray, count: float) -> float:
    """Sum the precisions at the hits and divide by ``count``; 0 when nothing is found."""
    precisions = hits.cumsum() / np.arange(1, len(hits) + 1)
    return float(precisions[hits].sum()) / count if hits.any() else 0.0


def scikit_learn_ap(one: OneRanking, hits: BoolArray, k: int) -> float:
    """Area under the steps of the precision-recall curve, one step per distinct score."""
    last = np.flatnonzero(np.append(np.diff(one.scores) != 0, True))
    found = hits.cumsum()[last]
    return float((found / (last + 1) * np.diff(found, prepend=0)).sum() / max(1, hits.sum()))


def torchmetrics_ap(one: OneRanking, hits: BoolArray, k: int) -> float:
    """Mean of the precisions at the hits that are found, of items with a score above 0."""
    kept = (hits & (one.scores > 0))[:k]
    return mean_of_precisions(kept, kept.sum())


def ranx_ap(one: OneRanking, hits: BoolArray, k: int) -> float:
    """Sum of the precisions at the hits in the top k, over all relevant items."""
    return mean_of_precisions(hits[:k], one.num_relevant)


def revisitop_ap(one: OneRanking, hits: BoolArray, k: int) -> float:
    """Trapezoids between the precision just before each hit and at it, over all relevant items."""
    ranks = np.flatnonzero(hits)
    found = np.arange(len(ranks))
    before = np.where(ranks == 0, 1.0, found / np.maximum(ranks, 1))
    return _or_nan(float((before + (found + 1) / (ranks + 1)).sum() / 2), one.num_relevant)


def smaller_count_ap(one: OneRanking, hits: BoolArray, k: int) -> float:
    """Sum of the precisions at the hits in the top k, over the smaller of all relevant items and k."""
    return _or_nan(mean_of_precisions(hits[:k], 1), min(one.num_relevant, k))


def pytorch_metric_learning_ap(one: OneRanking, hits: BoolArray, k: int) -> float:
    """As ranx, but a query that has nothing to find is left out."""
    return _or_nan(mean_of_precisions(hits[:k], 1), one.num_relevant)


def pytorch_metric_learning_ap_at_r(one: OneRanking, hits: BoolArray, k: int) -> float:
    """Sum of the precisions at the hits in the top R, of which only the k nearest were fetched, over R."""
    return _or_nan(mean_of_precisions(hits[: min(k, one.num_relevant)], 1), one.num_relevant)


def pytorch_metric_learning_r_precision(one: OneRanking, hits: BoolArray, k: int) -> float:
    """Share of hits in the top R, or in the k nearest where these are fewer."""
    return calibrated_precision(one, hits, k)


def revisitop_precision(one: OneRanking, hits: BoolArray, k: int) -> float:
    """Share of hits in the top k, with k shrunk to the rank of the last relevant item."""
    last = np.flatnonzero(hits).max(initial=-1) + 1 if one.num_listed == one.num_relevant else k
    depth = min(k, int(last))
    return _or_nan(float(hits[:depth].sum()), depth)


def open_metric_learning_precision(one: OneRanking, hits: BoolArray, k: int) -> float:
    """Hits in the top k, over the smaller of all relevant items and k."""
    return _or_nan(float(hits[:k].sum()), min(one.num_relevant, k))


def calibrated_precision(one: OneRanking, hits: BoolArray, k: int) -> float:
    """Share of hits in the top k, or in the top R where these are fewer."""
    depth = min(one.num_relevant, k)
    return _or_nan(float(hits[:depth].sum()), depth)


def plain_precision(one: OneRanking, hits: BoolArray, k: int) -> float:
    """Hits in the top k, over k."""
    return float(hits[:k].sum()) / k


def torchmetrics_precision(one: OneRanking, hits: BoolArray, k: int) -> float:
    """As ranx, of items with a score above 0."""
    return plain_precision(one, hits & (one.scores > 0), k)


def ranx_recall(one: OneRanking, hits: BoolArray, k: int) -> float:
    """Hits in the top k, over all relevant items; 0 when there are none."""
    return float(hits[:k].sum()) / max(1, one.num_relevant)


def torchmetrics_recall(one: OneRanking, hits: BoolArray, k: int) -> float:
    """Hits in the top k with a score above 0, over the relevant items in the list."""
    return float((hits & (one.scores > 0))[:k].sum()) / max(1, one.num_listed)


def any_hit(one: OneRanking, hits: BoolArray, k: int) -> float:
    """1 when the top k hold a hit, otherwise 0."""
    return float(hits[:k].any())


def ranx_r_precision(one: OneRanking, hits: BoolArray, k: int) -> float:
    """Share of hits in the top R; 0 when R is 0."""
    return float(hits[: one.num_relevant].sum()) / max(1, one.num_relevant)


def torchmetrics_r_precision(one: OneRanking, hits: BoolArray, k: int) -> float:
    """Share of hits among the first as many items as there are relevant ones in the list."""
    return float(hits[: one.num_listed].sum()) / max(1, one.num_listed)


def ranx_ndcg(one: OneRanking, hits: BoolArray, k: int) -> float:
    """Discounted gains in the top k over those of the best order of all relevant items; 0 without any."""
    depth = min(k, len(hits))
    best = _discounts(max(k, one.num_relevant))[: min(k, one.num_relevant)].sum()
    return float((_discounts(depth) * hits[:depth]).sum() / best) if best else 0.0


def averaged_ndcg(one: OneRanking, hits: BoolArray, k: int) -> float:
    """Discounted gains, averaged over all orders of equal scores, over the best order of the list's."""
    discounts = np.where(np.arange(len(hits)) < k, _discounts(len(hits)), 0.0)
    _, group = np.unique(-one.scores, return_inverse=True)
    sizes, found = np.bincount(group), np.bincount(group, hits)
    gain = (found / sizes * np.bincount(group, discounts)).sum()
    best = discounts[: one.num_listed].sum()
    return float(gain / best) if best else 0.0


def first_hit(one: OneRanking, hits: BoolArray, k: int) -> float:
    """One over the rank of the first hit; 0 without any."""
    return 1 / (int(hits.argmax()) + 1) if hits.any() else 0.0


def torchmetrics_first_hit(one: OneRanking, hits: BoolArray, k: int) -> float:
    """As ranx, of items with a score above 0."""
    return first_hit(one, hits & (one.scores > 0), k)


def left_out(formula: Formula) -> Formula:
    """Leave out a query that has nothing to find."""
    return lambda one, hits, k: formula(one, hits, k) if one.num_relevant else NAN


def _or_nan(total: float, count: int) -> float:
    return total / count if count else NAN


def _discounts(depth: int) -> FloatArray:
    return 1 / np.log2(np.arange(2, depth + 2))
