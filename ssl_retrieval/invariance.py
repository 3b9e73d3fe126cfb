"""Which alterations of a picture a representation does not notice, and which break it."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from PIL import Image

from ssl_retrieval.search import relevant_ranks
from ssl_retrieval.statistics import bootstrap_mean
from ssl_retrieval.types import IntArray, VectorArray

Alterations = Mapping[str, Mapping[str, Callable[[Image.Image], Image.Image]]]
"""Name of a kind of alteration -> strength in words -> what does it."""


def audit(
    embed: Callable[[Sequence[Image.Image]], VectorArray],
    originals: Sequence[Image.Image],
    rows: IntArray,
    gallery: VectorArray,
    alterations: Alterations,
) -> pd.DataFrame:
    """Alter pictures and see how far their vectors move, and whether the originals are still found.

    Args:
        embed: Gives float32 [M, D], rows of length 1 or 0.
        originals: M pictures, at least 2.
        rows: int64 [M]: where they stand in the gallery.
        gallery: float32 [N, D], rows of length 1 or 0, in which the altered pictures search.
        alterations: What is tried.

    Returns:
        One row per alteration and strength: ``alteration``, ``strength``, ``cosine`` (mean cosine of altered
        and original), ``kept`` (the same, from 0 = like a stranger to 1 = the same vector),
        ``hit_rate@1`` (share that find their original first) with its 95 % interval ``low`` to ``high``, and
        ``median_rank`` of the original in the gallery.
    """
    assert len(originals) == len(rows) >= 2
    own = gallery[rows]
    stranger = _mean_cosine_of_strangers(own)
    table = []
    for name, strengths in alterations.items():
        for strength, alter in strengths.items():
            altered = embed([alter(image) for image in originals])
            cosine = float((altered * own).sum(axis=1).mean())
            ranks = relevant_ranks(altered, gallery, [np.array([row], np.int64) for row in rows.tolist()])
            # Images that tie with the original, as vectors of zeros do, count against it.
            rank = ranks.worst_ranks[:, 0]
            hits = bootstrap_mean((rank == 1).astype(np.float64))
            table.append(
                {
                    "alteration": name,
                    "strength": strength,
                    "cosine": cosine,
                    "kept": (cosine - stranger) / (1 - stranger) if stranger < 1 else float("nan"),
                    "hit_rate@1": hits.mean,
                    "low": hits.low,
                    "high": hits.high,
                    "median_rank": float(np.median(rank)),
                }
            )
    return pd.DataFrame(table)


def _mean_cosine_of_strangers(vectors: VectorArray) -> float:
    """Average the cosine over all pairs of different rows."""
    whole = vectors.sum(axis=0, dtype=np.float64)
    own = np.square(vectors, dtype=np.float64).sum()
    count = len(vectors)
    return float((whole @ whole - own) / (count * (count - 1)))
