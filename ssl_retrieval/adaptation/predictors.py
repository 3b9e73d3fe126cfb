"""How well label-free signals predict whether adapting helped: rank correlations with the change in mAP.

A study's rows are read: one per run and task, with the change in mAP against the start (known from labels)
and the signals (known without). A signal is worth something when it orders runs rightly on sets of photos
that had no part in choosing it; see `selection`.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from ssl_retrieval.errors import UserError
from ssl_retrieval.types import FloatArray

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
    runs = rows.groupby(list(RUN), sort=True, dropna=False).ngroup().to_numpy()
    numbered = rows.assign(_run=runs)
    drawn = [_within(sample, names) for sample in _resamples(numbered, num_resamples, seed)]
    within = _within(numbered, names)
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


def _within(rows: pd.DataFrame, names: list[str]) -> FloatArray:
    per_set: dict[object, list[FloatArray]] = {}
    copy = "_copy" if "_copy" in rows.columns else SET
    for (_, of_set, _), group in rows.groupby([copy, SET, TASK], sort=True):
        delta = group[DELTA].to_numpy(np.float64)
        found = np.array([spearman(group[name].to_numpy(np.float64), delta) for name in names])
        key = (of_set, group[copy].iloc[0])
        per_set.setdefault(key, []).append(found)
    return _mean([_mean(tasks) for tasks in per_set.values()])


def _mean(parts: list[FloatArray]) -> FloatArray:
    stacked = np.stack(parts)
    known = ~np.isnan(stacked)
    sums, counts = np.where(known, stacked, 0).sum(axis=0), known.sum(axis=0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _resamples(rows: pd.DataFrame, count: int, seed: int) -> Iterator[pd.DataFrame]:
    """Draw sets, and runs within each; a run stays whole, with all its tasks."""
    rng = np.random.default_rng(seed)
    of_set = {
        name: [part.index.to_numpy() for _, part in group.groupby("_run", sort=True)]
        for name, group in rows.groupby(SET, sort=True)
    }
    names = list(of_set)
    for _ in range(count):
        chosen, copies = [], []
        for copy, number in enumerate(rng.integers(len(names), size=len(names)).tolist()):
            runs = of_set[names[number]]
            picked = np.concatenate([runs[run] for run in rng.integers(len(runs), size=len(runs)).tolist()])
            chosen.append(picked)
            copies.append(np.full(len(picked), copy))
        yield rows.loc[np.concatenate(chosen)].assign(_copy=np.concatenate(copies))
