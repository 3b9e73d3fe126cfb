"""From which similarity on can a match be trusted? Thresholds that keep a wanted precision.

Only the best match of each query counts, so that queries are independent and binomial bounds hold. A query
without anything to find counts too: whatever it gets is wrong.

A threshold that merely reaches the precision on the queries it was chosen on reaches less on others. The
sure threshold allows for that by fixed-sequence testing (Angelopoulos et al., "Learn then test", arXiv
2110.01052): from a strict threshold it goes down a grid for as long as the Clopper-Pearson lower bound keeps
the precision, and the first failure ends it. Grid and starts are quantiles of the scores, chosen without
looking at right and wrong; the error probability is shared among the starts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from ssl_retrieval.errors import UserError
from ssl_retrieval.types import FloatArray, Ranking, Task

GRID = 100
"""Thresholds that may be tried for the sure one: those that accept 1/100, 2/100, … of the queries."""

STARTS = (1, 3, 6, 12, 25, 50)
"""How many hundredths of the queries the first thresholds accept."""


@dataclass(frozen=True, eq=False)
class BestMatches:
    """The best match of each query.

    Attributes:
        scores: float64 [Q], its similarity.
        right: bool [Q], whether it is relevant.
        answerable: bool [Q], whether anything is.
    """

    scores: FloatArray
    right: NDArray[np.bool_]
    answerable: NDArray[np.bool_]

    @classmethod
    def of(cls, task: Task, ranking: Ranking) -> "BestMatches":
        """Look at the first column of a ranking; queries without a candidate are left out."""
        first = ranking.indices[:, 0]
        rows = np.flatnonzero(first >= 0)
        return cls(
            ranking.scores[rows, 0].astype(np.float64),
            np.array([bool((task.relevant[row] == first[row]).any()) for row in rows], np.bool_),
            np.array([len(task.relevant[row]) > 0 for row in rows], np.bool_),
        )

    def take(self, rows: NDArray[np.int64]) -> "BestMatches":
        """Keep some queries."""
        return BestMatches(self.scores[rows], self.right[rows], self.answerable[rows])


def precision_curve(matches: BestMatches) -> pd.DataFrame:
    """Try every threshold: accept a best match that scores at least as high.

    Returns:
        One row per distinct score, from the highest: ``threshold``, ``accepted`` (share of all queries),
        ``precision`` (right among the accepted) and ``recall`` (right and accepted, among the queries that
        can be answered).
    """
    order = np.argsort(-matches.scores, kind="stable")
    scores, right = matches.scores[order], matches.right[order].cumsum()
    last = np.flatnonzero(np.append(np.diff(scores) != 0, np.ones(min(1, len(scores)), np.bool_)))
    accepted = last + 1
    return pd.DataFrame(
        {
            "threshold": scores[last],
            "accepted": accepted / max(1, len(scores)),
            "precision": right[last] / accepted,
            "recall": right[last] / max(1, int(matches.answerable.sum())),
        }
    )


def reaching(matches: BestMatches, precision: float) -> float:
    """Give the lowest threshold that keeps a precision on these very queries; NaN where none does."""
    curve = precision_curve(matches)
    good = curve.loc[curve["precision"] >= precision, "threshold"]
    return float(good.min()) if len(good) else float("nan")


def sure(matches: BestMatches, precision: float, level: float = 0.95) -> float:
    """Give the lowest threshold that keeps a precision on new queries, with confidence.

    Args:
        matches: Queries like those to come.
        precision: What is wanted, between 0 and 1.
        level: Probability that the threshold keeps its promise.

    Returns:
        The threshold; NaN where these queries are too few, or too often wrong, to promise anything.
    """
    # From strict to lax.
    grid = np.quantile(matches.scores, 1 - np.arange(1, GRID + 1) / GRID, method="lower")
    accepted = np.array([(matches.scores >= threshold).sum() for threshold in grid])
    right = np.array([matches.right[matches.scores >= threshold].sum() for threshold in grid])
    keeps = lower_bound(right, accepted, (1 - level) / len(STARTS)) >= precision
    reached = [
        start - 1 + int(np.argmin(np.append(keeps[start - 1 :], False))) - 1
        for start in STARTS
        if keeps[start - 1]
    ]
    return float(grid[max(reached)]) if reached else float("nan")


def lower_bound(right: NDArray[np.int64], total: NDArray[np.int64], alpha: float) -> FloatArray:
    """Give the one-sided Clopper-Pearson lower bound of a share.

    Args:
        right: int64 [M], successes.
        total: int64 [M], trials.
        alpha: Probability that the true share lies below.

    Returns:
        float64 [M]; 0 without a success.

    >>> lower_bound(np.array([0, 10]), np.array([10, 10]), 0.05).round(4)
    array([0.    , 0.7411])
    """
    # Without a success the beta distribution does not exist; its limit is 0.
    bound = stats.beta.ppf(alpha, np.maximum(right, 1), total - right + 1)
    return np.where(right > 0, bound, 0.0)


def calibration_table(
    matches: BestMatches, precisions: Sequence[float], seed: int = 0, level: float = 0.95
) -> pd.DataFrame:
    """Choose thresholds on half of the queries and check them on the other half.

    Args:
        matches: All queries.
        precisions: What is wanted, each between 0 and 1.
        seed: Of the halving.
        level: See `sure`; also of the intervals.

    Returns:
        Two rows per wanted precision, for the threshold that just ``reaches`` it and the ``sure`` one:
        ``wanted``, ``kind``, ``threshold``, and on the other half ``accepted``, ``precision`` with its exact
        interval ``low`` to ``high``, and ``recall``. NaN where there is no threshold, or nothing passes it.

    Raises:
        UserError: A precision is no share, or there are fewer than 4 queries.
    """
    for wanted in precisions:
        if not 0 < wanted < 1:
            raise UserError(f"precisions: {wanted} is wanted; each must lie between 0 and 1, such as 0.95")
    if len(matches.scores) < 4:
        raise UserError(f"calibration needs at least 4 queries with candidates, not {len(matches.scores)}")
    order = np.random.default_rng(seed % 2**32).permutation(len(matches.scores))
    chosen_on, checked_on = (matches.take(np.sort(half)) for half in np.array_split(order, 2))
    rows = []
    for wanted in precisions:
        for kind, threshold in (
            ("reaches", reaching(chosen_on, wanted)),
            ("sure", sure(chosen_on, wanted, level)),
        ):
            rows.append(
                {"wanted": wanted, "kind": kind, "threshold": threshold}
                | _check(checked_on, threshold, level)
            )
    return pd.DataFrame(rows)


def _check(matches: BestMatches, threshold: float, level: float) -> dict[str, float]:
    accepted = matches.scores >= threshold
    total, right = int(accepted.sum()), int(matches.right[accepted].sum())
    if np.isnan(threshold) or total == 0:
        return dict.fromkeys(("accepted", "precision", "low", "high", "recall"), float("nan"))
    interval = stats.binomtest(right, total).proportion_ci(level, method="exact")
    return {
        "accepted": total / len(accepted),
        "precision": right / total,
        "low": float(interval.low),
        "high": float(interval.high),
        "recall": right / max(1, int(matches.answerable.sum())),
    }
