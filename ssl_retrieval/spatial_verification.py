"""Spatial verification: does one photo lie on the other? (Philbin et al., CVPR 2007).

Local features of two images are matched, and the largest set of matches that one affinity or homography
explains is looked for by RANSAC. The more matches it explains, the surer it is that both show the same thing.
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ssl_retrieval.keypoints import Detector, LocalFeatures
from ssl_retrieval.search import top_k
from ssl_retrieval.similarity import Listed, Similarity
from ssl_retrieval.types import FloatArray, IntArray, VectorArray

MODELS = {"affine": 3, "homography": 4}
"""Model -> how many matches it explains whatever they are."""

_THRESHOLD = 5.0
"""A match is explained if it is mapped to within so many pixels; long sides have at most 1024."""

_KEPT_IMAGES = 4096
_CONFIDENCE = 0.999


@dataclass(frozen=True, eq=False)
class Verified:
    """A shortlist in the order of its inliers, and what that took.

    Attributes:
        similarity: The new scores.
        inliers: int64 [Q, top]: of the shortlist in its old order; -1 where there is no image.
        gallery_s: Seconds of describing gallery images.
        num_described: How many these were; each counts once, but for what no longer fitted into memory.
        gallery_bytes: Their local features.
        query_s: All other seconds.
    """

    similarity: Listed
    inliers: IntArray
    gallery_s: float
    num_described: int
    gallery_bytes: int
    query_s: float


def count_inliers(one: VectorArray, other: VectorArray, model: str) -> int:
    """Count the matches that one transform explains, found by RANSAC; the same input gives the same count.

    Args:
        one: float32 [m, 2]: places in one image, in pixels.
        other: float32 [m, 2]: the matching places in the other.
        model: One of `MODELS`.

    Returns:
        0 when there are no more matches than any transform of the kind explains.
    """
    if len(one) <= MODELS[model]:
        return 0
    if model == "affine":
        _, mask = cv2.estimateAffine2D(
            one, other, method=cv2.RANSAC, ransacReprojThreshold=_THRESHOLD, confidence=_CONFIDENCE
        )
    else:
        _, mask = cv2.findHomography(one, other, cv2.RANSAC, _THRESHOLD, confidence=_CONFIDENCE)
    return 0 if mask is None else int(np.count_nonzero(mask))


def verify(
    base: Similarity,
    describe_query: Callable[[int], LocalFeatures],
    describe_gallery: Callable[[int], LocalFeatures],
    detector: Detector,
    *,
    top: int,
    model: str,
    min_inliers: int,
    own: Sequence[IntArray],
) -> Verified:
    """Put the first ``top`` images of each query in the order of their inliers.

    Images with equally many keep their old order among each other, and so do all with fewer than
    ``min_inliers``, which prove nothing. Behind the shortlist nothing changes.

    Args:
        base: The old scores. Where a query's are all equal (it has no features) the shortlist is the first
            part of the gallery.
        describe_query: Index of a query -> its local features.
        describe_gallery: The same for the gallery.
        detector: Matches them.
        top: Length of the shortlist; of a smaller gallery all.
        model: One of `MODELS`.
        min_inliers: See above.
        own: Q arrays: where the query itself stands in the gallery; it is not in the shortlist.
    """
    begin = time.perf_counter()
    described = _Described(describe_gallery)
    shortlist = top_k(base, None, min(top, base.num_gallery), own)
    inliers = np.where(shortlist.indices >= 0, 0, -1)
    for row, images in enumerate(shortlist.indices):
        query = describe_query(row)
        for column, image in enumerate(images[images >= 0].tolist()):
            found = described(image)
            pairs = detector.match(query, found)
            inliers[row, column] = count_inliers(query.places[pairs[:, 0]], found.places[pairs[:, 1]], model)
    counted = np.where(inliers >= min_inliers, inliers, 0)
    scores = counted + _old_order(shortlist.scores)
    order = np.argsort(np.where(shortlist.indices >= 0, -scores, np.inf), axis=1, kind="stable")
    similarity = Listed.of(
        base,
        np.take_along_axis(shortlist.indices, order, axis=1),
        np.take_along_axis(np.where(shortlist.indices >= 0, scores, 0.0), order, axis=1),
    )
    return Verified(
        similarity=similarity,
        inliers=inliers,
        gallery_s=described.seconds,
        num_described=described.count,
        gallery_bytes=described.num_bytes,
        query_s=time.perf_counter() - begin - described.seconds,
    )


class _Described:
    """Describes gallery images when they are first needed, and takes the time."""

    def __init__(self, describe: Callable[[int], LocalFeatures]) -> None:
        self.seconds, self.count, self.num_bytes = 0.0, 0, 0

        @functools.lru_cache(maxsize=_KEPT_IMAGES)
        def kept(image: int) -> LocalFeatures:
            begin = time.perf_counter()
            found = describe(image)
            self.seconds += time.perf_counter() - begin
            self.count += 1
            self.num_bytes += found.num_bytes
            return found

        self._kept = kept

    def __call__(self, image: int) -> LocalFeatures:
        return self._kept(image)


def _old_order(scores: VectorArray) -> FloatArray:
    """Turn descending scores [Q, k] into numbers from 0 to below 1 in the same order; equals stay equal."""
    steps = np.diff(scores, axis=1) < 0
    level = np.concatenate([np.zeros((len(scores), 1), np.int64), np.cumsum(steps, axis=1)], axis=1)
    return 1 - (level + 1) / (scores.shape[1] + 1)
