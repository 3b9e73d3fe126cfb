"""What the marks of a table mean, and how far its intervals and tests reach, in words."""

from ssl_retrieval.compare import HEADLINE_METRIC, Entry, TaskComparison
from ssl_retrieval.report.numbers import format_score, known

BEST, TIE = "*", "≈"
LEGEND = (
    f"{BEST} best of its task; {TIE} a tie: not significantly different from the best (paired test, Holm, "
    "5 %); no mark: really behind"
)

_HARDLY_ENOUGH = 2
"""So many seeds leave one degree of freedom."""


def mark_of(entry: Entry) -> str:
    """Give ``*`` for the best of a task, ``≈`` for what ties with it, nothing for the rest."""
    if entry.p_holm is None:
        return BEST
    return TIE if entry.in_best_group else ""


def statistics_notes(task: TaskComparison) -> list[str]:
    """Say of one task what is resampled, what differences it can show, and how far seeds spread.

    Returns:
        Sentences without the task's name.
    """
    notes = [f"Intervals and tests {task.resampling}."]
    notes += [f"{remark[0].upper()}{remark[1:]}." for remark in task.remarks]
    if known(task.detectable):
        notes.append(
            f"This task can tell apart differences of about {format_score(task.detectable, HEADLINE_METRIC)} "
            f"{HEADLINE_METRIC} (found in 4 of 5 cases at p < 0.05; median of the comparisons with the best)."
        )
    notes += [_spread_of_seeds(entry) for entry in task.entries if len(entry.seeds) > 1]
    if any(len(entry.seeds) == _HARDLY_ENOUGH for entry in task.entries):
        notes.append("Two seeds say little about their spread: give three or more.")
    return notes


def _spread_of_seeds(entry: Entry) -> str:
    deviation = format_score(entry.seed_deviation, HEADLINE_METRIC)
    scores = ", ".join(format_score(score, HEADLINE_METRIC) for score in entry.seed_scores)
    of_seeds = f"{len(entry.seeds)} seeds, {HEADLINE_METRIC} {scores} (standard deviation {deviation})"
    return f"{entry.name}: {of_seeds}."
