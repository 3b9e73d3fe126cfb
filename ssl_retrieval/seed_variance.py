"""Means and differences of methods that were trained from several seeds.

A method trained once more scores differently, on the same queries. A claim about the method, not about one
trained network, must allow for both: the queries (or groups of them) and the seeds are drawn. The variance is
that of the hierarchical bootstrap that resamples both (Owen, Annals of Applied Statistics 1, 2007), in closed
form; the quantile is Student's with Satterthwaite's degrees of freedom (Biometrics Bulletin 2, 1946), because
percentiles over two or three seeds know no tails: they call five to six times too many differences real.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from ssl_retrieval.statistics import Interval, PairedDifference, minimum_detectable, units_of
from ssl_retrieval.types import FloatArray, IntArray


@dataclass(frozen=True)
class Spread:
    """The standard error of a mean over queries and seeds.

    Attributes:
        standard_error: NaN for a single unit of queries.
        degrees_of_freedom: Of Student's distribution.
    """

    standard_error: float
    degrees_of_freedom: float

    def half_width(self, level: float) -> float:
        """Half the width of the interval that covers ``level``."""
        return float(stats.t.ppf((1 + level) / 2, self.degrees_of_freedom) * self.standard_error)


def mean_over_seeds(values: FloatArray, groups: IntArray | None = None, level: float = 0.95) -> Interval:
    """Give the mean over seeds and queries with its interval.

    Args:
        values: float64 [S, Q], at least two seeds; NaN where a query has no value, for all seeds alike.
        groups: int64 [Q]: queries that are drawn together; None = each for itself.
        level: Coverage.

    Returns:
        The interval; NaN ends when there is one unit of queries.
    """
    mean, count = _mean(values.mean(axis=0))
    half = _spread(values.mean(axis=0), [values], groups).half_width(level) if count else np.nan
    return Interval(mean, mean - half, mean + half, count)


def difference_over_seeds(
    a: FloatArray, b: FloatArray, groups: IntArray | None = None, level: float = 0.95
) -> PairedDifference:
    """Test whether two methods differ, of which at least one has several seeds.

    A side with a single seed is taken as it is: the answer is then about that one network.

    Args:
        a: float64 [S, Q], per-query values of each seed of the first; NaN where a query has no value.
        b: float64 [T, Q], likewise of the second, the same queries in the same order.
        groups: int64 [Q]: queries that are drawn together; None = each for itself.
        level: Coverage of the interval.

    Returns:
        The mean of ``a - b`` over seeds and queries, with interval and two-sided p-value.
    """
    assert a.shape[1] == b.shape[1]
    differences = a.mean(axis=0) - b.mean(axis=0)
    mean, count = _mean(differences)
    if count == 0:
        return PairedDifference(np.nan, np.nan, np.nan, np.nan, 0)
    paired = ~np.isnan(differences)
    spread = _spread(
        differences[paired],
        [side[:, paired] for side in (a, b) if len(side) > 1],
        None if groups is None else groups[paired],
    )
    half = spread.half_width(level)
    error = spread.standard_error
    if mean == 0 and error == 0:
        p_value = 1.0
    else:
        with np.errstate(divide="ignore"):
            p_value = float(2 * stats.t.sf(np.abs(np.divide(mean, error)), spread.degrees_of_freedom))
    detectable = minimum_detectable(error, spread.degrees_of_freedom)
    return PairedDifference(mean, mean - half, mean + half, p_value, count, detectable)


def seed_means(values: FloatArray) -> FloatArray:
    """Give the mean over queries of each seed: float64 [S] of float64 [S, Q].

    >>> seed_means(np.array([[1.0, 0.0, np.nan], [1.0, 1.0, np.nan]])).tolist()
    [0.5, 1.0]
    """
    means: FloatArray = values[:, ~np.isnan(values).any(axis=0)].mean(axis=1)
    return means


def _mean(values: FloatArray) -> tuple[float, int]:
    present = values[~np.isnan(values)]
    return (float(present.mean()) if len(present) else np.nan), len(present)


def _spread(over_queries: FloatArray, sides: list[FloatArray], groups: IntArray | None) -> Spread:
    """Add the variance over queries and, of each side with several seeds, that over its seeds."""
    units = units_of(over_queries, groups)
    parts = [(units.standard_error**2, units.degrees_of_freedom)]
    for side in sides:
        means = seed_means(side)
        parts.append((float(means.var(ddof=1)) / len(means), len(means) - 1))
    variance = sum(part for part, _ in parts)
    if not variance > 0:
        return Spread(float(np.sqrt(variance)), units.degrees_of_freedom)
    return Spread(float(np.sqrt(variance)), variance**2 / sum(part**2 / df for part, df in parts if df))
