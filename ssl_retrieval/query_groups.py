"""Which queries belong together: those of one class, object, landmark or building.

Such queries rise and fall together (they search for the same images), so they tell less than as many
independent ones. `resampling` decides what follows from that.
"""

import numpy as np

from ssl_retrieval.types import IntArray, Task


def query_groups(task: Task) -> IntArray:
    """Group the queries of a task.

    Queries with labels are grouped by label. Others are grouped when there is something that both search for,
    directly or through further queries; a query's own image in the gallery counts as searched for, so that
    two photos that search for each other are one group.

    Args:
        task: The task.

    Returns:
        int64 [Q], numbers of groups; their order says nothing.
    """
    if task.queries.labels is not None:
        return task.queries.labels
    position = {path: i for i, path in enumerate(task.gallery.paths)}
    leader = np.arange(len(task.queries), dtype=np.int64)
    first_query_of = np.full(len(task.gallery), -1, dtype=np.int64)

    def find(query: int) -> int:
        while leader[query] != query:
            leader[query] = leader[leader[query]]
            query = int(leader[query])
        return query

    for query, (path, relevant) in enumerate(zip(task.queries.paths, task.relevant, strict=True)):
        itself = position.get(path)
        wanted = relevant if itself is None else np.append(relevant, itself)
        before = np.unique(first_query_of[wanted])
        for other in before[before >= 0].tolist():
            leader[find(other)] = find(query)
        first_query_of[wanted] = query
    roots = np.array([find(query) for query in range(len(task.queries))], dtype=np.int64)
    return np.unique(roots, return_inverse=True)[1].astype(np.int64)
