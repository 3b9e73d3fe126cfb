"""What intervals and tests resample: single queries, or groups of queries that belong together.

Queries of one class (object, landmark, building) are no independent evidence. Resampled one by one they make
intervals too narrow, as soon as the claim is about more than the classes at hand. So whole groups are
resampled where there are enough of them to learn from how much groups differ; where there are not, queries
are, and the claim is about these groups only. `docs/statistics.md` has the reasons.
"""

from dataclasses import dataclass

import numpy as np

from ssl_retrieval.errors import UserError
from ssl_retrieval.types import FloatArray, IntArray, Report

AUTO, QUERIES, GROUPS = "auto", "queries", "groups"
SIGN_FLIP, BOOTSTRAP = "sign_flip", "bootstrap"
ENOUGH_GROUPS = 20
"""From so many groups on ``auto`` resamples groups; 19 degrees of freedom, half a million sign patterns."""

_NAMES = {"category": ("class", "classes"), "instance": ("object", "objects")}


@dataclass
class StatisticsOptions:
    """How sure a number is: what a config may choose.

    Attributes:
        resample: ``groups``: classes (objects, landmarks) with all their queries; ``queries``: each for
            itself; ``auto``: groups where queries share one and there are at least `ENOUGH_GROUPS`.
        test: ``sign_flip`` (paired randomisation test) or ``bootstrap`` (paired bootstrap test).
    """

    resample: str = AUTO
    test: str = SIGN_FLIP

    def check(self) -> None:
        """Refuse unknown choices.

        Raises:
            UserError: An option has no such value.
        """
        for key, allowed in (("resample", (AUTO, QUERIES, GROUPS)), ("test", (SIGN_FLIP, BOOTSTRAP))):
            value = getattr(self, key)
            if value not in allowed:
                raise UserError(f"statistics.{key}={value!r}: use {', '.join(allowed[:-1])} or {allowed[-1]}")


@dataclass(frozen=True, eq=False)
class Resampling:
    """What was decided for one task.

    Attributes:
        groups: int64 [Q], the group of each query; None = each query counts for itself.
        num_units: How many queries or groups are resampled.
        words: For people: ``resample the 81 classes``.
        note: What a reader must know about the decision; often empty.
    """

    groups: IntArray | None
    num_units: int
    words: str
    note: str = ""


def choose(groups: IntArray | None, values: FloatArray, level: str, resample: str = AUTO) -> Resampling:
    """Decide what is resampled on a task.

    Args:
        groups: int64 [Q], the group of each query; None = not known.
        values: float64 [Q]: queries with NaN have nothing to find and do not count.
        level: ``category`` or ``instance``: whether groups are called classes or objects.
        resample: See `StatisticsOptions`.

    Returns:
        The decision, with its reason.

    Raises:
        UserError: Groups are asked for and none are known.
    """
    counted = ~np.isnan(values)
    num_queries = int(counted.sum())
    single, several = _NAMES.get(level, ("group", "groups"))
    each = Resampling(None, num_queries, f"resample the {num_queries:,} queries")
    if groups is None:
        if resample == GROUPS:
            raise UserError(
                f"statistics.resample=groups: the report does not say which {single} a query belongs to; "
                "evaluate again"
            )
        return each
    num_groups = len(np.unique(groups[counted]))
    whole = Resampling(groups, num_groups, f"resample the {num_groups:,} {several} with all their queries")
    if resample == GROUPS and num_groups > 1:
        return whole
    if resample == QUERIES or num_groups == num_queries:
        return each
    if num_groups >= ENOUGH_GROUPS:
        return whole
    shared = f"{num_groups} {several if num_groups > 1 else single}"
    note = (
        f"the queries share {shared}, too few (below {ENOUGH_GROUPS}) to tell how others would do: intervals "
        f"and tests resample queries and speak about {'these' if num_groups > 1 else 'this'} only"
    )
    return Resampling(None, num_queries, each.words, note)


def of_report(report: Report, resample: str = AUTO) -> Resampling:
    """Decide what the numbers of one report resample.

    Args:
        report: Its ``mAP`` says which queries have something to find.
        resample: See `StatisticsOptions`.

    Raises:
        UserError: As for `choose`.
    """
    ruling = report.per_query.get("mAP", np.zeros(len(report.query_ids)))
    return choose(report.query_groups, ruling, str(report.info.get("level")), resample)
