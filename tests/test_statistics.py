"""Intervals cover, tests keep their level, and degenerate samples stay quiet."""

import warnings

import numpy as np
import pytest
from scipy import stats

from ssl_retrieval.statistics import Interval, bootstrap_mean, holm, paired_test

NAN = float("nan")


@pytest.mark.parametrize("num_queries", [200, 5000])
def test_bootstrap_width_is_that_of_the_normal_approximation(num_queries: int) -> None:
    values = np.random.default_rng(0).normal(0.5, 0.2, num_queries)
    interval = bootstrap_mean(values)
    expected_width = 2 * 1.96 * values.std(ddof=1) / np.sqrt(num_queries)
    assert interval.high - interval.low == pytest.approx(expected_width, rel=0.15)
    assert interval.low < interval.mean < interval.high
    assert interval.mean == pytest.approx(values.mean())


def test_bootstrap_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        interval = bootstrap_mean(rng.exponential(1.0, 60), num_resamples=400, level=0.9)
        covered += interval.low <= 1.0 <= interval.high
    assert 0.82 <= covered / 200 <= 0.96


def test_higher_level_gives_a_wider_interval() -> None:
    values = np.random.default_rng(2).random(100)
    narrow, wide = bootstrap_mean(values, level=0.8), bootstrap_mean(values, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_queries_without_value_are_left_out() -> None:
    values = np.random.default_rng(3).random(50)
    padded = np.concatenate([values, np.full(30, NAN)])
    assert bootstrap_mean(padded) == bootstrap_mean(values)
    assert bootstrap_mean(padded).num_queries == 50


def test_same_seed_same_interval() -> None:
    values = np.random.default_rng(4).random(50)
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


@pytest.mark.parametrize("values", [[0.3], [0.3, NAN], [0.3] * 7, [0.3, 0.3, NAN]])
def test_one_or_equal_values_give_a_point_without_warning(values: list[float]) -> None:
    present = [value for value in values if value == value]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bootstrap_mean(np.array(values)) == Interval(0.3, 0.3, 0.3, len(present))


@pytest.mark.parametrize("values", [[], [NAN, NAN]])
def test_no_value_gives_nan_without_warning(values: list[float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interval = bootstrap_mean(np.array(values, np.float64))
        difference = paired_test(np.array(values, np.float64), np.array(values, np.float64))
    assert np.isnan([interval.mean, interval.low, interval.high, difference.mean, difference.p_value]).all()
    assert interval.num_queries == difference.num_queries == 0


def test_p_values_are_uniform_when_nothing_differs() -> None:
    rng = np.random.default_rng(5)
    p_values = [
        paired_test(rng.random(40), rng.random(40), seed=seed, num_resamples=500).p_value
        for seed in range(300)
    ]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert 0.02 <= np.mean(np.array(p_values) < 0.05) <= 0.09


def test_p_value_agrees_with_scipy() -> None:
    rng = np.random.default_rng(6)
    a, b = rng.normal(0.15, 1, 120), rng.normal(0, 1, 120)
    expected = stats.permutation_test(
        (a - b,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(0)
    ).pvalue
    assert paired_test(a, b, num_resamples=20_000).p_value == pytest.approx(expected, abs=0.015)


def test_p_value_of_a_tiny_sample_is_that_of_all_sign_patterns() -> None:
    """Three equal gains: 2 of 8 sign patterns are as extreme; the values make rounding matter."""
    a, b = np.array([0.1, 0.2, 0.3]), np.zeros(3)
    assert paired_test(a, b, num_resamples=50_000).p_value == pytest.approx(2 / 8, abs=0.01)


def test_clear_effect_reaches_the_smallest_p_value() -> None:
    rng = np.random.default_rng(7)
    b = rng.random(100)
    result = paired_test(b + rng.normal(0.3, 0.1, 100), b, num_resamples=999)
    assert result.p_value == 1 / 1000
    assert 0.25 < result.low < result.mean < result.high < 0.35


def test_pairing_uses_only_queries_that_both_have() -> None:
    a = np.array([0.9, NAN, 0.5, 0.7])
    b = np.array([0.5, 0.1, NAN, 0.5])
    result = paired_test(a, b)
    assert result.num_queries == 2
    assert result.mean == pytest.approx(0.3)


def test_swapping_the_two_mirrors_the_result() -> None:
    rng = np.random.default_rng(8)
    a, b = rng.random(64), rng.random(64)
    forward, backward = paired_test(a, b), paired_test(b, a)
    assert forward.mean == pytest.approx(-backward.mean)
    assert forward.low == pytest.approx(-backward.high)
    assert forward.p_value == backward.p_value


def test_no_difference_at_all() -> None:
    values = np.random.default_rng(9).random(20)
    result = paired_test(values, values)
    assert (result.mean, result.low, result.high, result.p_value) == (0, 0, 0, 1)


def test_batches_do_not_change_the_p_value(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(10)
    a, b = rng.random(33), rng.random(33)
    monkeypatch.setattr("ssl_retrieval.statistics.BATCH_VALUES", 33 * 7)
    in_small_batches = paired_test(a, b, num_resamples=2000).p_value
    monkeypatch.undo()
    assert in_small_batches == pytest.approx(paired_test(a, b, num_resamples=2000).p_value, abs=0.04)


def test_unpaired_lengths_are_refused() -> None:
    with pytest.raises(AssertionError):
        paired_test(np.zeros(3), np.zeros(4))


def test_holm_by_hand() -> None:
    """Sorted .005 .01 .03 .04 times 4 3 2 1 = .02 .03 .06 .04, made non-decreasing: .02 .03 .06 .06."""
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])


def test_holm_stops_at_one_and_skips_what_was_not_tested() -> None:
    np.testing.assert_allclose(holm([0.9, NAN, 0.6]), [1.0, NAN, 1.0])
    np.testing.assert_allclose(holm([0.01, NAN]), [0.01, NAN])
    assert holm([]).shape == (0,)
