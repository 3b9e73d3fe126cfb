"""From labels to image sets and tasks: the step that all loaders share."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ssl_retrieval.errors import UserError
from ssl_retrieval.types import ImageSet, IntArray, Protocol, Task

NO_GROUP = -1
"""The group of an image that matches nothing: unlabelled, or a distractor."""


def labelled(
    root: Path, paths: Sequence[str], names: Sequence[str], class_names: Sequence[str] = ()
) -> ImageSet:
    """Make an image set from class names.

    Args:
        root: The folder that the paths are relative to.
        paths: N relative paths.
        names: N class names.
        class_names: All classes in the order of their labels; by default the sorted distinct names.

    Returns:
        N labelled images.

    >>> labelled(Path("/photos"), ["1.jpg", "2.jpg"], ["cat", "ape"]).labels
    array([1, 0])
    """
    class_names = tuple(class_names) or tuple(sorted(set(names)))
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = np.array([label_of[name] for name in names], dtype=np.int64)
    return ImageSet(root=root, paths=tuple(paths), labels=labels, class_names=class_names)


def first_per_class(images: ImageSet, limit: int | None) -> ImageSet:
    """Keep the first ``limit`` images of each class, in their order; None keeps all.

    Raises:
        UserError: A limit is set and the images have no labels.
    """
    if limit is None:
        return images
    if images.labels is None:
        raise UserError(f"data.limit_per_class={limit}: the images in {str(images.root)!r} have no labels")
    number_in_class = pd.Series(images.labels).groupby(images.labels).cumcount().to_numpy()
    return images.take(np.flatnonzero(number_in_class < limit))


def class_range(num_classes: int, begin: float, end: float) -> tuple[int, int]:
    """Turn shares of a list of classes into numbers, so that ranges that meet share none.

    Args:
        num_classes: C.
        begin: Share of the classes before the range.
        end: Share of the classes up to its end.

    Returns:
        The first class, and the one after the last.

    Raises:
        UserError: The range is empty or no range.

    >>> class_range(81, 0, 0.5), class_range(81, 0.5, 1)
    ((0, 40), (40, 81))
    """
    if not 0 <= begin < end <= 1:
        raise UserError(f"data.begin={begin}, end={end}: shares with 0 <= begin < end <= 1 are needed")
    first, last = round(begin * num_classes), round(end * num_classes)
    if first == last:
        raise UserError(f"data.begin={begin}, end={end}: no class of {num_classes} lies between them")
    return first, last


def in_classes(images: ImageSet, begin: float, end: float) -> NDArray[np.bool_]:
    """Tell which images are of the classes of a `class_range`: bool [N].

    Raises:
        UserError: The images have no labels, or the range is wrong.
    """
    if images.labels is None:
        raise UserError(f"data.of: the images in {str(images.root)!r} have no labels to choose classes by")
    first, last = class_range(len(images.class_names), begin, end)
    return (images.labels >= first) & (images.labels < last)


def task_from_groups(
    *,
    name: str,
    level: str,
    queries: ImageSet,
    gallery: ImageSet,
    query_groups: IntArray | None = None,
    gallery_groups: IntArray | None = None,
    protocol: Protocol | None = None,
    fit: ImageSet | None = None,
    description: str = "",
    metrics: tuple[str, ...] = (),
) -> Task:
    """Make a task in which the relevant items of a query are those of its group.

    A query that is itself in the gallery (same id) is ignored there, unless ``protocol.self_match`` is
    ``counted``. With leave-one-out each query keeps its own list: memory is 8 bytes times the number of
    relevant pairs.

    Args:
        name: The task's name.
        level: ``instance`` or ``category``.
        queries: Q images.
        gallery: N images under the same root.
        query_groups: int64 [Q]; ``NO_GROUP`` matches nothing. By default the labels, if there are any.
        gallery_groups: int64 [N], likewise.
        protocol: By default ``Protocol()``.
        fit: Images on which post-processing may be fitted.
        description: One plain sentence.
        metrics: Metrics that are customary here, besides the default ones.

    Returns:
        The task.
    """
    assert queries.root == gallery.root
    protocol = protocol or Protocol()
    query_groups = _groups(queries) if query_groups is None else query_groups
    gallery_groups = _groups(gallery) if gallery_groups is None else gallery_groups
    by_group = np.argsort(gallery_groups, kind="stable")
    groups, starts = np.unique(gallery_groups[by_group], return_index=True)
    members = dict(zip(groups.tolist(), np.split(by_group, starts[1:]), strict=True))
    position = {path: i for i, path in enumerate(gallery.paths)}
    nothing = np.empty(0, dtype=np.int64)
    relevant, ignored = [], []
    for path, group in zip(queries.paths, query_groups.tolist(), strict=True):
        matches = nothing if group == NO_GROUP else members.get(group, nothing)
        itself = position.get(path)
        if itself is None or protocol.self_match == "counted":
            relevant.append(matches)
            ignored.append(nothing)
        else:
            relevant.append(matches[matches != itself])
            ignored.append(np.array([itself], dtype=np.int64))
    return Task(
        name=name,
        level=level,
        queries=queries,
        gallery=gallery,
        relevant=tuple(relevant),
        ignored=tuple(ignored),
        protocol=protocol,
        fit=fit,
        description=description,
        metrics=metrics,
    )


def _groups(images: ImageSet) -> IntArray:
    return np.full(len(images), NO_GROUP, dtype=np.int64) if images.labels is None else images.labels


def require_positives(task: Task) -> None:
    """Refuse to score a task in which no query has anything to find.

    Raises:
        UserError: No query has a relevant gallery item.
    """
    if task.num_queries_with_positives == 0:
        raise UserError(
            f"no query of task {task.name!r} has a positive in the gallery, so nothing can be scored: "
            f"give subfolders as classes under {str(task.gallery.root)!r}, a manifest with labels "
            "(data.name=manifest), or at least two images per class"
        )


def subsample(task: Task, limit: int, seed: int) -> Task:
    """Draw a task small enough to be scored often, in which every query has something to find.

    Up to half of the gallery is made of one relevant item for each query that still lacks one; the rest is
    drawn from all others alike. With few classes that is nearly a plain draw; with single instances it
    keeps the queries answerable.

    Args:
        task: At least one query has a positive.
        limit: At most so many queries, and so many gallery images; at least 2.
        seed: Of the draw.
    """
    draw = np.random.default_rng(seed % 2**32)
    with_positives = np.array([i for i, relevant in enumerate(task.relevant) if len(relevant)], np.int64)
    queries = draw.permutation(with_positives)[:limit]
    chosen = np.zeros(len(task.gallery), dtype=bool)
    num_relevant = 0
    for query in queries.tolist():
        relevant = task.relevant[query]
        if num_relevant < limit // 2 and not chosen[relevant].any():
            chosen[draw.choice(relevant)] = True
            num_relevant += 1
    chosen[draw.permutation(np.flatnonzero(~chosen))[: limit - num_relevant]] = True
    return answerable(
        task.restrict(
            {task.queries.paths[i] for i in queries.tolist()},
            {task.gallery.paths[i] for i in np.flatnonzero(chosen).tolist()},
        )
    )


def answerable(task: Task) -> Task:
    """Drop the queries that have nothing to find.

    Raises:
        UserError: None has.
    """
    require_positives(task)
    pairs = zip(task.queries.paths, task.relevant, strict=True)
    return task.restrict({path for path, relevant in pairs if len(relevant)}, set(task.gallery.paths))
