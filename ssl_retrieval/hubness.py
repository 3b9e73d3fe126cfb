"""Hubs: images that come up for far too many queries, while others are never found.

In spaces of many dimensions some points are near neighbours of nearly everything (Radovanović et al., "Hubs
in space", JMLR 2010). N_k, how often an image is among the k best, is then skewed.
"""

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy import stats

from ssl_retrieval.types import IntArray, Ranking


@dataclass(frozen=True)
class Hubness:
    """How unevenly a gallery is found.

    Attributes:
        k: Results per query.
        mean: Of N_k over the gallery: how often each image would come up if all did alike.
        skewness: Third standardised moment of N_k; 0 = symmetric, above 1 = clearly hubs. NaN when all are
            alike.
        antihubs: Share of the gallery that no query finds.
        hubs: Share of the gallery that comes up more than twice the mean.
        taken_by_hubs: Share of all results that these make up.
        robin_hood: Share of all results that would have to be taken from hubs to make all images alike, 0 to
            1 (Feldbauer et al., "Fast approximate hubness reduction", 2018).
        largest: The largest N_k.
    """

    k: int
    mean: float
    skewness: float
    antihubs: float
    hubs: float
    taken_by_hubs: float
    robin_hood: float
    largest: int


def k_occurrences(ranking: Ranking, num_gallery: int) -> IntArray:
    """Count how often each gallery image is among the results: N_k, int64 [N].

    Args:
        ranking: Of width k.
        num_gallery: N.

    >>> ranking = Ranking(np.array([[2, 0], [2, -1]]), np.array([[1, 0], [1, -np.inf]], np.float32))
    >>> k_occurrences(ranking, 4)
    array([1, 0, 2, 0])
    """
    found = ranking.indices[ranking.indices >= 0]
    return np.bincount(found, minlength=num_gallery).astype(np.int64)


def hubness(occurrences: IntArray, k: int) -> Hubness:
    """Measure how uneven N_k is.

    Args:
        occurrences: int64 [N], N_k; not all 0.
        k: Results per query.

    >>> measured = hubness(np.array([0, 0, 0, 4]), k=1)
    >>> measured.antihubs, measured.taken_by_hubs, measured.robin_hood
    (0.75, 1.0, 0.75)
    """
    total, mean = occurrences.sum(), occurrences.mean()
    assert total > 0
    is_hub = occurrences > 2 * mean
    varies = bool(np.ptp(occurrences))
    return Hubness(
        k=k,
        mean=float(mean),
        skewness=float(stats.skew(occurrences)) if varies else float("nan"),
        antihubs=float((occurrences == 0).mean()),
        hubs=float(is_hub.mean()),
        taken_by_hubs=float(occurrences[is_hub].sum() / total),
        robin_hood=float(np.abs(occurrences - mean).sum() / (2 * total)),
        largest=int(occurrences.max()),
    )


def hubness_table(rankings: dict[str, Ranking], num_gallery: int) -> pd.DataFrame:
    """Measure several representations of one task.

    Args:
        rankings: Label -> ranking of width k.
        num_gallery: N.

    Returns:
        One row per representation: its label and the fields of `Hubness`.
    """
    rows = []
    for label, ranking in rankings.items():
        measured = hubness(k_occurrences(ranking, num_gallery), ranking.indices.shape[1])
        rows.append({"representation": label, **asdict(measured)})
    return pd.DataFrame(rows)
