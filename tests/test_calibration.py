"""Thresholds: against plain loops, and whether promises are kept on made-up queries."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import precision_recall_curve

from ssl_retrieval.calibration import (
    BestMatches,
    calibration_table,
    lower_bound,
    precision_curve,
    reaching,
    sure,
)
from ssl_retrieval.errors import UserError


def made_up(count: int, seed: int, steepness: float = 8.0) -> BestMatches:
    """Higher scores are right more often: with probability 1 / (1 + exp(-steepness * score))."""
    draw = np.random.default_rng(seed)
    scores = draw.uniform(-0.5, 0.5, count)
    right = draw.random(count) < 1 / (1 + np.exp(-steepness * scores))
    return BestMatches(scores, right, right | (draw.random(count) < 0.5))


def true_precision(threshold: float, steepness: float = 8.0) -> float:
    scores = np.linspace(threshold, 0.5, 20_001)
    return float((1 / (1 + np.exp(-steepness * scores))).mean())


def test_the_curve_is_scikit_learns() -> None:
    matches = made_up(300, 1)
    matches = BestMatches(matches.scores.round(2), matches.right, matches.right)
    curve = precision_curve(matches)
    precision, recall, thresholds = precision_recall_curve(matches.right, matches.scores)
    # Theirs ends with a point for no threshold.
    np.testing.assert_allclose(curve["threshold"], thresholds[::-1])
    np.testing.assert_allclose(curve["precision"], precision[:-1][::-1])
    np.testing.assert_allclose(curve["recall"], recall[:-1][::-1])
    assert curve["accepted"].iloc[-1] == 1


@settings(deadline=None)
@given(st.integers(1, 30), st.sampled_from([0.3, 0.6, 0.9]), st.integers(0, 999))
def test_reaching_is_the_lowest_of_all_that_reach_it(count: int, wanted: float, seed: int) -> None:
    matches = made_up(count, seed)
    good = [
        threshold
        for threshold in matches.scores.tolist()
        if matches.right[matches.scores >= threshold].mean() >= wanted
    ]
    assert reaching(matches, wanted) == pytest.approx(min(good, default=np.nan), nan_ok=True)


def test_the_bound_is_scipys() -> None:
    for right, total in ((0, 5), (3, 5), (5, 5), (97, 100)):
        exact = stats.binomtest(right, total, alternative="greater").proportion_ci(0.99, method="exact")
        found = lower_bound(np.array([right]), np.array([total]), 0.01)
        assert found[0] == pytest.approx(exact.low)


def test_the_sure_threshold_keeps_its_promise_and_the_other_does_not() -> None:
    kept = {"sure": 0, "reaches": 0}
    for seed in range(200):
        matches = made_up(400, seed)
        thresholds = {"sure": sure(matches, 0.85), "reaches": reaching(matches, 0.85)}
        for kind, threshold in thresholds.items():
            kept[kind] += bool(np.isnan(threshold) or true_precision(threshold) >= 0.85)
    assert kept["sure"] >= 190
    assert kept["reaches"] < 130


def test_more_queries_make_the_sure_threshold_lower() -> None:
    few, many = sure(made_up(2_000, 3), 0.9), sure(made_up(40_000, 3), 0.9)
    assert true_precision(many) == pytest.approx(0.9, abs=0.02)
    assert many < few
    assert np.isnan(sure(made_up(10, 3), 0.9))


def test_what_is_shown_belongs_to_the_other_half() -> None:
    # Right on one half and wrong on the other: the numbers must show the latter.
    draw = np.random.default_rng(7).permutation(400)
    right = np.zeros(400, np.bool_)
    right[np.array_split(draw, 2)[0]] = True
    matches = BestMatches(np.linspace(0, 1, 400), right, np.ones(400, np.bool_))
    table = calibration_table(matches, [0.9], seed=7)
    assert table["kind"].tolist() == ["reaches", "sure"]
    assert (table["precision"] == 0).all()
    assert (table["accepted"] > 0.9).any()


def test_unanswerable_queries_count_as_wrong_and_not_in_recall() -> None:
    matches = BestMatches(
        np.array([0.9, 0.8, 0.7, 0.6]),
        np.array([True, False, True, False]),
        np.array([True, False, True, True]),
    )
    curve = precision_curve(matches)
    np.testing.assert_allclose(curve["precision"], [1, 1 / 2, 2 / 3, 1 / 2])
    np.testing.assert_allclose(curve["recall"], [1 / 3, 1 / 3, 2 / 3, 2 / 3])


@pytest.mark.parametrize("wanted", [0.0, 1.0, 95.0])
def test_what_is_no_precision_is_refused(wanted: float) -> None:
    with pytest.raises(UserError, match=r"between 0 and 1, such as 0\.95"):
        calibration_table(made_up(50, 0), [wanted])


def test_too_few_queries_are_refused() -> None:
    with pytest.raises(UserError, match="at least 4 queries with candidates, not 3"):
        calibration_table(made_up(3, 0), [0.9])
