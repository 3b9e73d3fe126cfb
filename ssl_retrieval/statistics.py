"""How sure a mean over queries is, and whether two representations really differ.

What is resampled is a query, or, where ``groups`` are given, a group of queries (a class, an object) with
all its queries: then intervals and tests allow for queries that rise and fall together. `docs/statistics.md`
says what each number means and where it comes from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ssl_retrieval.types import FloatArray, IntArray

# Resamples are drawn in batches of about this many values: 32 MiB of float64.
BATCH_VALUES = 2**22
POWER = 0.8
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Interval:
    """A mean over queries with its confidence interval.

    Attributes:
        mean: Mean over the queries that have a value; NaN when none has.
        low: Lower end.
        high: Upper end.
        num_queries: How many queries have a value.
    """

    mean: float
    low: float
    high: float
    num_queries: int


@dataclass(frozen=True)
class PairedDifference:
    """The mean difference between two representations over the queries that both have.

    Attributes:
        mean: Mean of first minus second; NaN when they share no query.
        low: Lower end of its confidence interval.
        high: Upper end.
        p_value: Two-sided, paired; not adjusted for multiple comparisons.
        num_queries: How many queries were paired.
        detectable: The smallest true difference that a comparison like this finds in 4 of 5 cases (power
            0.8, p below 0.05); NaN when it cannot be said.
    """

    mean: float
    low: float
    high: float
    p_value: float
    num_queries: int
    detectable: float = float("nan")


@dataclass(frozen=True, eq=False)
class Units:
    """Values summed over what is resampled together.

    Attributes:
        sums: float64 [G], the sum of each unit's values.
        sizes: float64 [G], how many values it has.
    """

    sums: FloatArray
    sizes: FloatArray

    @property
    def mean(self) -> float:
        """The mean over all values, not over units: a large unit counts for more."""
        return float(self.sums.sum() / self.sizes.sum())

    @property
    def standard_error(self) -> float:
        """Standard error of `mean` (linearised ratio of two sums); NaN for fewer than two units."""
        count = len(self.sums)
        if count < 2:
            return float("nan")
        deviations = self.sums - self.mean * self.sizes
        return float(np.sqrt(count / (count - 1) * (deviations**2).sum()) / self.sizes.sum())

    @property
    def degrees_of_freedom(self) -> int:
        """Units minus one."""
        return len(self.sums) - 1


def units_of(values: FloatArray, groups: IntArray | None) -> Units:
    """Sum up values over groups.

    Args:
        values: float64 [Q]; NaN is left out.
        groups: int64 [Q]; None = each value is a unit of its own.

    >>> units_of(np.array([1.0, 2.0, np.nan, 4.0]), np.array([7, 7, 7, 9])).sums.tolist()
    [3.0, 4.0]
    """
    present = ~np.isnan(values)
    if groups is None:
        kept = values[present]
        return Units(kept, np.ones(len(kept)))
    assert groups.shape == values.shape
    unit = np.unique(groups[present], return_inverse=True)[1]
    sums: FloatArray = np.bincount(unit, weights=values[present]).astype(np.float64)
    return Units(sums, np.bincount(unit).astype(np.float64))


def bootstrap_mean(
    values: FloatArray,
    num_resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    groups: IntArray | None = None,
) -> Interval:
    """Give the mean with its percentile bootstrap interval, resampling queries or groups of them.

    Percentiles of the plain bootstrap are too narrow for few units. They are taken a little further out, by
    the ratio of Student's to the normal quantile (the "expanded percentile interval" of Hesterberg, The
    American Statistician 69, 2015); from some hundred units on it makes no difference.

    Args:
        values: float64 [Q]; NaN = the query has no value and is left out.
        num_resamples: How many resamples are drawn.
        seed: Same seed, same interval.
        level: Coverage, e.g. 0.95.
        groups: int64 [Q]: what is resampled as a whole (Field and Welsh, J. R. Stat. Soc. B 69, 2007);
            None = single queries.

    Returns:
        The interval; of zero width when all values are equal or there is one unit, of which nothing can be
        said.

    >>> bootstrap_mean(np.array([0.5, np.nan, 0.5]))
    Interval(mean=0.5, low=0.5, high=0.5, num_queries=2)
    """
    assert values.ndim == 1
    present = values[~np.isnan(values)]
    if len(present) == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    units = units_of(values, groups)
    count = len(units.sums)
    if np.ptp(present) == 0 or count == 1:
        only = float(present[0]) if np.ptp(present) == 0 else float(present.mean())
        return Interval(only, only, only, len(present))
    interval = stats.bootstrap(
        (units.sums, units.sizes),
        _mean_of_units,
        paired=True,
        n_resamples=num_resamples,
        batch=max(1, BATCH_VALUES // count),
        vectorized=True,
        confidence_level=expanded_level(level, count),
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(present.mean()), float(interval.low), float(interval.high), len(present))


def _mean_of_units(sums: FloatArray, sizes: FloatArray, axis: int = -1) -> FloatArray:
    mean: FloatArray = sums.sum(axis=axis) / sizes.sum(axis=axis)
    return mean


def expanded_level(level: float, count: int) -> float:
    """Give the level at which percentiles must be taken to cover ``level`` with ``count`` units.

    >>> round(expanded_level(0.95, 10), 4), round(expanded_level(0.95, 2000), 4)
    (0.9829, 0.9502)
    """
    quantile = stats.t.ppf((1 + level) / 2, count - 1) * np.sqrt(count / (count - 1))
    return float(1 - 2 * stats.norm.sf(quantile))


def paired_test(
    a: FloatArray,
    b: FloatArray,
    seed: int = 0,
    num_resamples: int = 10_000,
    level: float = 0.95,
    groups: IntArray | None = None,
    test: str = "sign_flip",
) -> PairedDifference:
    """Test whether two representations differ on the same queries.

    The interval is the bootstrap's. The p-value is, by default, that of a sign-flip permutation test: if the
    two were interchangeable, each query's difference (with ``groups``: the differences of a group, all
    together) could as well have had the other sign. ``bootstrap`` asks instead how often a resample lies as
    far from the observed mean as that lies from zero (both: Smucker et al., CIKM 2007).

    Args:
        a: float64 [Q], per-query values of the first; NaN = no value.
        b: float64 [Q], the same queries in the same order, of the second.
        seed: Same seed, same result.
        num_resamples: How many patterns are drawn; the smallest p-value is 1 / (this + 1).
        level: Coverage of the interval.
        groups: int64 [Q]: what is resampled as a whole; None = single queries.
        test: ``sign_flip`` or ``bootstrap``.

    Returns:
        The mean of ``a - b`` with interval and p-value.
    """
    assert a.shape == b.shape
    assert test in ("sign_flip", "bootstrap")
    differences = a - b
    interval = bootstrap_mean(differences, seed=seed, level=level, groups=groups)
    units = units_of(differences, groups)
    p_value = (_sign_flip_p_value if test == "sign_flip" else _bootstrap_p_value)(units, num_resamples, seed)
    return PairedDifference(
        interval.mean,
        interval.low,
        interval.high,
        p_value,
        interval.num_queries,
        minimum_detectable(units.standard_error, units.degrees_of_freedom),
    )


def _sign_flip_p_value(units: Units, num_resamples: int, seed: int) -> float:
    sums, count = units.sums, len(units.sums)
    if count == 0:
        return np.nan
    rng = np.random.default_rng(seed)
    total = sums.sum()
    # Flips that only reorder the same sum must count as equal to it in spite of rounding.
    threshold = abs(total) - 1e-12 * np.abs(sums).sum()
    batch = max(1, BATCH_VALUES // count)
    num_as_extreme = 0
    # One random bit per sign: some thirty times faster than scipy.stats.permutation_test.
    for start in range(0, num_resamples, batch):
        shape = (min(batch, num_resamples - start), -(-count // 8))
        kept = np.unpackbits(rng.integers(0, 256, shape, np.uint8), axis=1, count=count)
        flipped_totals = 2 * (kept @ sums) - total
        num_as_extreme += int((np.abs(flipped_totals) >= threshold).sum())
    return (num_as_extreme + 1) / (num_resamples + 1)


def _bootstrap_p_value(units: Units, num_resamples: int, seed: int) -> float:
    count = len(units.sums)
    if count == 0:
        return np.nan
    if count == 1 or not units.sums.any():
        return 1.0
    rng = np.random.default_rng(seed)
    mean = units.mean
    # A spread of zero leaves every resample at the observed mean, but for rounding.
    threshold = abs(mean) - 1e-12 * np.abs(units.sums).sum() / units.sizes.sum()
    batch = max(1, BATCH_VALUES // count)
    num_as_extreme = 0
    for start in range(0, num_resamples, batch):
        drawn = rng.integers(0, count, (min(batch, num_resamples - start), count))
        means = _mean_of_units(units.sums[drawn], units.sizes[drawn])
        num_as_extreme += int((np.abs(means - mean) >= threshold).sum())
    return (num_as_extreme + 1) / (num_resamples + 1)


def smallest_p_value(count: int, num_resamples: int = 10_000) -> float:
    """Give the smallest p-value that a sign-flip test of ``count`` units can have.

    Of ``2 ** count`` sign patterns two are the most extreme.

    >>> smallest_p_value(5)
    0.0625
    """
    return max(2.0 ** (1 - count), 1 / (num_resamples + 1))


def minimum_detectable(
    standard_error: float,
    degrees_of_freedom: float,
    power: float = POWER,
    significance: float = SIGNIFICANCE,
) -> float:
    """Give the true difference that a two-sided test finds with probability ``power``.

    It is ``(t(1 - significance / 2) + t(power)) * standard_error`` (Bloom, Evaluation Review 19, 1995): 2.8
    standard errors of the paired difference when there are many units.

    Args:
        standard_error: Of the mean paired difference.
        degrees_of_freedom: Units minus one; without any nothing can be said.
        power: Probability of finding it.
        significance: Level of the test.

    >>> round(minimum_detectable(0.01, 1000), 4)
    0.028
    """
    if not degrees_of_freedom > 0:
        return float("nan")
    quantiles = stats.t.ppf([1 - significance / 2, power], degrees_of_freedom)
    return float(quantiles.sum() * standard_error)


def holm(p_values: Sequence[float] | FloatArray) -> FloatArray:
    """Adjust p-values for several comparisons (Holm's step-down method).

    Args:
        p_values: One per comparison; NaN = not tested, and not counted.

    Returns:
        float64, adjusted, in the same order; at most 1.

    >>> holm([0.01, 0.04, 0.03]).round(4).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, np.float64)
    adjusted = np.full_like(p, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * p[order]), 1.0)
    return adjusted
