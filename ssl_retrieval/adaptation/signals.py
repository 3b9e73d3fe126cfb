"""Label-free signals of whether features adapted to some photos are better than those of the start.

All are differences, adapted minus start, or compare the two; a space turned as a whole changes none of them.
How well each predicts the change in mAP is measured by the study (`predictors`), not assumed.
"""

import math
from collections.abc import Iterable

import numpy as np
from scipy import special

from ssl_retrieval import collapse, metrics
from ssl_retrieval.adaptation.probe import FAMILIES, HELD_OUT, Probe
from ssl_retrieval.adaptation.views import (
    K,
    agreement,
    found_again,
    jaccard,
    nearest_others,
    shared,
    silhouettes,
)
from ssl_retrieval.hubness import hubness, k_occurrences
from ssl_retrieval.search import relevant_ranks, top_k
from ssl_retrieval.types import FloatArray, IntArray, VectorArray

LEAST_PHOTOS = 3
"""With fewer there is no neighbour to compare."""


def signals(start: Probe, adapted: Probe) -> dict[str, float]:
    """Compare the features of the start with adapted ones, on the same photos.

    Args:
        start: Of the network as it was.
        adapted: The same photos and alterations; D may differ.

    Returns:
        Name -> value; all NaN where vectors are not finite or there are fewer than three photos:

        - ``copy_map``, ``copy_map_geometric``, …: change of `views.found_again`, mean over the alterations
          that training never shows, or over those of a family;
        - ``agreement``, ``agreement_geometric``, …: change of `views.agreement`, likewise;
        - ``rank``: log of the ratio of effective ranks (RankMe, arXiv 2210.02885), after centring;
        - ``alignment``, ``uniformity``: changes (Wang & Isola, arXiv 2005.10242); lower is called better;
        - ``kept_neighbours``: Jaccard index of the k nearest photos before and after;
        - ``kept_pairs``: mean average precision with which the pairs that are each other's nearest at the
          start are still found;
        - ``steadiness``: the same beside what the start itself still finds of them in altered photos
          (`steadiness`);
        - ``cka``: similarity of the two spaces (linear CKA; Kornblith et al., ICML 2019, arXiv 1905.00414);
        - ``clusters``: change of the mean of `views.silhouettes`;
        - ``reciprocity``: change of the share of nearest neighbours that are mutual;
        - ``hubness``: change of the Robin Hood index of k-occurrence (see `hubness`);
        - ``contrast``: change of how far the nearest photo stands out from the photos at large.
    """
    names = [*_names("copy_map"), *_names("agreement"), *_PLAIN]
    if not comparable(start, adapted):
        return dict.fromkeys(names, float("nan"))
    before, after = _of_one(start), _of_one(adapted)
    values = {name: after[name] - before[name] for name in after}
    values["kept_neighbours"] = stability(start, adapted)
    values["kept_pairs"] = kept_pairs(start, adapted)
    values["steadiness"] = steadiness(start, adapted)
    values["cka"] = cka(start.photos, adapted.photos)
    return {name: values[name] for name in names}


def signals_before(start: Probe) -> dict[str, float]:
    """Describe the photos and how the start sees them, before any training.

    Returns:
        Name -> value, all starting with ``start_``: the single terms of `signals`, and
        ``start_colour_dependence``: the share of neighbours that change when colour is taken away or turned,
        beyond the share that change by alterations that leave colour alone.
    """
    if not comparable(start, start):
        return dict.fromkeys(
            [*(f"start_{name}" for name in _SINGLE), "start_colour_dependence"], float("nan")
        )
    values = {f"start_{name}": value for name, value in _of_one(start).items()}
    values["start_colour_dependence"] = values["start_agreement"] - values["start_agreement_colour"]
    return values


def stability(first: Probe, second: Probe) -> float:
    """Compare the neighbours of two networks: mean Jaccard index of the k nearest photos.

    Of two trainings that differ in their seed it says how much of the result is chance.
    """
    own = (nearest_others(probe.photos, probe.photos) for probe in (first, second))
    return float(jaccard(shared(*own)).mean())


def kept_pairs(start: Probe, adapted: Probe) -> float:
    """Search the pairs that the start is surest of, each the other's nearest: mAP by the adapted features.

    Returns:
        In [0, 1]; NaN where the start has no such pair.
    """
    return _finds(adapted.photos, adapted.photos, *_sure_pairs(start))


def steadiness(start: Probe, adapted: Probe) -> float:
    """Measure how little training has moved the photos, in the unit of how little altering them does.

    Pairs that are each other's nearest at the start are searched by the adapted features, and by the start's
    own among its photos from altered ones. Photos whose pairs hang by a thread may lose more of them than
    photos whose pairs are firm: the same number of lost pairs says different things about different photos.

    Returns:
        Log of the ratio of odds, p / (1 - p) of either mAP: 0 where training has cost as many pairs as the
        alterations do, the larger the less it has moved. An mAP within half a pair of 0 or 1 counts as so
        much. NaN where the start has no such pair, or nothing was altered.
    """
    rows, nearest = _sure_pairs(start)
    names = held_out(start)
    if not names or not len(rows):
        return math.nan
    altered = float(np.mean([_finds(start.vectors[name], start.photos, rows, nearest) for name in names]))
    kept = _finds(adapted.photos, adapted.photos, rows, nearest)
    log_odds = [special.logit(np.clip(p, 0.5 / len(rows), 1 - 0.5 / len(rows))) for p in (kept, altered)]
    return float(log_odds[0] - log_odds[1])


def _sure_pairs(start: Probe) -> tuple[IntArray, IntArray]:
    """List the photos whose nearest photo has them for its nearest, and that photo."""
    nearest = nearest_others(start.photos, start.photos, 1)[:, 0]
    rows = np.flatnonzero(nearest[nearest] == np.arange(len(start)))
    return rows, nearest[rows]


def _finds(views: VectorArray, photos: VectorArray, rows: IntArray, wanted: IntArray) -> float:
    """Search one wanted photo from the views of some photos: mAP; NaN where there are none."""
    if not len(rows):
        return math.nan
    ranks = relevant_ranks(views[rows], photos, list(wanted[:, None]), list(rows[:, None]))
    return float(metrics.compute("mAP", ranks).mean())


def log_rank(probe: Probe) -> float:
    """Give the log of the effective rank of the photos' vectors (RankMe), after centring; at least 0."""
    return math.log(max(1.0, collapse.effective_rank(collapse.centre(probe.photos))))


def comparable(start: Probe, adapted: Probe) -> bool:
    """Tell whether there is something to compare: enough photos, and numbers only."""
    assert start.ids == adapted.ids or not (start.ids and adapted.ids), "probes of different photos"
    assert len(start) == len(adapted), "probes of different photos"
    return len(start) >= LEAST_PHOTOS and start.is_finite and adapted.is_finite


def cka(first: VectorArray, second: VectorArray) -> float:
    """Compare two spaces by linear centred kernel alignment (Kornblith et al., arXiv 1905.00414).

    Args:
        first: float32 [N, D].
        second: float32 [N, D'].

    Returns:
        1 where they are equal but for rotation and scale, down to 0; NaN where one of them is constant.

    >>> x = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    >>> round(cka(x, -2 * x[:, ::-1]), 6)
    1.0
    """
    grams = []
    for vectors in (first, second):
        centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
        grams.append(centred @ centred.T)
    one, other = grams
    size = math.sqrt(float((one * one).sum()) * float((other * other).sum()))
    return float((one * other).sum()) / size if size > 0 else float("nan")


def of_family(values: dict[str, FloatArray], names: Iterable[str]) -> FloatArray:
    """Average per-photo values over some transformations: float64 [N]."""
    return np.mean([values[name] for name in names], axis=0)


def held_out(probe: Probe) -> list[str]:
    """List the transformations of a probe that training never shows."""
    return [name for family in HELD_OUT for name in probe.family(family)]


def _of_one(probe: Probe) -> dict[str, float]:
    photos = probe.photos
    neighbours = nearest_others(photos, photos)
    values = {}
    for signal, per_photo in (("copy_map", found_again(probe)), ("agreement", agreement(probe))):
        values[signal] = _mean(per_photo, held_out(probe))
        values |= {f"{signal}_{family}": _mean(per_photo, probe.family(family)) for family in FAMILIES}
    views = [probe.vectors[name] for name in held_out(probe)]
    return values | {
        "rank": log_rank(probe),
        "alignment": float(np.mean([collapse.alignment(photos, view) for view in views]))
        if views
        else math.nan,
        "uniformity": collapse.uniformity(photos),
        "clusters": float(silhouettes(photos).mean()),
        "reciprocity": _reciprocity(neighbours),
        "hubness": _hubness(photos),
        "contrast": _contrast(photos),
    }


_SINGLE = (
    *(
        f"{signal}{family}"
        for signal in ("copy_map", "agreement")
        for family in ("", *map("_{}".format, FAMILIES))
    ),
    *("rank", "alignment", "uniformity", "clusters", "reciprocity", "hubness", "contrast"),
)
_PLAIN = (*_SINGLE[-7:], "kept_neighbours", "kept_pairs", "steadiness", "cka")


def _names(signal: str) -> list[str]:
    return [signal, *(f"{signal}_{family}" for family in FAMILIES)]


def _mean(per_photo: dict[str, FloatArray], names: list[str]) -> float:
    return float(of_family(per_photo, names).mean()) if names else float("nan")


def _reciprocity(neighbours: IntArray) -> float:
    is_neighbour = np.zeros((len(neighbours), len(neighbours)), bool)
    np.put_along_axis(is_neighbour, neighbours, True, axis=1)
    return float((is_neighbour & is_neighbour.T).sum() / is_neighbour.sum())


def _hubness(photos: VectorArray) -> float:
    k = min(K, len(photos) - 1)
    ranking = top_k(photos, photos, k, list(np.arange(len(photos))[:, None]))
    return hubness(k_occurrences(ranking, len(photos)), k).robin_hood


def _contrast(photos: VectorArray) -> float:
    """Give the cosine to the nearest photo, less the mean of all, in standard deviations; mean of photos."""
    cosines = (photos @ photos.T).astype(np.float64)
    others = ~np.eye(len(photos), dtype=bool)
    rows = cosines[others].reshape(len(photos), -1)
    spread = rows.std(axis=1)
    flat = spread < collapse.ROUNDING
    return float(np.where(flat, 0, (rows.max(axis=1) - rows.mean(axis=1)) / np.where(flat, 1, spread)).mean())
