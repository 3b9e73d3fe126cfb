"""What one representation finds for one query, ready to be shown."""

import numpy as np

from ssl_retrieval.evaluate import Scored
from ssl_retrieval.report.gallery import GalleryRow
from ssl_retrieval.search import top_k
from ssl_retrieval.similarity import Rows


def results_of(name: str, scored: Scored, place: int, k: int) -> GalleryRow:
    """Search with one query.

    Args:
        name: Of the representation.
        scored: Its scores on a task.
        place: Index of the query.
        k: How many results.
    """
    task = scored.task
    chosen = Rows(scored.similarity, np.array([place], np.int64))
    ranking = top_k(chosen, None, k, task.ignored[place : place + 1])
    found = ranking.indices[0][ranking.indices[0] >= 0]
    return GalleryRow(
        name=name,
        files=[task.gallery.file(int(i)) for i in found],
        hits=np.isin(found, task.relevant[place]).tolist(),
        scores=ranking.scores[0][: len(found)].tolist(),
    )
