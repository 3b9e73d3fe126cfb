"""How well label-free signals predict whether adapting helped: rank correlations with the change in mAP.

A study's rows are read: one per run and task, with the change in mAP against the start (known from labels)
and the signals (known without). A signal is worth something when it orders runs rightly on sets of photos
that had no part in choosing it; see `selection`.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from ssl_retrieval.errors import UserError
from ssl_retrieval.types import FloatArray, IntArray

SET, TASK, DELTA = "set", "task", "delta_map"
RUN = ("set", "start", "method", "jitter", "anchor", "seed")
"""What tells runs apart; all tasks of a run share its signals."""

NO_SIGNALS = (*RUN, TASK, DELTA, "map", "ci_low", "ci_high", "low", "high", "p", "p_value", "train_s")

LEAST_RUNS = 4
"""Runs of a task below which a rank correlation says nothing."""


def read(file: Path) -> pd.DataFrame:
    """Read a study's rows from ``.csv`` or ``.parquet``.

    Returns:
        Columns `RUN`, ``task``, ``delta_map`` and one per signal. Rows of the start itself, without a
        ``delta_map``, are left out.

    Raises:
        UserError: It cannot be read, columns are missing, or no row is left.
    """
    if file.suffix not in (".csv", ".parquet"):
        raise UserError(f"{str(file)!r}: give a .csv or .parquet file")
    try:
        rows = pd.read_csv(file) if file.suffix == ".csv" else pd.read_parquet(file)
    except FileNotFoundError:
        raise UserError(f"{str(file)!r} does not exist: check the path") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{str(file)!r} cannot be read: {error}") from None
    missing = [name for name in (*RUN, TASK, DELTA) if name not in rows.columns]
    if missing:
        raise UserError(f"{str(file)!r} lacks the columns {', '.join(missing)}")
    rows = rows[rows[DELTA].notna()].reset_index(drop=True)
    if rows.empty:
        raise UserError(f"{str(file)!r} has no row with a {DELTA}")
    if not signal_names(rows):
        raise UserError(f"{str(file)!r} has no column of a signal")
    return rows


def signal_names(rows: pd.DataFrame) -> list[str]:
    """List the numeric columns that are signals."""
    return [
        name
        for name in rows.columns
        if name not in NO_SIGNALS
        and pd.api.types.is_numeric_dtype(rows[name])
        and not pd.api.types.is_bool_dtype(rows[name])
    ]


def rank_correlations(rows: pd.DataFrame, num_resamples: int = 500, seed: int = 0) -> pd.DataFrame:
    """Correlate each signal's ranks with those of the change in mAP (Spearman).

    Args:
        rows: See `read`.
        num_resamples: Of the bootstrap, which draws sets with replacement and, within each, runs.
        seed: Same seed, same intervals.

    Returns:
        One row per signal, the strongest first: ``signal``; ``within``, the mean over sets of the mean over
        their tasks, so that no set counts for more because it has more tasks; ``low`` and ``high``, its 95 %
        interval; ``pooled``, over all rows; ``num_sets`` and ``num_runs``. NaN where a signal does not vary.
    """
    names = signal_names(rows)
    runs = rows.groupby(list(RUN), sort=True, dropna=False).ngroup().to_numpy().astype(np.int64)
    signals, delta = rows[names].to_numpy(np.float64), rows[DELTA].to_numpy(np.float64)
    sets = [_tasks(rows, runs, name) for name in sorted(rows[SET].unique())]
    within = _mean([_of_set(tasks, signals, delta, None) for tasks in sets])
    rng = np.random.default_rng(seed)
    drawn = [
        _mean(
            [_of_set(sets[number], signals, delta, rng) for number in rng.integers(len(sets), size=len(sets))]
        )
        for _ in range(num_resamples)
    ]
    table = []
    for column, name in enumerate(names):
        values = np.array([of_sample[column] for of_sample in drawn])
        values = values[~np.isnan(values)]
        low, high = np.percentile(values, [2.5, 97.5]) if len(values) else (np.nan, np.nan)
        used = rows[name].notna()
        table.append(
            {
                "signal": name,
                "within": within[column],
                "low": float(low),
                "high": float(high),
                "pooled": spearman(rows[name].to_numpy(np.float64), rows[DELTA].to_numpy(np.float64)),
                "num_sets": rows[SET][used].nunique(),
                "num_runs": len(np.unique(runs[used])),
            }
        )
    found = pd.DataFrame(table)
    return found.sort_values("within", key=lambda values: -values.abs(), kind="stable").reset_index(drop=True)


def spearman(first: FloatArray, second: FloatArray) -> float:
    """Correlate ranks, ties averaged; NaN where one does not vary or fewer than `LEAST_RUNS` are left.

    >>> spearman(np.array([1.0, 2.0, 3.0, np.nan, 4.0]), np.array([10.0, 20.0, 40.0, 0.0, 30.0])).__round__(3)
    0.8
    """
    both = ~(np.isnan(first) | np.isnan(second))
    first, second = stats.rankdata(first[both]), stats.rankdata(second[both])
    if len(first) < LEAST_RUNS or not np.ptp(first) or not np.ptp(second):
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


def _tasks(rows: pd.DataFrame, runs: IntArray, of_set: object) -> IntArray:
    """Lay out a set's rows: int64 [tasks, runs], -1 where a run has no such task."""
    here = np.flatnonzero((rows[SET] == of_set).to_numpy())
    task = np.unique(rows[TASK].to_numpy()[here].astype(str), return_inverse=True)[1]
    run = np.unique(runs[here], return_inverse=True)[1]
    places = np.full((task.max() + 1, run.max() + 1), -1, np.int64)
    places[task, run] = here
    return places


def _of_set(
    tasks: IntArray, signals: FloatArray, delta: FloatArray, rng: np.random.Generator | None
) -> FloatArray:
    """Correlate within each task, of all runs or of a resample, and average: float64 [signals]."""
    num_runs = tasks.shape[1]
    picked = np.arange(num_runs) if rng is None else rng.integers(num_runs, size=num_runs)
    return _mean([_correlations(signals[row[row >= 0]], delta[row[row >= 0]]) for row in tasks[:, picked]])


def _correlations(signals: FloatArray, delta: FloatArray) -> FloatArray:
    if np.isnan(signals).any():
        return np.array([spearman(column, delta) for column in signals.T])
    if len(delta) < LEAST_RUNS or not np.ptp(delta):
        return np.full(signals.shape[1], np.nan)
    ranks, of_delta = stats.rankdata(signals, axis=0), stats.rankdata(delta)
    ranks, of_delta = ranks - ranks.mean(axis=0), of_delta - of_delta.mean()
    sizes = np.sqrt((ranks**2).sum(axis=0) * (of_delta**2).sum())
    return np.where(sizes > 0, of_delta @ ranks / np.where(sizes > 0, sizes, 1), np.nan)


def _mean(parts: list[FloatArray]) -> FloatArray:
    stacked = np.stack(parts)
    known = ~np.isnan(stacked)
    sums, counts = np.where(known, stacked, 0).sum(axis=0), known.sum(axis=0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
