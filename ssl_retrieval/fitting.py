"""On which images a vocabulary or a whitening may be fitted: never silently on the queries."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ssl_retrieval import config, plugins
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import ImageSet, IntArray, Task


class NothingToFitError(UserError):
    """A task has no images to fit on."""


@dataclass(frozen=True, eq=False)
class FitSet:
    """Images to fit on, and what they have in common with a task's test images.

    Attributes:
        images: The images, with labels where the source has them.
        source: Where they come from, in words.
        num_in_gallery: How many of them stand in the gallery too.
        num_in_queries: How many of them are queries; above 0 only where that was forced.
    """

    images: ImageSet
    source: str
    num_in_gallery: int
    num_in_queries: int

    def to_dict(self) -> dict[str, object]:
        """Give plain values for the report."""
        return {
            "source": self.source,
            "num_images": len(self.images),
            "num_in_gallery": self.num_in_gallery,
            "num_in_queries": self.num_in_queries,
        }


def fit_set(task: Task, given: ImageSet | None, limit: int, on_test: bool, seed: int) -> FitSet:
    """Choose the images to fit on.

    Args:
        task: Its ``fit`` is used where nothing is given.
        given: Images of another set; None = the task's own.
        limit: At most so many, drawn at random; at least 2.
        on_test: Whether a set that holds queries may be used, or, without any set, the gallery.
        seed: Of the draw.

    Raises:
        NothingToFitError: There is no such set.
        UserError: It holds queries and that was not forced.
    """
    if limit < 2:
        raise UserError(f"fit_limit={limit}: at least 2 images are needed to fit anything")
    source = "another set" if given is not None else "the task's own training images"
    images = task.fit if given is None else given
    if images is None and on_test:
        images, source = task.gallery, "the gallery (forced)"
    if images is None:
        raise NothingToFitError(
            f"task {task.name!r} has no images to fit on: name others with fit.name=… and fit.root=…, or "
            "fit on the test images themselves with fit_on_test=true"
        )
    images = _drawn(images, limit, seed)
    in_queries = _num_shared(images, task.queries)
    if in_queries and not on_test:
        raise UserError(
            f"task {task.name!r}: {in_queries} of the {len(images)} images to fit on are queries, which "
            "makes scores look better than they are: give other images as fit.name=…, or force it with "
            "fit_on_test=true"
        )
    return FitSet(images, source, _num_shared(images, task.gallery), in_queries)


def _drawn(images: ImageSet, limit: int, seed: int) -> ImageSet:
    if len(images) <= limit:
        return images
    chosen: IntArray = np.random.default_rng(seed % 2**32).permutation(len(images))[:limit].astype(np.int64)
    return images.take(np.sort(chosen))


def _num_shared(one: ImageSet, other: ImageSet) -> int:
    return len(_files(one) & _files(other))


def _files(images: ImageSet) -> set[str]:
    root = images.root.resolve()
    return {str(root / path) for path in images.paths}


def images_of_section(section: Any, name: str = "fit") -> ImageSet:
    """List the images of a config's section.

    Args:
        section: A dataset section.
        name: What it is called in the config.

    Raises:
        UserError: Wrong data; the line names the keys of this section.
    """
    try:
        images: ImageSet = plugins.find("dataset", section.name).images(section)
    except UserError as error:
        raise UserError(config.in_section(str(error), section, name)) from error
    return images
