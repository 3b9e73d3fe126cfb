"""What stands behind a mean: queries with nothing to find have no value, and ties leave a value open."""

from ssl_retrieval.compare import HEADLINE_METRIC, Comparison, TaskComparison
from ssl_retrieval.report.numbers import format_count, format_score

_VISIBLE = 0.0005
"""Smaller bands of ``mAP`` are not seen in a table."""


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
    moved, unmoved = [], 0
    for entry in task.entries:
        count = entry.report.info.get("num_queries_with_ties")
        low, high = entry.report.info.get("tie_band", {}).get(HEADLINE_METRIC, (0.0, 0.0))
        if count and high - low >= _VISIBLE:
            band = f"{format_score(low, HEADLINE_METRIC)}–{format_score(high, HEADLINE_METRIC)}"
            moved.append(f"{entry.name} ({format_count(count)} queries, {HEADLINE_METRIC} {band})")
        unmoved += bool(count and high - low < _VISIBLE)
    if not moved and not unmoved:
        return "No relevant item ties with a wrong one."
    parts = [f"{', '.join(moved)}: relevant items tie with wrong ones"] if moved else []
    if unmoved:
        who = f"{unmoved} {'other ' if moved else ''}representation{'s' if unmoved > 1 else ''}"
        parts.append(f"ties of {who} move {HEADLINE_METRIC} by less than {_VISIBLE}")
    text = "; ".join(parts)
    return f"{text[0].upper() if not moved else text[0]}{text[1:]}."
