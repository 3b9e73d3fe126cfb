"""What a choice by a signal is worth on photos that had no part in making it: leave-one-set-out.

On every set each start stands with its runs. The rule takes the run with the highest score, or keeps the
start when no score exceeds a threshold. Which way a signal points and where its threshold lies is found on
the other sets alone.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from ssl_retrieval.adaptation.predictors import DELTA, RUN, SET, signal_names
from ssl_retrieval.types import FloatArray

LOSS_WEIGHT = 3.0
"""So much more a loss counts than a gain of the same size: nobody wants to be made worse."""

PENALTY = 1.0
"""Of the ridge regression, on signals of unit variance."""

MOST_SIGNALS = 3
_TRIED_TOGETHER = 8

Score = Callable[[pd.DataFrame], FloatArray]
"""Runs -> float64, the higher the better; the start scores 0."""


def runs_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Give one row per run: its signals, and ``delta_map`` as the mean over the set's tasks."""
    grouped = rows.groupby(list(RUN), sort=True, dropna=False)
    return grouped[[DELTA, *signal_names(rows)]].mean().reset_index()


def single(name: str) -> Callable[[pd.DataFrame], Score]:
    """Fit the direction and the threshold of one signal.

    Returns:
        Runs of the sets to learn from -> the score.
    """

    def fit(runs: pd.DataFrame) -> Score:
        values = runs[name].to_numpy(np.float64)
        (upward, above), (downward, below) = _threshold(runs, values), _threshold(runs, -values)
        sign, threshold = (1.0, above) if upward >= downward else (-1.0, below)
        return lambda others: sign * others[name].to_numpy(np.float64) - threshold

    return fit


def combined(names: Sequence[str]) -> Callable[[pd.DataFrame], Score]:
    """Fit a ridge regression of the change in mAP on some signals, and the threshold of what it predicts."""

    def fit(runs: pd.DataFrame) -> Score:
        known = runs.dropna(subset=list(names))
        if len(known) < len(names) + 2:
            return lambda others: np.full(len(others), -np.inf)
        scaler = StandardScaler().fit(known[list(names)].to_numpy(np.float64))
        model = Ridge(alpha=PENALTY).fit(
            scaler.transform(known[list(names)].to_numpy(np.float64)), known[DELTA].to_numpy(np.float64)
        )

        def predict(others: pd.DataFrame) -> FloatArray:
            values = others[list(names)].to_numpy(np.float64)
            broken = ~np.isfinite(values).all(axis=1)
            predicted = model.predict(scaler.transform(np.where(broken[:, None], 0, values)))
            return np.where(broken, -np.inf, predicted)

        _, threshold = _threshold(known, predict(known))
        return lambda others: predict(others) - threshold

    return fit


def chosen(runs: pd.DataFrame, scores: FloatArray) -> pd.DataFrame:
    """Say what is taken per set and start.

    Args:
        runs: See `runs_of`.
        scores: float64, one per run; NaN counts as refused.

    Returns:
        One row per set and start: ``set``, ``start``, ``row`` (label of the run in ``runs``; -1 = the start),
        ``delta`` of what is taken, and ``best``, the largest delta that could be had (0 = the start's).
    """
    scores = np.where(np.isnan(scores), -np.inf, scores)
    delta = runs[DELTA].to_numpy(np.float64)
    labels = runs.index.to_numpy()
    indices: dict[Any, Any] = dict(runs.groupby([SET, "start"], sort=True).indices)
    table = []
    for (of_set, start), rows in indices.items():
        first = rows[scores[rows].argmax()]
        is_taken = scores[first] > 0
        table.append(
            {
                "set": of_set,
                "start": start,
                "row": int(labels[first]) if is_taken else -1,
                "delta": float(delta[first]) if is_taken else 0.0,
                "best": max(0.0, float(delta[rows].max())),
            }
        )
    return pd.DataFrame(table)


def utility(runs: pd.DataFrame, scores: FloatArray) -> float:
    """Average what is won over sets, losses counted `LOSS_WEIGHT` times."""
    return float(_weighed(chosen(runs, scores)["delta"].to_numpy()).mean())


def leave_one_set_out(rows: pd.DataFrame, fit: Callable[[pd.DataFrame], Score]) -> pd.DataFrame:
    """Let each set be decided by a rule that was fitted on the others.

    Args:
        rows: A study's rows (see `predictors.read`); at least two sets.
        fit: `single` or `combined`.

    Returns:
        As `chosen`, for all sets, with ``regret`` (best minus delta) and ``worst_task``: the smallest change
        in mAP among the set's tasks.
    """
    runs, worst = runs_of(rows), _worst_tasks(rows)
    parts = []
    for left_out in runs[SET].unique():
        of_set = runs[runs[SET] == left_out]
        score = fit(runs[runs[SET] != left_out])
        parts.append(chosen(of_set, score(of_set)))
    table = pd.concat(parts, ignore_index=True)
    table["regret"] = table["best"] - table["delta"]
    table["worst_task"] = [0.0 if row < 0 else float(worst[row]) for row in table["row"]]
    return table


def compare_rules(rows: pd.DataFrame) -> pd.DataFrame:
    """Try every signal alone, and combinations of the best ones, each leave-one-set-out.

    Returns:
        One row per rule, the most useful first: ``rule``, ``delta`` (mean over sets and starts of the change
        in mAP by what it takes), ``worst`` (the smallest of them), ``worst_task``, ``regret``, ``taken``
        (share of sets where the start is replaced), and ``utility`` (losses counted more, see `utility`).
        ``always the start`` and ``the best run`` (known only with labels) stand for comparison. A
        combination is listed only if it is more useful than the best signal alone.
    """
    runs = runs_of(rows)

    def summary_of(rule: str, fit: Callable[[pd.DataFrame], Score]) -> dict[str, Any]:
        return _summary(rule, leave_one_set_out(rows, fit))

    table = [summary_of("always the start", _never), _best(runs)]
    alone = [(name, summary_of(name, single(name))) for name in _telling_runs_apart(runs)]
    alone.sort(key=lambda pair: -pair[1]["utility"])
    table += [summary for _, summary in alone]
    promising = [name for name, _ in alone[:_TRIED_TOGETHER]]
    for count in range(2, MOST_SIGNALS + 1):
        for names in combinations(promising, count):
            summary = summary_of(" + ".join(names), combined(names))
            if summary["utility"] > alone[0][1]["utility"]:
                table.append(summary)
    found = pd.DataFrame(table)
    return found.sort_values("utility", ascending=False, kind="stable").reset_index(drop=True)


def _telling_runs_apart(runs: pd.DataFrame) -> list[str]:
    """Leave out what is the same for all runs of a set, such as what is known before training."""
    groups = runs.groupby([SET, "start"])
    return [name for name in signal_names(runs) if (groups[name].nunique() > 1).any()]


def _never(runs: pd.DataFrame) -> Score:
    return lambda others: np.full(len(others), -np.inf)


def _worst_tasks(rows: pd.DataFrame) -> FloatArray:
    """Give the smallest change among the tasks of each run, in the order of `runs_of`."""
    return rows.groupby(list(RUN), sort=True, dropna=False)[DELTA].min().to_numpy(np.float64)


def _best(runs: pd.DataFrame) -> dict[str, Any]:
    table = chosen(runs, runs[DELTA].to_numpy(np.float64))
    return _summary("the best run", table.assign(regret=0.0, worst_task=np.nan))


def _summary(rule: str, table: pd.DataFrame) -> dict[str, Any]:
    delta = table["delta"].to_numpy()
    return {
        "rule": rule,
        "delta": float(delta.mean()),
        "worst": float(delta.min()),
        "worst_task": float(table["worst_task"].min()),
        "regret": float(table["regret"].mean()),
        "taken": float((table["row"] >= 0).mean()),
        "utility": float(_weighed(delta).mean()),
    }


def _threshold(runs: pd.DataFrame, values: FloatArray) -> tuple[float, float]:
    """Find the most useful threshold, and its utility.

    Which run is the best of a set does not depend on the threshold, so one look at each set is enough. Where
    several are as useful, that counts which parts all runs best, not only the best ones. Infinity where
    nothing is won by any.
    """
    values = np.where(np.isfinite(values), values, -np.inf)
    delta = _weighed(runs[DELTA].to_numpy(np.float64))
    group = runs.groupby([SET, "start"], sort=True).ngroup().to_numpy()
    order = np.lexsort((-values, group))
    best = order[np.r_[True, np.diff(group[order]) > 0]]
    known = np.unique(values[np.isfinite(values)])
    if not len(known):
        return 0.0, np.inf
    limits = np.concatenate([[2 * known[0] - known[-1] - 1e-6], (known[1:] + known[:-1]) / 2])
    worth = (delta[best] * (values[best] > limits[:, None])).sum(axis=1) / len(best)
    of_all = (delta * (values > limits[:, None])).sum(axis=1)
    useful = worth >= worth.max() - 1e-12
    where = int(np.where(useful, of_all, -np.inf).argmax())
    return (float(worth[where]), float(limits[where])) if worth[where] > 0 else (0.0, np.inf)


def _weighed(delta: FloatArray) -> FloatArray:
    return np.where(delta < 0, LOSS_WEIGHT * delta, delta)
