"""One ranking of all queries against plain loops and the challenges' own definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl_retrieval.metrics_global import gap, recall_at_p90, uap
from ssl_retrieval.search import GlobalCounts


def test_uap_of_one_ranking_by_hand() -> None:
    """Pairs, best first: relevant; then one relevant tied with two others; then the last relevant."""
    counts = GlobalCounts(np.array([1, 2, 3]), np.array([1, 4, 5]))
    assert uap(counts) == pytest.approx((1 / 1 + 2 / 4 + 3 / 5) / 3)


def loop_gap(predictions: dict[str, tuple[float, bool]], with_relevant: set[str]) -> float:
    """Walk down the ranking as GLDv2 defines it: by score, equal scores by the query's id."""
    total, right = 0.0, 0
    ranking = sorted(sorted(predictions), key=lambda query: -predictions[query][0])
    for rank, query in enumerate(ranking, 1):
        if predictions[query][1]:
            right += 1
            total += right / rank
    return total / len(with_relevant)


@given(rows=st.lists(st.tuples(st.integers(-3, 3), st.sampled_from(["hit", "miss", "empty", "none"]))))
def test_gap_is_gldv2s(rows: list[tuple[int, str]]) -> None:
    """``empty`` has nothing to find, ``none`` no candidate to predict."""
    queries = {f"{i:03}": row for i, row in enumerate(rows)}
    with_relevant = {query for query, (_, kind) in queries.items() if kind != "empty"}
    value = gap(
        np.array([-np.inf if kind == "none" else score for score, kind in rows], np.float64),
        np.array([kind == "hit" for _, kind in rows], np.bool_),
        np.array([kind != "empty" for _, kind in rows], np.bool_),
    )
    if with_relevant:
        predictions = {
            q: (float(score), kind == "hit") for q, (score, kind) in queries.items() if kind != "none"
        }
        assert value == pytest.approx(loop_gap(predictions, with_relevant), abs=1e-12)
    else:
        assert np.isnan(value)


def test_gap_is_uap_of_the_top_predictions_where_each_query_has_one_relevant_item() -> None:
    """Listed pairs, best first: right, wrong, right; a fourth relevant pair was no top prediction."""
    listed = GlobalCounts(np.array([1, 2, 4]), np.array([1, 3, 10**9]))
    value = gap(
        np.array([0.9, 0.8, 0.7, 0.6]),
        np.array([True, False, True, False]),
        np.array([True, True, True, True]),
    )
    assert value == pytest.approx(uap(listed), abs=1e-8)


def test_gap_is_not_uap_where_a_query_has_several_relevant_items() -> None:
    """One query finds the first of its two relevant items, the other one comes last of four pairs."""
    assert gap(np.array([0.9]), np.array([True]), np.array([True])) == 1
    assert uap(GlobalCounts(np.array([1, 2]), np.array([1, 4]))) == 0.75


def isc_operating_point(scores: list[int], relevant: list[bool]) -> float:
    """Find DISC21's recall at 90 % precision row by row, relevant pairs last among equal scores."""
    best, hits = 0.0, 0
    for row, (_, is_relevant) in enumerate(
        sorted(zip(scores, relevant, strict=True), key=lambda p: (-p[0], p[1]))
    ):
        hits += is_relevant
        if hits / (row + 1) >= 0.9:
            best = max(best, hits / sum(relevant))
    return best


@given(pairs=st.lists(st.tuples(st.integers(0, 6), st.sampled_from([True] * 9 + [False])), min_size=1))
def test_recall_at_90_percent_precision_is_disc21s(pairs: list[tuple[int, bool]]) -> None:
    scores, relevant = (list(column) for column in zip(*pairs, strict=True))
    thresholds = sorted({score for score, is_relevant in pairs if is_relevant}, reverse=True)
    counts = GlobalCounts(
        np.array([sum(is_relevant and s >= t for s, is_relevant in pairs) for t in thresholds], np.int64),
        np.array([sum(s >= t for s in scores) for t in thresholds], np.int64),
    )
    if thresholds:
        assert recall_at_p90(counts) == pytest.approx(isc_operating_point(scores, relevant), abs=1e-12)
    else:
        assert np.isnan(recall_at_p90(counts))


def test_no_threshold_is_precise_enough() -> None:
    assert recall_at_p90(GlobalCounts(np.array([1, 2]), np.array([2, 3]))) == 0
