"""A study's finished cells -> one tidy table: what each setting did, and what shows of it without labels."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ssl_retrieval.adaptation.cell_files import FinishedCell, read_all
from ssl_retrieval.adaptation.cells import Cell
from ssl_retrieval.adaptation.probe import IDENTITY, Probe
from ssl_retrieval.adaptation.signals import signals, stability
from ssl_retrieval.atomic import atomic_path
from ssl_retrieval.locking import in_turn
from ssl_retrieval.resampling import choose
from ssl_retrieval.seed_variance import difference_over_seeds
from ssl_retrieval.statistics import PairedDifference, paired_test
from ssl_retrieval.types import FloatArray, IntArray

TABLE = "table.parquet"
TABLE_TEXT = "table.csv"
HEADLINE = "mAP"


@dataclass(frozen=True, eq=False)
class Effect:
    """What one setting did on one task, over its seeds.

    Attributes:
        cell: The setting, of its first seed.
        task: The task's name in the study.
        level: ``instance`` or ``category``.
        num_seeds: Seeds that are finished.
        start: mAP of the start.
        difference: mAP after minus before, query by query.
        train_s: Seconds of training, the mean over seeds.
    """

    cell: Cell
    task: str
    level: str
    num_seeds: int
    start: float
    difference: PairedDifference
    train_s: float


def collect(study: Path) -> pd.DataFrame:
    """Gather a study in a table; it is also written as ``table.parquet`` and ``table.csv`` into its folder.

    Args:
        study: The study's folder.

    Returns:
        A row per trained cell and task: ``set``, ``start``, ``method``, ``jitter``, ``anchor``, ``seed``,
        ``task``, ``level``, ``map``, ``delta_map`` (against the start, on the same queries) with its 95 %
        interval ``low`` to ``high`` and ``p`` (see `resampling`), ``train_s``; all other columns are signals,
        for `predictors` takes every further number for one. A cell whose start is not finished is left out.

    Raises:
        UserError: No cell is finished, or one is damaged.
    """
    cells = read_all(study)
    probes: dict[Cell, Probe] = {}
    plain = {found.cell: _unaltered(found.probe()) for found in cells}
    rows = []
    for start, adapted in paired(cells):
        seen = signals(probes.setdefault(start.cell, start.probe()), adapted.probe())
        seen["seed_stability"] = _seed_stability(adapted.cell, plain)
        for task in adapted.scores:
            effect = effect_of(start, [adapted], task)
            change = effect.difference
            rows.append(
                adapted.cell.to_dict()
                | {
                    "task": task,
                    "level": effect.level,
                    "map": float(np.nanmean(adapted.scores[task].per_query[HEADLINE])),
                    "delta_map": change.mean,
                    "low": change.low,
                    "high": change.high,
                    "p": change.p_value,
                    "train_s": adapted.info["train_s"],
                }
                | seen
            )
    table = pd.DataFrame(rows)
    with in_turn(study / "locks" / "table", "writing the table"):
        with atomic_path(study / TABLE) as partial:
            table.to_parquet(partial)
        with atomic_path(study / TABLE_TEXT) as partial:
            table.to_csv(partial, index=False)
    return table


def _unaltered(probe: Probe) -> Probe:
    return Probe({IDENTITY: probe.photos}, probe.ids)


def _seed_stability(cell: Cell, probes: Mapping[Cell, Probe]) -> float:
    """Compare the neighbours of a training with those of its other seeds; NaN where there is none.

    Not among `signals`, for a single training does not have it: it takes the time of two.
    """
    others = [other for other in probes if other != cell and other.with_seed(cell.seed) == cell]
    if not others:
        return math.nan
    return float(np.mean([stability(probes[cell], probes[other]) for other in others]))


def paired(cells: Sequence[FinishedCell]) -> Iterator[tuple[FinishedCell, FinishedCell]]:
    """Give each trained cell behind the cell of its start, where that is finished."""
    by_cell = {found.cell: found for found in cells}
    for found in cells:
        start = by_cell.get(found.cell.of_start)
        if start is not None and not found.cell.is_start:
            yield start, found


def effects(cells: Sequence[FinishedCell]) -> list[Effect]:
    """Give what each setting did on each task, its seeds joined (see `seed_variance`)."""
    seeds: dict[Cell, list[FinishedCell]] = {}
    starts: dict[Cell, FinishedCell] = {}
    for start, found in paired(cells):
        setting = found.cell.with_seed(0)
        seeds.setdefault(setting, []).append(found)
        starts[setting] = start
    return [
        effect_of(starts[setting], runs, task) for setting, runs in seeds.items() for task in runs[0].scores
    ]


def effect_of(start: FinishedCell, runs: Sequence[FinishedCell], task: str) -> Effect:
    """Test what a setting did on one task.

    Args:
        start: The cell of the start.
        runs: The setting's cells, one per seed.
        task: The task's name in the study.
    """
    before = start.scores[task]
    after = np.stack([run.scores[task].per_query[HEADLINE] for run in runs])
    difference = _difference(after, before.per_query[HEADLINE], before.groups, before.level)
    mean = float(np.nanmean(before.per_query[HEADLINE]))
    train_s = float(np.mean([run.info["train_s"] for run in runs]))
    return Effect(runs[0].cell, task, before.level, len(runs), mean, difference, train_s)


def _difference(after: FloatArray, before: FloatArray, groups: IntArray, level: str) -> PairedDifference:
    units = choose(groups, before, level).groups
    if len(after) == 1:
        return paired_test(after[0], before, groups=units)
    return difference_over_seeds(after, before[None], units)
