"""A study's images: decoded once per set, and shared by all cells and all processes."""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ssl_retrieval import plugins
from ssl_retrieval.adaptation.study_config import SetConfig
from ssl_retrieval.data.common_root import common_root, paths_below
from ssl_retrieval.data.tasks import answerable
from ssl_retrieval.errors import UserError
from ssl_retrieval.images import report_skipped
from ssl_retrieval.locking import in_turn
from ssl_retrieval.packing import Packed, pack
from ssl_retrieval.types import ImageSet, IntArray, Task, digest_of

VIEW_MARGIN = 1.25
"""Side of a packed training photo over the side of a view: crops keep some of a photo's sharpness."""


@dataclass(frozen=True, eq=False)
class LabelledTask:
    """A task whose images are rows of a pack.

    Attributes:
        task: What is searched.
        queries: int64 [Q], the row of each query.
        gallery: int64 [N], the row of each gallery image.
    """

    task: Task
    queries: IntArray
    gallery: IntArray


@dataclass(frozen=True, eq=False)
class StudySet:
    """A set of photos with its tasks, in pixels.

    Attributes:
        name: The set.
        photos: What is trained on; without labels.
        photos_file: The pack that holds them.
        images: All images of all tasks, as the network sees them.
        tasks: Name -> task.
        key: Hash of all that decides about a cell's numbers but the setting.
    """

    name: str
    photos: Packed
    photos_file: Path
    images: Packed
    tasks: dict[str, LabelledTask]
    key: str


def open_set(name: str, cfg: SetConfig, image_size: int, out: Path) -> StudySet:
    """Decode a set's images, or open what was decoded before.

    Of several processes one decodes and the others wait for it.

    Args:
        name: The set.
        cfg: Its section.
        image_size: Side of the images in pixels.
        out: The study's folder.

    Raises:
        UserError: A dataset section is wrong, or no image can be read.
    """
    folder = out / "images"
    with in_turn(folder / f".{name}.lock", f"decoding the images of {name!r}"):
        photos = _loader(cfg.photos).images(cfg.photos)
        photos = dataclasses.replace(photos, labels=None, class_names=())
        if cfg.max_photos:
            chosen = lowest(photos.paths, cfg.max_photos)
            photos = photos.take(np.array([i for i, path in enumerate(photos.paths) if path in chosen]))
        photos_file = folder / f"{name}-photos.npy"
        packed = pack(photos, round(VIEW_MARGIN * image_size), photos_file, "skip")
        report_skipped(packed.skipped, f"the photos of {name!r}")
        tasks = {
            label: limited(_task(section, f"sets.{name}.tasks.{label}"), cfg.max_queries, cfg.max_gallery)
            for label, section in cfg.tasks.items()
        }
        images = pack(_all_images(tasks), image_size, folder / f"{name}-tasks.npy", "skip")
        report_skipped(images.skipped, f"the tasks of {name!r}")
    rows = {path: row for row, path in enumerate(images.paths)}
    root = _root(tasks)
    found = {label: _in_rows(task, root, rows) for label, task in tasks.items()}
    return StudySet(name, packed, photos_file, images, found, _key(packed, images, found))


def limited(task: Task, max_queries: int, max_gallery: int) -> Task:
    """Make a task small enough to be scored for every cell.

    What stays depends on the images' file names alone, so that tasks that share images keep the same ones,
    which then are embedded once. A gallery that must shrink keeps an answer to every query that stays.

    Args:
        task: The task.
        max_queries: At most so many queries, of those with something to find.
        max_gallery: So many gallery images, or more where the answers are more.

    Raises:
        UserError: No query has anything to find.
    """
    task = answerable(task)
    task = task.restrict(lowest(task.queries.paths, max_queries), set(task.gallery.paths))
    paths = task.gallery.paths
    if len(paths) <= max_gallery:
        return task
    answers = {min((paths[i] for i in relevant.tolist()), key=_rank) for relevant in task.relevant}
    others = [path for path in sorted(paths, key=_rank) if path not in answers]
    kept = answers.union(others[: max(0, max_gallery - len(answers))])
    return task.restrict(set(task.queries.paths), kept)


def lowest(paths: tuple[str, ...], limit: int) -> set[str]:
    """Choose images by a hash of their file names: the same ones in every list that holds them.

    Args:
        paths: Relative paths.
        limit: At most so many.
    """
    if len(paths) <= limit:
        return set(paths)
    return set(sorted(paths, key=_rank)[:limit])


def _rank(path: str) -> tuple[bytes, str]:
    return hashlib.blake2b(PurePosixPath(path).name.encode(), digest_size=8).digest(), path


def _loader(section: Any) -> Any:
    return plugins.find("dataset", section.name)


def _task(section: Any, where: str) -> Task:
    try:
        task: Task = _loader(section).load(section)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return task


def _root(tasks: dict[str, Task]) -> Path:
    roots = [task.gallery.root.resolve() for task in tasks.values()]
    found = roots[0]
    for root in roots[1:]:
        found = common_root(found, root, "another task's root")
    return found


def _all_images(tasks: dict[str, Task]) -> ImageSet:
    root = _root(tasks)
    paths: dict[str, None] = {}
    for task in tasks.values():
        for images in (task.queries, task.gallery):
            paths.update(dict.fromkeys(paths_below(root, images)))
    return ImageSet(root, tuple(paths))


def _in_rows(task: Task, root: Path, rows: dict[str, int]) -> LabelledTask:
    """Leave out what could not be read, and say in which row each image stands."""

    def readable(images: ImageSet) -> set[str]:
        pairs = zip(images.paths, paths_below(root, images), strict=True)
        return {path for path, below in pairs if below in rows}

    kept = answerable(task.restrict(readable(task.queries), readable(task.gallery)))
    queries, gallery = (
        np.array([rows[path] for path in paths_below(root, images)], np.int64)
        for images in (kept.queries, kept.gallery)
    )
    return LabelledTask(kept, queries, gallery)


def _key(photos: Packed, images: Packed, tasks: dict[str, LabelledTask]) -> str:
    described = {
        label: [
            found.queries.tolist(),
            found.gallery.tolist(),
            [indices.tolist() for indices in found.task.relevant],
            [indices.tolist() for indices in found.task.ignored],
        ]
        for label, found in tasks.items()
    }
    return digest_of([photos.key, images.key, described])
