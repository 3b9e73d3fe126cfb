"""Images whose neighbours agree on another label: wrong labels, or hard cases worth a look."""

import numpy as np
import pandas as pd

from ssl_retrieval.data.tasks import task_from_groups
from ssl_retrieval.errors import UserError
from ssl_retrieval.metrics_knn import TEMPERATURE
from ssl_retrieval.search import relevant_ranks, top_k
from ssl_retrieval.similarity import Similarity
from ssl_retrieval.types import FloatArray, ImageSet, IntArray, Ranking, Task

K = 20


def among_themselves(images: ImageSet) -> Task:
    """Make the task in which each labelled image searches all others for its label."""
    return task_from_groups(name="labels", level="category", queries=images, gallery=images)


def suspects(
    task: Task, similarity: Similarity, k: int = K, temperature: float = TEMPERATURE
) -> pd.DataFrame:
    """Rank the queries by how strongly their neighbours speak against their label.

    The k nearest vote with weight exp(score / temperature), as in `metrics_knn.knn_accuracy`. The margin is
    the share of votes for the strongest other label minus the share for the query's own, from -1 (all agree
    with it) to 1 (all agree on another one).

    Args:
        task: With labels on both sides.
        similarity: Scores of all its pairs.
        k: How many neighbours vote.
        temperature: Lower = the nearest count for more.

    Returns:
        One row per query, the most suspicious first: ``id``, ``label``, ``suggested`` (the strongest other
        label, empty where nobody votes for another), ``margin``, and ``behind``: where the middle one of its
        relevant images stands among all candidates, from 0 (first) to 1 (last), NaN without any.

    Raises:
        UserError: A side has no labels, or the two have different ones.
    """
    own, others = task.queries.labels, task.gallery.labels
    if own is None or others is None:
        raise UserError(f"task {task.name!r} has no labels to doubt: leave out label_errors")
    if task.queries.class_names != task.gallery.class_names:
        raise UserError(f"task {task.name!r}: queries and gallery have different labels; none can be doubted")
    nearest = top_k(similarity, None, min(k, len(task.gallery)), task.ignored)
    votes = vote_shares(nearest, others, len(task.gallery.class_names), temperature)
    rows = np.arange(len(own))
    for_own = votes[rows, own]
    votes[rows, own] = -1
    suggested = votes.argmax(axis=1)
    for_other = np.maximum(votes[rows, suggested], 0)
    names = np.array([*task.gallery.class_names, ""], object)
    table = pd.DataFrame(
        {
            "id": task.queries.paths,
            "label": np.array(task.queries.class_names, object)[own],
            "suggested": names[np.where(for_other > 0, suggested, -1)],
            "margin": for_other - for_own,
            "behind": _behind(task, similarity),
        }
    )
    return table.sort_values(["margin", "behind"], ascending=False, ignore_index=True, kind="stable")


def vote_shares(ranking: Ranking, labels: IntArray, num_classes: int, temperature: float) -> FloatArray:
    """Give the share of votes for each class: float64 [Q, C], rows of sum 1, or 0 without a neighbour.

    Args:
        ranking: The neighbours of Q queries.
        labels: int64 [N], of the gallery.
        num_classes: C.
        temperature: Lower = the nearest count for more.
    """
    scores = ranking.scores.astype(np.float64)
    # Relative to the best, so that no weight overflows.
    best = np.where(np.isfinite(scores[:, :1]), scores[:, :1], 0)
    weights = np.exp((scores - best) / temperature)
    votes = np.zeros((len(scores), num_classes))
    rows, places = np.nonzero(ranking.indices >= 0)
    np.add.at(votes, (rows, labels[ranking.indices[rows, places]]), weights[rows, places])
    total = votes.sum(axis=1, keepdims=True)
    return np.divide(votes, total, out=votes, where=total > 0)


def _behind(task: Task, similarity: Similarity) -> FloatArray:
    found = relevant_ranks(similarity, None, task.relevant, task.ignored)
    middle = np.full(len(task.queries), np.nan)
    some = np.flatnonzero(found.num_relevant > 0)
    middle[some] = found.ranks[some, (found.num_relevant[some] - 1) // 2] - 1
    return middle / np.maximum(found.num_candidates - 1, 1)
