"""One task -> two: choose something by half of the queries, and score it on the other half."""

from dataclasses import replace

import numpy as np

from ssl_retrieval.errors import UserError
from ssl_retrieval.query_groups import query_groups
from ssl_retrieval.types import IntArray, Task


def query_halves(task: Task, seed: int) -> tuple[Task, Task]:
    """Split the queries, whole groups at a time, as evenly as a random order of the groups allows.

    Both halves search the same gallery. Queries that rise and fall together (see `query_groups`) stay
    together: what is chosen by one half would otherwise be known to suit the other.

    Args:
        task: The task.
        seed: Of the order.

    Raises:
        UserError: All queries with something to find are of one group.
    """
    groups = query_groups(task)
    answered = np.array([len(relevant) > 0 for relevant in task.relevant])
    counted = np.unique(groups[answered])
    if len(counted) < 2:
        raise UserError(
            f"task {task.name!r}: all queries are of one class or object, so they cannot be split: give "
            "another task to choose by as validation.name=…"
        )
    first: set[int] = set()
    taken = total = 0
    for group in np.random.default_rng(seed).permutation(counted).tolist():
        size = int((groups[answered] == group).sum())
        # Into the half that is behind.
        if 2 * taken <= total:
            first.add(group)
            taken += size
        total += size
    in_first = np.isin(groups, sorted(first))
    return (
        _with_queries(task, np.flatnonzero(in_first), "choosing half"),
        _with_queries(task, np.flatnonzero(~in_first), "other half"),
    )


def _with_queries(task: Task, rows: IntArray, name: str) -> Task:
    return replace(
        task,
        name=f"{task.name} ({name})",
        queries=task.queries.take(rows),
        relevant=tuple(task.relevant[row] for row in rows),
        ignored=tuple(task.ignored[row] for row in rows),
    )
