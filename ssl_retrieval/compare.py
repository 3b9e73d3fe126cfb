"""Many reports -> one comparison: who is best on each task, and is the difference real?

Means alone do not answer that. Every representation is tested against the best one on the same
queries (paired; whole classes at a time where queries share one, see `resampling`), the p-values of a task
are adjusted for their number (Holm), and whatever is not significantly different from the best shares its
group. Several seeds of one method are compared as one (see `seed_groups`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ssl_retrieval.errors import UserError
from ssl_retrieval.resampling import BOOTSTRAP, Resampling, StatisticsOptions, choose
from ssl_retrieval.seed_groups import Contender, contenders, name_of
from ssl_retrieval.seed_variance import seed_means
from ssl_retrieval.statistics import SIGNIFICANCE, Interval, PairedDifference, holm, smallest_p_value
from ssl_retrieval.types import IntArray, Report

HEADLINE_METRIC = "mAP"
SELF_SUPERVISED = "self-supervised"


@dataclass(frozen=True, eq=False)
class Entry:
    """One representation on one task.

    Attributes:
        report: Where it comes from, restricted to the queries that are compared; of several seeds the mean.
        metrics: Name -> mean with its 95 % interval; the interval of a pooled metric is NaN.
        behind_best: ``mAP`` of the best minus this one, query by query; None for the best itself.
        p_holm: Its p-value after Holm's adjustment within the task; None for the best itself.
        seeds: The reports of its seeds; the report alone when there are none.
    """

    report: Report
    metrics: dict[str, Interval]
    behind_best: PairedDifference | None
    p_holm: float | None
    seeds: tuple[Report, ...]

    @property
    def name(self) -> str:
        """The representation's name."""
        return str(self.report.representation["name"])

    @property
    def family(self) -> str:
        """Hand-crafted, random, off-the-shelf, self-supervised, …."""
        return str(self.report.representation["family"])

    @property
    def score(self) -> Interval:
        """The headline metric."""
        return self.metrics[HEADLINE_METRIC]

    @property
    def seed_scores(self) -> tuple[float, ...]:
        """The headline metric of each seed."""
        values = np.stack([seed.per_query[HEADLINE_METRIC] for seed in self.seeds])
        return tuple(seed_means(values).tolist())

    @property
    def seed_deviation(self) -> float:
        """Standard deviation of the headline metric over seeds; NaN for a single one."""
        return float(np.std(self.seed_scores, ddof=1)) if len(self.seeds) > 1 else float("nan")

    @property
    def in_best_group(self) -> bool:
        """Whether it is the best or not significantly different from the best."""
        return self.p_holm is None or not self.p_holm < SIGNIFICANCE


@dataclass(frozen=True, eq=False)
class Duel:
    """The project's question on one task: the best self-supervised one against the best other one.

    Attributes:
        learned: The best self-supervised representation.
        baseline: The best representation of any other family.
        difference: ``mAP`` of ``learned`` minus ``baseline``, query by query.
    """

    learned: Entry
    baseline: Entry
    difference: PairedDifference


@dataclass(frozen=True, eq=False)
class TaskComparison:
    """All representations on one task, on the same queries.

    Attributes:
        task: The task's name.
        level: ``instance`` or ``category``.
        description: One plain sentence about what is searched where; may be empty.
        protocol: The protocol of the first report, with its ``hash``.
        entries: In the order in which the reports were given.
        best: The entry with the highest ``mAP``.
        duel: Self-supervised against the rest; None when one side is absent.
        resampling: What intervals and tests resample, in words.
        detectable: The smallest true difference in ``mAP`` that this task shows in 4 of 5 cases, for the
            median of its comparisons with the best; NaN when there is none.
        remarks: What limits these statistics; often empty.
    """

    task: str
    level: str
    description: str
    protocol: dict[str, object]
    entries: tuple[Entry, ...]
    best: Entry
    duel: Duel | None
    resampling: str
    detectable: float
    remarks: tuple[str, ...]

    @property
    def ranked(self) -> list[Entry]:
        """The entries, best first."""
        return sorted(self.entries, key=lambda entry: -entry.score.mean)

    def entry(self, name: str) -> Entry | None:
        """The entry of a representation; None when it was not evaluated on this task."""
        return next((entry for entry in self.entries if entry.name == name), None)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Many representations on many tasks.

    Attributes:
        tasks: In the order of their first report, instance level before category level.
        representations: Names, in the order given.
        notes: What a reader must know before trusting a number (forced mixtures); usually empty.
    """

    tasks: tuple[TaskComparison, ...]
    representations: tuple[str, ...]
    notes: tuple[str, ...]

    def entries(self, name: str) -> list[Entry]:
        """The entries of one representation over the tasks on which it was evaluated."""
        return [entry for task in self.tasks if (entry := task.entry(name)) is not None]


def compare(
    reports: Sequence[Report], force: bool = False, options: StatisticsOptions | None = None
) -> Comparison:
    """Compare finished reports, task by task.

    Args:
        reports: At least one; at most one for each task and representation.
        force: Compare reports of different protocols, and reports of different queries on the queries
            they share. Each such mixture leaves a note.
        options: What is resampled, and which test is used.

    Returns:
        The comparison. Representations and tasks keep the order in which they first appear; tasks of
        instance level come first.

    Raises:
        UserError: No report; one given twice; no ``mAP`` in one; or, unless forced, reports on one task
            with different protocols, galleries or queries.
    """
    options = options or StatisticsOptions()
    options.check()
    if not reports:
        raise UserError("nothing to compare: give at least one report.json")
    by_task: dict[str, dict[str, Report]] = {}
    for report in reports:
        name = str(report.representation["name"])
        of_task = by_task.setdefault(report.task, {})
        if name in of_task:
            raise UserError(
                f"two reports of {name!r} on task {report.task!r}: give one, or rename a representation"
            )
        if HEADLINE_METRIC not in report.per_query:
            raise UserError(
                f"the report of {name!r} on task {report.task!r} has no {HEADLINE_METRIC}: evaluate again"
            )
        of_task[name] = report

    notes: list[str] = []
    tasks = []
    for of_task in by_task.values():
        group = list(of_task.values())
        notes += _check_same_protocol(group, force)
        group, group_notes = _on_same_queries(group, force)
        notes += group_notes
        tasks.append(_compare_on_task(group, options))
    return Comparison(
        tasks=tuple(sorted(tasks, key=lambda task: task.level != "instance")),
        representations=tuple(dict.fromkeys(name_of(report) for report in reports)),
        notes=tuple(notes),
    )


def _compare_on_task(reports: list[Report], options: StatisticsOptions) -> TaskComparison:
    first = reports[0]
    level = str(first.info.get("level", "category"))
    rivals = contenders(reports)
    means = np.array([_mean(rival) for rival in rivals])
    if np.isnan(means).any():
        name = rivals[int(np.flatnonzero(np.isnan(means))[0])].name
        raise UserError(
            f"{name!r} has no {HEADLINE_METRIC} on task {first.task!r}: no query has anything to find"
        )
    # Groups belong to queries: any report that has them knows them for all.
    groups = next((report.query_groups for report in reports if report.query_groups is not None), None)
    decided = choose(groups, rivals[0].report.per_query[HEADLINE_METRIC], level, options.resample)

    def minus(one: Contender, other: Contender) -> PairedDifference:
        return one.minus(other, HEADLINE_METRIC, decided.groups, options.test)

    best = int(means.argmax())
    others = [i for i in range(len(rivals)) if i != best]
    differences = {i: minus(rivals[best], rivals[i]) for i in others}
    adjusted = dict(zip(others, holm([d.p_value for d in differences.values()]), strict=True))
    entries = tuple(
        Entry(
            report=rival.report,
            metrics=_intervals(rival, decided.groups),
            behind_best=differences.get(i),
            p_holm=None if i == best else float(adjusted[i]),
            seeds=rival.seeds,
        )
        for i, rival in enumerate(rivals)
    )
    sides = _duel_sides(entries)
    detectable = [d.detectable for d in differences.values() if not np.isnan(d.detectable)]
    return TaskComparison(
        task=first.task,
        level=level,
        description=str(first.info.get("description", "")),
        protocol=first.protocol,
        entries=entries,
        best=entries[best],
        duel=sides and Duel(entries[sides[0]], entries[sides[1]], minus(rivals[sides[0]], rivals[sides[1]])),
        resampling=decided.words,
        detectable=float(np.median(detectable)) if detectable else float("nan"),
        remarks=_remarks(decided, len(others), options.test),
    )


def _mean(rival: Contender) -> float:
    values = rival.report.per_query.get(HEADLINE_METRIC, np.empty(0))
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else float("nan")


def _intervals(rival: Contender, groups: IntArray | None) -> dict[str, Interval]:
    per_query = {name: rival.interval(name, groups) for name in rival.report.per_query}
    pooled = {
        name: Interval(value, float("nan"), float("nan"), len(rival.report.query_ids))
        for name, value in rival.report.pooled.items()
    }
    return per_query | pooled


def _duel_sides(entries: tuple[Entry, ...]) -> tuple[int, int] | None:
    """Find the best self-supervised entry and the best other one."""
    best_first = sorted(range(len(entries)), key=lambda i: -entries[i].score.mean)
    learned = [i for i in best_first if entries[i].family == SELF_SUPERVISED]
    rest = [i for i in best_first if entries[i].family != SELF_SUPERVISED]
    return (learned[0], rest[0]) if learned and rest else None


def _remarks(decided: Resampling, num_tests: int, test: str) -> tuple[str, ...]:
    remarks = [decided.note] if decided.note else []
    if test != BOOTSTRAP and smallest_p_value(decided.num_units) * num_tests >= SIGNIFICANCE:
        remarks.append(
            f"{num_tests} comparisons are too many for {decided.num_units} resampled units: after Holm's "
            "adjustment the first difference cannot become significant, however large"
        )
    return tuple(remarks)


def _check_same_protocol(reports: list[Report], force: bool) -> list[str]:
    """Refuse reports that were scored under different rules or in different galleries."""
    first, notes = reports[0], []
    for other in reports[1:]:
        ours, theirs = _conditions(first), _conditions(other)
        fields = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
        if not fields:
            continue
        difference = ", ".join(f"{key} {ours.get(key)!r} and {theirs.get(key)!r}" for key in fields)
        names = f"{first.representation['name']!r} and {other.representation['name']!r}"
        text = f"task {first.task!r}: {names} were scored under different protocols ({difference})"
        if not force:
            raise UserError(f"{text}; evaluate them under the same one, or force the comparison")
        notes.append(f"Forced comparison, {text}. Their numbers are not strictly comparable.")
    return notes


def _conditions(report: Report) -> dict[str, object]:
    """Everything that must be equal before two numbers mean the same."""
    described = {key: report.info.get(key) for key in ("level", "num_gallery", "gallery_digest")}
    rules = {key: value for key, value in report.protocol.items() if key != "hash"}
    return rules | described


def _on_same_queries(reports: list[Report], force: bool) -> tuple[list[Report], list[str]]:
    """Bring all reports of a task to the query order of the first; refuse or drop what not all have."""
    first = reports[0]
    shared = set(first.query_ids).intersection(*(report.query_ids for report in reports[1:]))
    notes = []
    partial = [report for report in reports if len(report.query_ids) != len(shared)]
    if partial:
        counts = ", ".join(
            f"{report.representation['name']!r} has {len(report.query_ids)}" for report in reports
        )
        text = (
            f"task {first.task!r}: the reports are about different queries ({counts}; {len(shared)} shared)"
        )
        if not force:
            raise UserError(
                f"{text}; images skipped by only some of them? Repair or remove those images, "
                "or force a comparison on the shared queries"
            )
        if not shared:
            raise UserError(f"{text}; nothing is left to compare")
        notes.append(f"Forced comparison, {text}. All per-query numbers are about the shared queries.")
    order = [query for query in first.query_ids if query in shared]
    return [_take(report, order) for report in reports], notes


def _take(report: Report, query_ids: list[str]) -> Report:
    row = {query: i for i, query in enumerate(report.query_ids)}
    rows = np.array([row[query] for query in query_ids], dtype=np.int64)
    return replace(
        report,
        query_ids=tuple(query_ids),
        query_groups=None if report.query_groups is None else report.query_groups[rows],
        per_query={name: values[rows] for name, values in report.per_query.items()},
        query_classes=tuple(report.query_classes[i] for i in rows) if report.query_classes else (),
        ranks=tuple(report.ranks[i] for i in rows) if report.ranks else (),
    )
