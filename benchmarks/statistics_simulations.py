"""How often intervals cover and tests raise a false alarm, on made-up data whose truth is known.

    python benchmarks/statistics_simulations.py

Two tables for docs/statistics.md, in two CPU minutes. The first: queries of a class share a part of their
score; an interval is right when it holds the mean over all classes that could have been. The second: two
methods that are the same, each trained from a few seeds; whatever is called a difference is a false alarm.
"""

import numpy as np

from ssl_retrieval.seed_variance import difference_over_seeds
from ssl_retrieval.statistics import bootstrap_mean, paired_test
from ssl_retrieval.types import FloatArray

TRIALS = 400
PER_CLASS = 10


def coverage(num_classes: int, rng: np.random.Generator) -> tuple[float, float]:
    """Share of 95 % intervals that hold the truth: resampling queries, and classes."""
    groups = np.repeat(np.arange(num_classes), PER_CLASS)
    hits = np.zeros(2)
    for _ in range(TRIALS):
        values = rng.normal(0, 1, num_classes)[groups] + rng.normal(0, 1, len(groups))
        for i, used in enumerate((None, groups)):
            interval = bootstrap_mean(values, num_resamples=500, groups=used)
            hits[i] += interval.low <= 0 <= interval.high
    queries, classes = (hits / TRIALS).tolist()
    return queries, classes


def trained(hardness: FloatArray, num_seeds: int, spread: float, rng: np.random.Generator) -> FloatArray:
    """Per-query scores of some seeds of one method."""
    shape = (num_seeds, len(hardness))
    return hardness + rng.normal(0, spread, (num_seeds, 1)) + rng.normal(0, 0.1, shape)


def false_alarms(num_seeds: int, spread: float, rng: np.random.Generator) -> tuple[float, float, float]:
    """Share of p < 0.05: a seed against a seed, percentiles over seeds and queries, and `seed_variance`."""
    alarms = np.zeros(3)
    for trial in range(TRIALS):
        hardness = rng.normal(0.5, 0.2, 400)
        a, b = (trained(hardness, num_seeds, spread, rng) for _ in range(2))
        alarms[0] += paired_test(a[0], b[0], seed=trial, num_resamples=500).p_value < 0.05
        alarms[1] += not _percentiles_hold_zero(a, b, rng)
        alarms[2] += difference_over_seeds(a, b).p_value < 0.05
    single, percentile, ours = (alarms / TRIALS).tolist()
    return single, percentile, ours


def _percentiles_hold_zero(a: FloatArray, b: FloatArray, rng: np.random.Generator) -> bool:
    num_seeds, num_queries = a.shape
    means = []
    for _ in range(200):
        queries = rng.integers(0, num_queries, num_queries)
        ours, theirs = (side[rng.integers(0, num_seeds, num_seeds)] for side in (a, b))
        means.append(float((ours.mean(axis=0) - theirs.mean(axis=0))[queries].mean()))
    low, high = np.percentile(means, [2.5, 97.5])
    return bool(low <= 0 <= high)


def main() -> None:
    """Print both tables."""
    rng = np.random.default_rng(0)
    print("| classes | resampling queries covers | resampling classes covers |\n| --: | --: | --: |")
    for num_classes in (5, 10, 20, 40, 80):
        queries, classes = coverage(num_classes, rng)
        print(f"| {num_classes} | {queries:.0%} | {classes:.0%} |")
    print("\n| seeds each | spread of seeds | one seed against one | percentiles | ours |")
    print("| --: | --: | --: | --: | --: |")
    for num_seeds in (2, 3, 5):
        for spread in (0.0, 0.005, 0.01, 0.03):
            rates = false_alarms(num_seeds, spread, rng)
            print(f"| {num_seeds} | {spread} | {' | '.join(f'{rate:.0%}' for rate in rates)} |")


if __name__ == "__main__":
    main()
