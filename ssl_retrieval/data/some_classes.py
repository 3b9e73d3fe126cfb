"""A part of another dataset's classes: train on some, search others that training never saw.

As CUB-200, Cars and SOP are split (Song et al., "Deep metric learning via lifted structured feature
embedding", CVPR 2016), for any dataset with labels. Ranges that meet
share no class. Three of them make an honest run::

    data:       {name: some_classes, root: DIR, of: {name: grocery, root: ""}, end: 0.4}
    validation: {name: some_classes, root: DIR, of: {name: grocery, root: ""}, begin: 0.4, end: 0.5}
    # and for the test, begin: 0.5

Post-processing is fitted on images of the other classes, if there are any. Distractors have no class, and
stay.
"""

import importlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_retrieval.data.base import DataConfig, check, existing_folder
from ssl_retrieval.data.tasks import answerable, class_range, in_classes
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import ImageSet, Task


@dataclass
class Config(DataConfig):
    """Options of the loader.

    Attributes:
        root: The folder below which the root of ``of`` is looked for; empty = that is given as it is.
        of: The dataset section.
        begin: Share of the classes, in the order of its labels, before the range.
        end: Share of the classes up to the end of the range.
    """

    name: str = "some_classes"
    root: str = ""
    of: Any = field(default=None, metadata={"kind": "dataset"})
    begin: float = 0.0
    end: float = 1.0


def load(cfg: Config) -> Task:
    """Make the dataset's task, with queries and gallery of the chosen classes alone.

    Raises:
        UserError: The dataset is wrong, has no labels, or nothing can be found in the range.
    """
    task: Task = _whole(cfg, "load")
    chosen = in_classes(task.queries, cfg.begin, cfg.end)
    queries = {task.queries.paths[i] for i in np.flatnonzero(chosen)}
    gallery = _gallery(task, chosen, cfg)
    num_classes = len(task.queries.class_names)
    first, last = class_range(num_classes, cfg.begin, cfg.end)
    fit = task.fit
    if fit is not None:
        others = np.flatnonzero(~in_classes(fit, cfg.begin, cfg.end))
        fit = fit.take(others) if len(others) else None
    return answerable(
        replace(
            task.restrict(queries, gallery),
            name=f"{task.name}-classes-{first + 1}-to-{last}",
            fit=fit,
            description=f"{len(queries)} queries search {len(gallery)} images of {last - first} classes, "
            f"{first + 1} to {last} of {num_classes}{_others(task)}.",
        )
    )


def images(cfg: Config) -> ImageSet:
    """List the dataset's images of the chosen classes, for training.

    Raises:
        UserError: The dataset is wrong, has no labels, or no image of these classes.
    """
    whole: ImageSet = _whole(cfg, "images")
    chosen = np.flatnonzero(in_classes(whole, cfg.begin, cfg.end))
    if len(chosen) == 0:
        raise UserError(
            f"data.begin={cfg.begin}, end={cfg.end}: data.of.name={cfg.of.name} has no training images of "
            "these classes"
        )
    return whole.take(chosen)


def _gallery(task: Task, chosen: NDArray[np.bool_], cfg: Config) -> set[str]:
    """Name the gallery images that stay: those of the chosen classes, and those of none.

    Args:
        task: The whole task.
        chosen: bool [Q], the queries of the range.
        cfg: The range.
    """
    gallery = task.gallery
    if gallery.labels is not None:
        return {gallery.paths[i] for i in np.flatnonzero(in_classes(gallery, cfg.begin, cfg.end))}
    others = np.flatnonzero(~chosen)
    of_others = {gallery.paths[i] for query in others for i in task.relevant[query]}
    return set(gallery.paths) - of_others - {task.queries.paths[query] for query in others}


def _others(task: Task) -> str:
    return ", and distractors" if task.gallery.labels is None else ""


def _whole(cfg: Config, what: str) -> Any:
    """Call ``load`` or ``images`` of the dataset's loader."""
    check(cfg)
    part = cfg.of
    if part is None:
        raise UserError("data.of: give the dataset whose classes are meant, as data.of.name=grocery")
    if cfg.root:
        root = existing_folder("data.root", cfg.root)
        part = replace(part, root=str(root / Path(part.root).expanduser()))
    # A dataset's Config lives in the file of its loader.
    return getattr(importlib.import_module(type(part).__module__), what)(part)
