"""What stands behind a mean: queries with nothing to find have no value, and ties leave a value open."""

from ssl_retrieval.compare import HEADLINE_METRIC, Comparison, TaskComparison
from ssl_retrieval.report.numbers import format_count, format_score


def coverage_notes(comparison: Comparison) -> list[str]:
    """Say task by task how many queries count, and whose ``mAP`` depends on the order of equal scores.

    Returns:
        One sentence or two per task.
    """
    return [f"{task.task}: {_counted(task)} {_ties(task)}" for task in comparison.tasks]


def _counted(task: TaskComparison) -> str:
    total, counted = len(task.best.report.query_ids), task.best.score.num_queries
    if counted == total:
        return f"all {format_count(total)} queries have something to find."
    return (
        f"{format_count(counted)} of {format_count(total)} queries have something to find; "
        f"{format_count(total - counted)} have no value."
    )


def _ties(task: TaskComparison) -> str:
    tied = []
    for entry in task.entries:
        count = entry.report.info.get("num_queries_with_ties")
        if count:
            low, high = entry.report.info.get("tie_band", {}).get(HEADLINE_METRIC, (None, None))
            band = f"{format_score(low, HEADLINE_METRIC)}–{format_score(high, HEADLINE_METRIC)}"
            tied.append(f"{entry.name} ({format_count(count)}, {HEADLINE_METRIC} {band})")
    if not tied:
        return "No relevant item ties with a wrong one."
    return f"Queries in which a relevant item ties with a wrong one: {', '.join(tied)}."
