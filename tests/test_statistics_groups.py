"""Groups of queries resampled as a whole: intervals, both tests, and what a task can tell apart."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from ssl_retrieval.statistics import (
    bootstrap_mean,
    expanded_level,
    holm,
    minimum_detectable,
    paired_test,
    smallest_p_value,
    units_of,
)
from ssl_retrieval.types import FloatArray, IntArray


def clustered(
    rng: np.random.Generator, num_groups: int, size: int, between: float, within: float
) -> tuple[FloatArray, IntArray]:
    """Values around zero that share a part within each group."""
    groups = np.repeat(np.arange(num_groups), size)
    values = rng.normal(0, between, num_groups)[groups] + rng.normal(0, within, len(groups))
    return values, groups


def unequal(seed: int = 0) -> tuple[FloatArray, IntArray]:
    """Sixty groups of one to nine values that depend on the group."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(60), rng.integers(1, 10, 60))
    return rng.normal(0.5, 0.2, 60)[groups] + rng.normal(0, 0.05, len(groups)), groups


def test_cluster_bootstrap_agrees_with_a_loop_that_draws_whole_groups() -> None:
    values, groups = unequal()
    members = [values[groups == g] for g in range(60)]
    rng = np.random.default_rng(1)
    means = [np.concatenate([members[i] for i in rng.integers(0, 60, 60)]).mean() for _ in range(4000)]
    low, high = np.quantile(means, [0.5 - expanded_level(0.95, 60) / 2, 0.5 + expanded_level(0.95, 60) / 2])

    interval = bootstrap_mean(values, num_resamples=4000, groups=groups)

    width = high - low
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(low, abs=0.06 * width)
    assert interval.high == pytest.approx(high, abs=0.06 * width)
    assert units_of(values, groups).standard_error == pytest.approx(np.std(means), rel=0.06)


def test_groups_of_one_are_plain_queries() -> None:
    values = np.random.default_rng(2).random(80)
    other = np.random.default_rng(3).random(80)
    alone = np.random.default_rng(4).permutation(80)
    by_number = np.argsort(alone)

    assert bootstrap_mean(values[by_number], groups=np.arange(80)) == bootstrap_mean(values[by_number])
    assert paired_test(values[by_number], other[by_number], groups=np.arange(80)) == paired_test(
        values[by_number], other[by_number]
    )
    assert units_of(values, None).standard_error == pytest.approx(stats.sem(values))


@pytest.mark.parametrize("num_groups", [10, 20, 80])
def test_group_intervals_cover_where_those_of_queries_do_not(num_groups: int) -> None:
    rng = np.random.default_rng(num_groups)
    covered = {"groups": 0, "queries": 0}
    for _ in range(200):
        values, groups = clustered(rng, num_groups, size=8, between=1.0, within=0.7)
        for name, used in (("groups", groups), ("queries", None)):
            interval = bootstrap_mean(values, num_resamples=400, groups=used)
            covered[name] += interval.low <= 0 <= interval.high
    assert 0.90 <= covered["groups"] / 200 <= 0.99
    assert covered["queries"] / 200 < 0.75


@pytest.mark.parametrize("test", ["sign_flip", "bootstrap"])
def test_p_values_are_uniform_under_the_null_only_when_groups_stay_together(test: str) -> None:
    rng = np.random.default_rng(5)
    by_group, by_query = [], []
    for seed in range(150):
        values, groups = clustered(rng, 30, size=6, between=1.0, within=0.7)
        zero = np.zeros_like(values)
        arguments = {"seed": seed, "num_resamples": 400, "test": test}
        by_group.append(paired_test(values, zero, groups=groups, **arguments).p_value)  # type: ignore[arg-type]
        by_query.append(paired_test(values, zero, **arguments).p_value)  # type: ignore[arg-type]
    assert stats.kstest(by_group, "uniform").pvalue > 0.01
    assert 0.02 <= np.mean(np.array(by_group) < 0.05) <= 0.1
    assert np.mean(np.array(by_query) < 0.05) > 0.2


def test_sign_flips_of_groups_agree_with_scipy_over_all_patterns() -> None:
    rng = np.random.default_rng(6)
    values, groups = clustered(rng, 12, size=5, between=0.3, within=0.3)
    values += 0.12
    sums = np.bincount(groups, weights=values)
    exact = stats.permutation_test((sums,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue

    found = paired_test(values, np.zeros_like(values), groups=groups, num_resamples=40_000).p_value

    assert 0.01 < exact < 0.5
    assert found == pytest.approx(exact, abs=0.008)


def test_sign_flips_of_four_groups_by_hand() -> None:
    groups = np.array([3, 3, 8, 8, 8, 1, 0])
    values = np.array([0.3, -0.1, 0.2, 0.2, 0.1, 0.05, -0.02])
    sums = np.array([-0.02, 0.05, 0.2, 0.5])
    patterns = np.array(list(itertools.product([-1, 1], repeat=4)))
    exact = np.mean(np.abs(patterns @ sums) >= abs(sums.sum()) - 1e-12)
    found = paired_test(values, np.zeros(7), groups=groups, num_resamples=60_000).p_value
    assert found == pytest.approx(exact, abs=0.01)


def test_bootstrap_p_value_agrees_with_a_loop_and_with_the_normal_one() -> None:
    values, groups = unequal(7)
    values = values - values.mean() + 0.04
    members = [values[groups == g] for g in range(60)]
    rng = np.random.default_rng(8)
    means = [np.concatenate([members[i] for i in rng.integers(0, 60, 60)]).mean() for _ in range(3000)]
    by_loop = np.mean(np.abs(np.array(means) - values.mean()) >= values.mean())

    found = paired_test(values, np.zeros_like(values), groups=groups, test="bootstrap").p_value

    assert found == pytest.approx(by_loop, abs=0.03)
    assert found == pytest.approx(2 * stats.norm.sf(0.04 / units_of(values, groups).standard_error), abs=0.04)


def test_bootstrap_test_of_what_never_differs_or_always_does() -> None:
    assert paired_test(np.ones(20), np.ones(20), test="bootstrap").p_value == 1
    clear = paired_test(np.ones(20), np.zeros(20), test="bootstrap", num_resamples=99)
    assert clear.p_value == 1 / 100


def test_one_group_says_nothing() -> None:
    values = np.random.default_rng(9).random(10)
    result = paired_test(values, np.zeros(10), groups=np.zeros(10, np.int64))
    assert (result.low, result.high) == (result.mean, result.mean)
    assert result.p_value == 1
    assert np.isnan(result.detectable)


def test_queries_without_value_leave_their_groups() -> None:
    values, groups = unequal(10)
    padded = np.concatenate([values, np.full(9, np.nan)])
    padded_groups = np.concatenate([groups, np.arange(50, 59)])
    assert bootstrap_mean(padded, groups=padded_groups) == bootstrap_mean(values, groups=groups)


@settings(max_examples=40, deadline=None)
@given(
    values=arrays(np.float64, st.integers(2, 40), elements=st.floats(0, 1, width=16)),
    num_groups=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_rules_that_hold_for_all_inputs(values: FloatArray, num_groups: int, seed: int) -> None:
    groups = np.random.default_rng(seed).integers(0, num_groups, len(values))
    relabelled = np.random.default_rng(seed).permutation(num_groups)[groups]
    zero = np.zeros_like(values)
    interval = bootstrap_mean(values, num_resamples=100, groups=groups)
    result = paired_test(values, zero, num_resamples=100, groups=groups)
    mirrored = paired_test(zero, values, num_resamples=100, groups=groups)
    units = units_of(values, groups)

    # A percentile may lie beyond the mean of a very lopsided sample, but never beyond the values.
    assert values.min() - 1e-9 <= interval.low <= interval.high <= values.max() + 1e-9
    assert interval.mean == pytest.approx(values.mean(), abs=1e-12)
    assert 0 < result.p_value <= 1
    assert result.p_value == mirrored.p_value
    assert units.sizes.sum() == len(values)
    same = units_of(values, relabelled).standard_error
    np.testing.assert_allclose(units.standard_error, same, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(p=st.lists(st.floats(0, 1), max_size=12))
def test_holm_agrees_with_its_definition(p: list[float]) -> None:
    """The k-th smallest of m is multiplied by m - k + 1; none may be below a smaller one's."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    expected, floor = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        floor = max(floor, min(1.0, (len(p) - rank) * p[i]))
        expected[i] = floor
    np.testing.assert_allclose(holm(p), expected)


def test_detectable_difference_is_found_in_four_of_five_cases() -> None:
    rng = np.random.default_rng(11)
    between, within, num_groups, size = 0.05, 0.1, 40, 5
    error = np.sqrt(between**2 / num_groups + within**2 / (num_groups * size))
    difference = minimum_detectable(error, num_groups - 1)
    found, said = 0, []
    for seed in range(250):
        values, groups = clustered(rng, num_groups, size, between, within)
        result = paired_test(
            values + difference, np.zeros_like(values), seed=seed, num_resamples=500, groups=groups
        )
        found += result.p_value < 0.05
        said.append(result.detectable)
    assert 0.73 <= found / 250 <= 0.87
    assert np.mean(said) == pytest.approx(difference, rel=0.05)


def test_detectable_difference_by_hand() -> None:
    assert minimum_detectable(1.0, 10**7) == pytest.approx(1.959964 + 0.841621, abs=1e-5)
    assert minimum_detectable(1.0, 10) == pytest.approx(2.2281 + 0.8791, abs=1e-4)
    assert np.isnan(minimum_detectable(1.0, 0))


def test_smallest_p_value_is_reached_and_not_passed() -> None:
    """Six equal gains: of 64 sign patterns two are as extreme."""
    found = paired_test(np.ones(6), np.zeros(6), num_resamples=40_000).p_value
    assert found == pytest.approx(smallest_p_value(6), abs=0.004)
    assert smallest_p_value(100) == 1 / 10_001
