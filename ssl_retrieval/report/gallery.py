"""What each representation finds for some queries, as pictures inside the page."""

import base64
import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ssl_retrieval.compare import HEADLINE_METRIC, Entry, TaskComparison
from ssl_retrieval.errors import ImageError
from ssl_retrieval.images import load_image
from ssl_retrieval.report.numbers import format_score
from ssl_retrieval.types import digest_of

THUMBNAIL_SIDE = 96


@dataclass(frozen=True)
class GalleryRow:
    """The top results of one representation for one query.

    Attributes:
        name: The representation.
        files: K image files, best first.
        hits: K truth values: is the result relevant?
        scores: K similarities, descending.
    """

    name: str
    files: list[Path]
    hits: list[bool]
    scores: list[float]

    def __post_init__(self) -> None:
        """Check that every result has its score and its verdict."""
        assert len(self.files) == len(self.hits) == len(self.scores)


@dataclass(frozen=True)
class GalleryQuery:
    """One query with the results of every representation.

    Attributes:
        query_file: The query image.
        title: What is shown above it, such as why it was picked.
        rows: One per representation.
    """

    query_file: Path
    title: str
    rows: list[GalleryRow]


@dataclass(frozen=True)
class PickedQuery:
    """A query worth looking at.

    Attributes:
        query_id: Its id in the reports.
        reason: Why it was picked, in words.
    """

    query_id: str
    reason: str


def pick_queries(task: TaskComparison, n: int) -> list[PickedQuery]:
    """Pick instructive queries: the largest wins and losses of the best representation, and a sample.

    The best one is set against the best one of another family (or the runner-up when all are of one
    family): a third of the queries where it wins most, a third where it loses most, the rest drawn at
    random, so that the reader also sees what is ordinary. Queries without positives are left out.

    Args:
        task: The comparison on one task.
        n: How many; fewer when the task has fewer.

    Returns:
        At most ``n`` different queries; the same for the same reports.
    """
    best = task.best
    values = best.report.per_query[HEADLINE_METRIC]
    usable = np.flatnonzero(~np.isnan(values))
    picked: dict[int, str] = {}
    rival = _rival(task)
    if rival is not None:
        theirs = rival.report.per_query[HEADLINE_METRIC]
        lead = (values - theirs)[usable]
        by_lead = usable[np.argsort(-lead, kind="stable")]
        share = n // 3
        for kind, order in (("win", by_lead), ("loss", by_lead[::-1])):
            sign = 1 if kind == "win" else -1
            clear = [int(i) for i in order if sign * (values[i] - theirs[i]) > 0][:share]
            for place, i in enumerate(clear):
                rank = "largest" if place == 0 else f"no. {place + 1}"
                picked[i] = (
                    f"{rank} {kind} of {best.name} against {rival.name}: "
                    f"AP {format_score(values[i], HEADLINE_METRIC)} "
                    f"to {format_score(theirs[i], HEADLINE_METRIC)}"
                )
    rest = [int(i) for i in usable if int(i) not in picked]
    generator = np.random.default_rng(int(digest_of(task.task), 16))
    for i in generator.permutation(rest)[: n - len(picked)]:
        picked[int(i)] = f"drawn at random: {best.name} AP {format_score(values[i], HEADLINE_METRIC)}"
    return [PickedQuery(best.report.query_ids[i], reason) for i, reason in picked.items()]


def _rival(task: TaskComparison) -> Entry | None:
    others = [entry for entry in task.ranked if entry is not task.best]
    of_other_family = [entry for entry in others if entry.family != task.best.family]
    return next(iter(of_other_family or others), None)


@lru_cache(maxsize=4096)
def thumbnail(file: Path) -> str:
    """Shrink an image into a ``data:`` address that a page can hold.

    Args:
        file: The image; one that cannot be read gives a blank, since a missing picture must not cost
            the whole page.

    Returns:
        A base64 JPEG whose long side is ``THUMBNAIL_SIDE`` pixels.
    """
    try:
        image = load_image(file)
    except ImageError:
        image = Image.new("RGB", (THUMBNAIL_SIDE, THUMBNAIL_SIDE), "grey")
    # A strip of 20,000 × 20 would otherwise become a line without height.
    image = ImageOps.contain(image, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
