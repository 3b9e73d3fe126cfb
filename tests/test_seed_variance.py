"""Several seeds: the variance is the hierarchical bootstrap's, and chance makes no difference real."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_retrieval.seed_variance import difference_over_seeds, mean_over_seeds, seed_means
from ssl_retrieval.statistics import paired_test
from ssl_retrieval.types import FloatArray


def trained(rng: np.random.Generator, hardness: FloatArray, num_seeds: int, spread: float) -> FloatArray:
    """Per-query values of some seeds of one method: hardness of the query, luck of the seed, and both."""
    luck = rng.normal(0, spread, (num_seeds, 1))
    return 0.5 + hardness + luck + rng.normal(0, 0.05, (num_seeds, len(hardness)))


def test_variance_is_that_of_the_hierarchical_bootstrap() -> None:
    rng = np.random.default_rng(0)
    values = trained(rng, rng.normal(0, 0.2, 150), 40, 0.03)
    groups = np.repeat(np.arange(50), 3)
    members = groups.reshape(50, 3)
    rows = np.arange(150).reshape(50, 3)
    assert (groups[rows] == members).all()
    means = []
    for _ in range(2000):
        queries = rows[rng.integers(0, 50, 50)].ravel()
        means.append(values[rng.integers(0, 40, 40)][:, queries].mean())

    interval = mean_over_seeds(values, groups)

    assert interval.mean == pytest.approx(values.mean())
    assert interval.num_queries == 150
    assert (interval.high - interval.low) / 2 == pytest.approx(2.0 * np.std(means), rel=0.08)


@pytest.mark.parametrize("num_seeds", [2, 3])
@pytest.mark.parametrize("spread", [0.0, 0.02, 0.1])
def test_two_methods_that_differ_by_seed_only_are_a_tie(num_seeds: int, spread: float) -> None:
    """At most one in twenty may be called real; single seeds against each other are, far more often."""
    rng = np.random.default_rng(num_seeds)
    real, single = 0, 0
    for _ in range(300):
        hardness = rng.normal(0, 0.2, 200)
        a, b = (trained(rng, hardness, num_seeds, spread) for _ in range(2))
        real += difference_over_seeds(a, b).p_value < 0.05
        single += difference_over_seeds(a[:1], b[:1]).p_value < 0.05
    assert real / 300 <= 0.085
    if spread:
        assert single / 300 > 0.4


def test_intervals_over_seeds_cover() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(300):
        interval = mean_over_seeds(trained(rng, rng.normal(0, 0.2, 100), 3, 0.03))
        covered += interval.low <= 0.5 <= interval.high
    assert covered / 300 >= 0.93


def test_a_real_difference_is_found_in_spite_of_seeds() -> None:
    rng = np.random.default_rng(4)
    hardness = rng.normal(0, 0.2, 300)
    a, b = trained(rng, hardness, 3, 0.005) + 0.1, trained(rng, hardness, 3, 0.005)
    result = difference_over_seeds(a, b)
    assert result.p_value < 0.01
    assert result.low < 0.1 < result.high
    assert result.detectable < 0.1


def test_a_single_seed_on_each_side_gives_the_standard_error_of_queries() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.random(400), rng.random(400)
    over_seeds, plain = difference_over_seeds(a[None], b[None]), paired_test(a, b)
    assert over_seeds.mean == pytest.approx(plain.mean)
    assert over_seeds.detectable == pytest.approx(plain.detectable)
    assert over_seeds.p_value == pytest.approx(plain.p_value, abs=0.02)
    assert over_seeds.low == pytest.approx(plain.low, abs=0.005)


def test_two_seeds_of_unlike_means_by_hand() -> None:
    """Constant over queries: the standard error is that of two means .01 apart, .005."""
    a = np.repeat([[0.50], [0.51]], 30, axis=1)
    result = difference_over_seeds(a, np.full((1, 30), 0.4))
    assert result.mean == pytest.approx(0.105)
    # One degree of freedom: the quantile of .975 is 12.706.
    assert result.high - result.mean == pytest.approx(12.706 * 0.005, rel=1e-3)


def test_queries_without_value_and_equal_seeds() -> None:
    values = np.array([[0.5, np.nan, 0.7, 0.1], [0.5, np.nan, 0.7, 0.1]])
    interval = mean_over_seeds(values)
    assert interval.num_queries == 3
    assert interval.mean == pytest.approx(1.3 / 3)
    same = difference_over_seeds(values, values)
    assert (same.mean, same.low, same.high, same.p_value, same.num_queries) == (0, 0, 0, 1, 3)
    nothing = difference_over_seeds(np.full((2, 3), np.nan), np.ones((1, 3)))
    assert nothing.num_queries == 0
    assert np.isnan(nothing.p_value)
    assert np.isnan(mean_over_seeds(np.full((2, 3), np.nan)).low)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), num_seeds=st.integers(2, 4), num_queries=st.integers(3, 30))
def test_swapping_sides_mirrors_the_result(seed: int, num_seeds: int, num_queries: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random((num_seeds, num_queries)), rng.random((1, num_queries))
    groups = rng.integers(0, 3, num_queries)
    groups[:2] = [0, 1]
    forward, backward = difference_over_seeds(a, b, groups), difference_over_seeds(b, a, groups)
    assert forward.mean == pytest.approx(-backward.mean)
    assert forward.low == pytest.approx(-backward.high)
    assert forward.p_value == pytest.approx(backward.p_value)
    assert 0 <= forward.p_value <= 1
    assert forward.low <= forward.mean <= forward.high
    np.testing.assert_allclose(seed_means(a), a.mean(axis=1))
