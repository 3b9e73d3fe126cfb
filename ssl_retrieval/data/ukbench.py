"""UKBench: 2,550 objects in four photos each; the same object is to be found.

From Nistér and Stewénius, "Scalable recognition with a vocabulary tree", CVPR 2006; search for
``ukbench.zip``, for its home page has moved. ``data.root`` is the folder with ``ukbench00000.jpg``,
``ukbench00001.jpg``, …; any first part of it will do, in whole objects of four.

A query's own photo is left out of its ranking, so that mAP and hit rates say something; the N-S score (0 to
4), which by definition counts it, adds it back as the first hit. ``data.self_match=counted`` keeps the own
photo in the ranking for all metrics. The protocol records which it was.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssl_retrieval.console import say
from ssl_retrieval.data.base import DataConfig, check, existing_folder, one_of
from ssl_retrieval.data.tasks import NO_GROUP, labelled, task_from_groups
from ssl_retrieval.errors import UserError
from ssl_retrieval.images import list_images
from ssl_retrieval.types import ImageSet, Protocol, Task

_VIEWS = 4


@dataclass
class Config(DataConfig):
    """Options of the loader.

    Attributes:
        distractors: A folder of other images that join the gallery and match nothing; empty = none.
        self_match: ``counted``: a query's own photo is relevant; ``ignored``: it is left out.
    """

    name: str = "ukbench"
    distractors: str = ""
    self_match: str = "ignored"


def load(cfg: Config) -> Task:
    """Make the instance-level task.

    With distractors the ids start at the lowest folder that holds both, and the gallery has no labels.

    Raises:
        UserError: A folder is wrong.
    """
    one_of("data.self_match", cfg.self_match, ("counted", "ignored"))
    queries = images(cfg)
    protocol = Protocol(self_match=cfg.self_match)
    itself = ", itself among them" if cfg.self_match == "counted" else " other than itself"
    description = f"Each of {len(queries)} photos searches for the views of its object{itself}."
    if not cfg.distractors:
        return task_from_groups(
            name="ukbench",
            level="instance",
            queries=queries,
            gallery=queries,
            protocol=protocol,
            description=description,
            metrics=("ns_score",),
        )
    extra = existing_folder("data.distractors", cfg.distractors)
    root = _common_root(queries.root, extra)
    queries = ImageSet(root, _below(root, queries), queries.labels, queries.class_names)
    extra_paths = _below(root, ImageSet(extra, tuple(list_images(extra))))
    if set(extra_paths) & set(queries.paths):
        raise UserError(
            f"data.distractors={cfg.distractors!r} holds the UKBench photos too: give a separate folder"
        )
    assert queries.labels is not None
    return task_from_groups(
        name=f"ukbench-{len(extra_paths)}-distractors",
        level="instance",
        queries=queries,
        gallery=ImageSet(root, queries.paths + extra_paths),
        gallery_groups=np.append(queries.labels, np.full(len(extra_paths), NO_GROUP)),
        protocol=protocol,
        description=f"{description} {len(extra_paths)} distractors are in the way.",
        metrics=("ns_score",),
    )


def images(cfg: Config) -> ImageSet:
    """List the photos, labelled by object, without distractors.

    Raises:
        UserError: The folder is wrong or holds no photo with a UKBench name.
    """
    check(cfg)
    root = existing_folder("data.root", cfg.root)
    numbered = {
        int(match[1]): file.name
        for file in root.iterdir()
        if (match := re.fullmatch(r"ukbench(\d{5})\.jpg", file.name))
    }
    if not numbered:
        below = next(iter(sorted(root.glob("*/ukbench00000.jpg"))), None)
        hint = f"try data.root={below.parent}" if below else "check the path"
        raise UserError(f"no photo named ukbench00000.jpg, … in {str(root)!r}: {hint}")
    objects = [number // _VIEWS for number in sorted(numbered)]
    num_objects = len(set(objects))
    if len(objects) != _VIEWS * num_objects:
        say(f"{str(root)!r} has {len(objects)} photos of {num_objects} objects: the N-S score cannot reach 4")
    return labelled(root, [numbered[i] for i in sorted(numbered)], [f"{number:04d}" for number in objects])


def _common_root(first: Path, second: Path) -> Path:
    try:
        return Path(os.path.commonpath([first.resolve(), second.resolve()]))
    except ValueError:
        raise UserError(
            f"data.root={str(first)!r} and data.distractors={str(second)!r} share no parent folder: "
            "put both on one drive"
        ) from None


def _below(root: Path, images_: ImageSet) -> tuple[str, ...]:
    prefix = images_.root.resolve().relative_to(root)
    return tuple((prefix / path).as_posix() for path in images_.paths)
