"""Which of many points of an embedding to take: the cheapest of those that are about as good as the best."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssl_retrieval.resampling import StatisticsOptions, of_report
from ssl_retrieval.statistics import SIGNIFICANCE, Interval, PairedDifference, bootstrap_mean, paired_test
from ssl_retrieval.types import Report

MEASURE = "mAP"


@dataclass(frozen=True, eq=False)
class Tried:
    """A point, and how it searches.

    Attributes:
        label: Its name.
        axis: What was varied when it was tried: ``place``, ``resolution`` or ``dimensions``.
        place: Where the vector is taken, in words; points of one place differ in their post-processing.
        processing: Post-processing in words; empty = none.
        model: The extractor's config.
        steps: Post-processing as `postprocess.parse` reads it.
        image_size: Input side in pixels; None = it has none.
        report: Its scores.
    """

    label: str
    axis: str
    place: str
    processing: str
    model: Any
    steps: tuple[str, ...]
    image_size: int | None
    report: Report

    @property
    def score(self) -> float:
        """The mean ``mAP``."""
        return float(np.nanmean(self.report.per_query[MEASURE]))

    @property
    def dim(self) -> int:
        """Dimensions of the vector."""
        return int(self.report.representation["dim"])

    @property
    def bytes_per_image(self) -> float:
        """What an image of the gallery takes."""
        return float(self.report.costs["bytes_per_image"] or 0)

    @property
    def images_per_s(self) -> float:
        """Speed of embedding; NaN where it is not known."""
        return float(self.report.costs["embed_images_per_s"] or "nan")

    @property
    def cost(self) -> tuple[float, float, float]:
        """What is compared: bytes, then pixels of the input, then time.

        Pixels first: the time of a busy machine would otherwise choose between resolutions.
        """
        slowness = 1 / self.images_per_s if self.images_per_s > 0 else float("inf")
        return self.bytes_per_image, float(self.image_size or 0), slowness


@dataclass(frozen=True, eq=False)
class Judged:
    """A point against the others.

    Attributes:
        tried: The point.
        score: ``mAP`` with its interval.
        against_default: It minus the default point, query by query; None for that itself.
        behind_best: The best minus it; None for the best.
        is_tied: Whether it is the best, or about as good.
    """

    tried: Tried
    score: Interval
    against_default: PairedDifference | None
    behind_best: PairedDifference | None
    is_tied: bool


def judge(points: Sequence[Tried], options: StatisticsOptions, max_loss: float) -> list[Judged]:
    """Compare points that were scored on the same queries.

    A point ties with the best when the paired test does not tell them apart (p at least 0.05) and its mean is
    at most ``max_loss`` lower. P-values are not adjusted for the number of points: here that would make the
    test milder, and "not told apart" the easier to get.

    Args:
        points: The default point first.
        options: What is resampled, and which test is used.
        max_loss: Of ``mAP``.
    """
    default, best = points[0], max(points, key=lambda point: point.score)
    judged = []
    for point in points:
        behind = None if point is best else _minus(best, point, options)
        judged.append(
            Judged(
                tried=point,
                score=_interval(point, options),
                against_default=None if point is default else _minus(point, default, options),
                behind_best=behind,
                is_tied=behind is None or (not behind.p_value < SIGNIFICANCE and behind.mean <= max_loss),
            )
        )
    return judged


def cheapest(judged: Sequence[Judged]) -> Judged:
    """Give the tied point of the lowest cost; of equal ones the better."""
    return min((one for one in judged if one.is_tied), key=lambda one: (one.tried.cost, -one.score.mean))


def _interval(point: Tried, options: StatisticsOptions) -> Interval:
    resampling = of_report(point.report, options.resample)
    return bootstrap_mean(point.report.per_query[MEASURE], groups=resampling.groups)


def _minus(one: Tried, other: Tried, options: StatisticsOptions) -> PairedDifference:
    assert one.report.query_ids == other.report.query_ids
    return paired_test(
        one.report.per_query[MEASURE],
        other.report.per_query[MEASURE],
        groups=of_report(one.report, options.resample).groups,
        test=options.test,
    )
