"""The result in plain words: which representation is best on a task, and is the difference real?"""

from ssl_retrieval.compare import HEADLINE_METRIC, Duel, TaskComparison
from ssl_retrieval.report.numbers import format_bounds, format_p, format_score, known
from ssl_retrieval.statistics import SIGNIFICANCE, PairedDifference


def headline(task: TaskComparison) -> list[str]:
    """Say in a few sentences what a task's numbers mean.

    Args:
        task: The comparison on that task.

    Returns:
        Sentences: the best representation, its distance to the next, and, when both sides are there,
        the best self-supervised one against the best other one.
    """
    best = task.best
    bounds = format_bounds(best.score, HEADLINE_METRIC)
    score = format_score(best.score.mean, HEADLINE_METRIC)
    first = f"{best.name} retrieves best: {HEADLINE_METRIC} {score}"
    sentences = [f"{first} (95 % interval {bounds}, {best.score.num_queries} queries)."]
    if len(task.entries) > 1:
        sentences.append(_against_the_next(task))
    if task.duel is not None:
        sentences.append(_self_supervised(task.duel))
    return sentences


def _against_the_next(task: TaskComparison) -> str:
    second = next(entry for entry in task.ranked if entry is not task.best)
    assert second.behind_best is not None
    distance = _distance(second.behind_best, second.p_holm, adjusted=True)
    tied = [entry.name for entry in task.ranked if entry.in_best_group and entry is not task.best]
    if not tied:
        return f"It is really ahead of all others: the next, {second.name}, is {distance} behind."
    return (
        f"On these queries it cannot be told apart from {'; '.join(tied)}: "
        f"{second.name}, the next, is {distance} behind."
    )


def _self_supervised(duel: Duel) -> str:
    ours, theirs, difference = duel.learned.name, duel.baseline.name, duel.difference
    distance = _distance(difference, difference.p_value, adjusted=False)
    opening = "Self-supervised against the rest:"
    if not difference.p_value < SIGNIFICANCE:
        return (
            f"{opening} {ours} cannot be told apart from {theirs}, the best of the other families; "
            f"they are {distance} apart."
        )
    verdict = "beats" if difference.mean > 0 else "loses to"
    return f"{opening} {ours} {verdict} {theirs}, the best of the other families, by {distance}."


def _distance(difference: PairedDifference, p_value: float | None, adjusted: bool) -> str:
    """Write how far two are apart, without a sign: the sentence around it says who is ahead."""
    sign = -1.0 if difference.mean < 0 else 1.0
    size = format_score(sign * difference.mean, HEADLINE_METRIC)
    ends = sorted([sign * difference.low, sign * difference.high])
    interval = ""
    if known(difference.low):
        low, high = (format_score(end, HEADLINE_METRIC) for end in ends)
        interval = f"95 % interval {low} to {high}, "
    return f"{size} ({interval}{'adjusted ' if adjusted else ''}{format_p(p_value)})"
