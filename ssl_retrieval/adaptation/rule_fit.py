"""The rule's constant from a study, and the rule on sets that had no part in it: leave-one-set-out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ssl_retrieval.adaptation.cell_files import FinishedCell
from ssl_retrieval.adaptation.cells import Cell
from ssl_retrieval.adaptation.plan import TRIALS, trials_for
from ssl_retrieval.adaptation.rule import (
    COPIES,
    SIMILAR,
    STEADINESS,
    Comparison,
    Evidence,
    colour_matters,
    decide,
)
from ssl_retrieval.adaptation.selection import LOSS_WEIGHT
from ssl_retrieval.adaptation.study_table import effect_of, paired

_FURTHER = 0.05
"""How far a limit stays from the only value that it must exclude, or admit."""


@dataclass(frozen=True, eq=False)
class KnownRun:
    """A training whose effect is known from labels.

    Attributes:
        cell: Which.
        evidence: What the rule sees; None where values are no numbers.
        keeps_colours: Whether the rule would have colours kept as they are on these photos.
        delta: Change in mAP, mean over the tasks that search for what is similar; NaN where there is none.
        is_worse: Whether one of these tasks is clearly worse: its 95 % interval lies below 0.
    """

    cell: Cell
    evidence: Evidence | None
    keeps_colours: bool
    delta: float
    is_worse: bool

    def is_offered(self, goal: str) -> bool:
        """Whether `adapt` would have tried this on these photos."""
        return (self.cell.jitter, self.cell.anchor) in TRIALS[trials_for(goal, self.keeps_colours)]


def goal_of(task: str) -> str:
    """Say which goal a study's task belongs to: those whose names begin with ``copies`` search for copies.

    >>> goal_of("copies"), goal_of("fine")
    ('copies', 'similar')
    """
    return COPIES if task.startswith(COPIES) else SIMILAR


def known_runs(cells: Sequence[FinishedCell]) -> list[KnownRun]:
    """Look at a study's trainings as the rule does.

    Args:
        cells: From `cell_files.read_all`.
    """
    starts: dict[Cell, tuple[FinishedCell, list[FinishedCell]]] = {}
    for start, adapted in paired(cells):
        starts.setdefault(start.cell, (start, []))[1].append(adapted)
    found = []
    for start, trained in starts.values():
        probe = start.probe()
        keeps_colours, _ = colour_matters(probe)
        comparison = Comparison(probe)
        for adapted in trained:
            changes = [
                effect_of(start, [adapted], task).difference
                for task in adapted.scores
                if goal_of(task) == SIMILAR
            ]
            delta = float(np.mean([change.mean for change in changes])) if changes else math.nan
            is_worse = any(change.high < 0 for change in changes)
            comparison.add(adapted.cell.name, adapted.probe())
            seen = comparison.found[adapted.cell.name]
            found.append(KnownRun(adapted.cell, seen, keeps_colours, delta, is_worse))
    return found


def fit(runs: Sequence[KnownRun]) -> float:
    """Find the least steadiness that admits the most gain, losses counted `selection.LOSS_WEIGHT` times.

    Every training counts, also those that other tests of the rule refuse: on photos that are not here they
    may not. Every set counts the same, however many runs it has. The limit lies halfway between the last run
    that is admitted and the first that is not.

    Args:
        runs: Of the sets to learn from.

    Returns:
        The limit; infinite where there is no run.
    """
    known = [
        (run.evidence.steadiness, run.delta / sum(other.cell.set == run.cell.set for other in runs))
        for run in runs
        if run.evidence is not None and math.isfinite(run.delta)
    ]
    if not known:
        return float("inf")
    values = np.array(sorted(known, reverse=True))
    worth = np.cumsum(np.where(values[:, 1] < 0, LOSS_WEIGHT, 1) * values[:, 1])
    last = int(worth.argmax())
    if worth[last] <= 0:
        return float(values[0, 0]) + _FURTHER
    if last == len(values) - 1:
        return float(values[last, 0]) - _FURTHER
    return float(values[last : last + 2, 0].mean())


def limits_of_others(runs: Sequence[KnownRun]) -> dict[str, float]:
    """Fit the limit for each set on the others.

    Args:
        runs: Of at least two sets.

    Returns:
        Set -> limit.
    """
    sets = list(dict.fromkeys(run.cell.set for run in runs))
    return {name: fit([run for run in runs if run.cell.set != name]) for name in sets}


def choice(runs: Sequence[KnownRun], goal: str, least_steadiness: float = STEADINESS) -> Cell | None:
    """Let the rule choose among the trainings that `adapt` would have tried; None = the start.

    Args:
        runs: Trainings of one start on one set.
        goal: What is searched for.
        least_steadiness: The rule's constant.
    """
    offered = {run.cell.name: run for run in runs if run.is_offered(goal)}
    verdict = decide({name: run.evidence for name, run in offered.items()}, goal, least_steadiness)
    return None if verdict.name is None else offered[verdict.name].cell
