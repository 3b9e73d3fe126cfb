"""Reports of one method from several seeds -> one contender in a comparison."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ssl_retrieval.errors import UserError
from ssl_retrieval.representation import check_label
from ssl_retrieval.seed_variance import difference_over_seeds, mean_over_seeds
from ssl_retrieval.statistics import Interval, PairedDifference, bootstrap_mean, paired_test
from ssl_retrieval.types import FloatArray, IntArray, Report

SEED_OF = "seed_of"
"""Key of ``Report.representation``: the method of which this is one seed; missing or empty = none."""


@dataclass(frozen=True, eq=False)
class Contender:
    """What takes part in a comparison on one task: a report, or several seeds as one.

    Attributes:
        report: Its numbers; of several seeds their mean, query by query.
        seeds: The seeds' own reports; the report alone when there are no seeds.
    """

    report: Report
    seeds: tuple[Report, ...]

    @property
    def name(self) -> str:
        """The name under which it is compared."""
        return str(self.report.representation["name"])

    def values(self, metric: str) -> FloatArray:
        """Per-query values of each seed: float64 [S, Q]."""
        return np.stack([report.per_query[metric] for report in self.seeds])

    def interval(self, metric: str, groups: IntArray | None) -> Interval:
        """The mean of a per-query metric with its 95 % interval."""
        if len(self.seeds) == 1:
            return bootstrap_mean(self.report.per_query[metric], groups=groups)
        return mean_over_seeds(self.values(metric), groups)

    def minus(self, other: "Contender", metric: str, groups: IntArray | None, test: str) -> PairedDifference:
        """Test the difference to another, query by query; with the seeds' spread where there are seeds."""
        if len(self.seeds) == len(other.seeds) == 1:
            ours, theirs = self.report.per_query[metric], other.report.per_query[metric]
            return paired_test(ours, theirs, seed=0, groups=groups, test=test)
        return difference_over_seeds(self.values(metric), other.values(metric), groups)


def name_of(report: Report) -> str:
    """Give the name under which a report takes part: of its method if it is a seed, else its own."""
    return str(report.representation.get(SEED_OF) or report.representation["name"])


def contenders(reports: Sequence[Report]) -> list[Contender]:
    """Join the seeds of one method.

    Args:
        reports: On one task, about the same queries in the same order.

    Returns:
        In the order of their first report.

    Raises:
        UserError: A method has the name of another representation, or its seeds are of several families.
    """
    by_name: dict[str, list[Report]] = {}
    for report in reports:
        by_name.setdefault(name_of(report), []).append(report)
    return [_joined(name, seeds) for name, seeds in by_name.items()]


def _joined(name: str, seeds: list[Report]) -> Contender:
    first = seeds[0]
    if len(seeds) == 1:
        representation = first.representation | {"name": name}
        return Contender(replace(first, representation=representation), (first,))
    for report in seeds:
        if not report.representation.get(SEED_OF):
            raise UserError(
                f"{name!r} is both a representation and what other reports are seeds of: rename one"
            )
        if report.representation["family"] != first.representation["family"]:
            raise UserError(
                f"seeds of {name!r} are of the families {first.representation['family']!r} and "
                f"{report.representation['family']!r}: only what differs by nothing but its seed is a seed"
            )
    shared = [metric for metric in first.per_query if all(metric in seed.per_query for seed in seeds)]
    pooled = [metric for metric in first.pooled if all(metric in seed.pooled for seed in seeds)]
    return Contender(
        replace(
            first,
            representation=first.representation | {"name": name},
            per_query={m: np.mean([seed.per_query[m] for seed in seeds], axis=0) for m in shared},
            pooled={m: float(np.mean([seed.pooled[m] for seed in seeds])) for m in pooled},
            costs={key: _mean_cost(key, seeds) for key in first.costs},
            ranks=(),
        ),
        tuple(seeds),
    )


def _mean_cost(key: str, seeds: list[Report]) -> float | None:
    values = [value for seed in seeds if (value := seed.costs.get(key)) is not None]
    return float(np.mean(values)) if values else None


def check_seeds(seeds: Mapping[str, Sequence[str]], known: Sequence[str]) -> None:
    """Check the section ``seeds`` of a config.

    Args:
        seeds: Method -> names of the representations that are its seeds.
        known: All names that there are.

    Raises:
        UserError: A method has a wrong name or fewer than two seeds, or a seed is unknown or given twice.
    """
    taken: dict[str, str] = {}
    for method, names in seeds.items():
        check_label(method)
        if method in known:
            raise UserError(f"seeds.{method}: there is a representation of that name; give it another")
        if len(names) < 2:
            raise UserError(f"seeds.{method}: give at least two representations")
        for name in names:
            if name not in known:
                raise UserError(f"seeds.{method}: no representation {name!r}; known: {', '.join(known)}")
            if name in taken:
                raise UserError(f"seeds.{method}: {name!r} is already a seed of {taken[name]!r}")
            taken[name] = method


def method_of(name: str, seeds: Mapping[str, Sequence[str]]) -> str:
    """Name the method of which a representation is one seed; empty when it is none."""
    return next((method for method, names in seeds.items() if name in names), "")
