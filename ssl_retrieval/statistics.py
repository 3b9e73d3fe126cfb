"""How sure a mean over queries is, and whether two representations really differ."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ssl_retrieval.types import FloatArray

# Resamples are drawn in batches of about this many values: 32 MiB of float64.
BATCH_VALUES = 2**22


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
    """

    mean: float
    low: float
    high: float
    p_value: float
    num_queries: int


def bootstrap_mean(
    values: FloatArray, num_resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Give the mean with its percentile bootstrap interval, resampling queries.

    Args:
        values: float64 [Q]; NaN = the query has no value and is left out.
        num_resamples: How many resamples are drawn.
        seed: Same seed, same interval.
        level: Coverage, e.g. 0.95.

    Returns:
        The interval; of zero width when there is one query or all values are equal.

    >>> bootstrap_mean(np.array([0.5, np.nan, 0.5]))
    Interval(mean=0.5, low=0.5, high=0.5, num_queries=2)
    """
    assert values.ndim == 1
    present = values[~np.isnan(values)]
    if len(present) == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    if np.ptp(present) == 0:
        only = float(present[0])
        return Interval(only, only, only, len(present))
    interval = stats.bootstrap(
        (present,),
        np.mean,
        n_resamples=num_resamples,
        batch=max(1, BATCH_VALUES // len(present)),
        vectorized=True,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(present.mean()), float(interval.low), float(interval.high), len(present))


def paired_test(
    a: FloatArray, b: FloatArray, seed: int = 0, num_resamples: int = 10_000, level: float = 0.95
) -> PairedDifference:
    """Test whether two representations differ on the same queries.

    The interval is the bootstrap's. The p-value is that of a sign-flip permutation test: if the two were
    interchangeable, each query's difference could as well have had the other sign.

    Args:
        a: float64 [Q], per-query values of the first; NaN = no value.
        b: float64 [Q], the same queries in the same order, of the second.
        seed: Same seed, same result.
        num_resamples: How many sign patterns are drawn; the smallest p-value is 1 / (this + 1).
        level: Coverage of the interval.

    Returns:
        The mean of ``a - b`` with interval and p-value.
    """
    assert a.shape == b.shape
    differences = a - b
    interval = bootstrap_mean(differences, seed=seed, level=level)
    p_value = _sign_flip_p_value(differences[~np.isnan(differences)], num_resamples, seed)
    return PairedDifference(interval.mean, interval.low, interval.high, p_value, interval.num_queries)


def _sign_flip_p_value(differences: FloatArray, num_resamples: int, seed: int) -> float:
    num_queries = len(differences)
    if num_queries == 0:
        return np.nan
    rng = np.random.default_rng(seed)
    total = differences.sum()
    # Flips that only reorder the same sum must count as equal to it in spite of rounding.
    threshold = abs(total) - 1e-12 * np.abs(differences).sum()
    batch = max(1, BATCH_VALUES // num_queries)
    num_as_extreme = 0
    # One random bit per sign: some thirty times faster than scipy.stats.permutation_test.
    for start in range(0, num_resamples, batch):
        shape = (min(batch, num_resamples - start), -(-num_queries // 8))
        kept = np.unpackbits(rng.integers(0, 256, shape, np.uint8), axis=1, count=num_queries)
        flipped_totals = 2 * (kept @ differences) - total
        num_as_extreme += int((np.abs(flipped_totals) >= threshold).sum())
    return (num_as_extreme + 1) / (num_resamples + 1)


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
