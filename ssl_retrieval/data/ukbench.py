"""UKBench: 2,550 objects in four photos each; the same object is to be found.

From Nistér and Stewénius, "Scalable recognition with a vocabulary tree", CVPR 2006; search for
``ukbench.zip``, for its home page has moved. ``data.root`` is the folder with ``ukbench00000.jpg``,
``ukbench00001.jpg``, …; any first part of it will do, in whole objects of four.

A query's own photo is left out of its ranking, so that mAP and hit rates say something; the N-S score (0 to
4), which by definition counts it, adds it back as the first hit. ``data.self_match=counted`` keeps the own
photo in the ranking for all metrics. The protocol records which it was.
"""

import re
from dataclasses import dataclass

import numpy as np

from ssl_retrieval.console import say
from ssl_retrieval.data import distractors
from ssl_retrieval.data.base import DataConfig, check, existing_folder, one_of
from ssl_retrieval.data.tasks import NO_GROUP, labelled, task_from_groups
from ssl_retrieval.errors import UserError
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
    assert queries.labels is not None
    groups = queries.labels
    queries, gallery, count = distractors.add(cfg.distractors, queries, queries)
    return task_from_groups(
        name=f"ukbench{distractors.in_name(count)}",
        level="instance",
        queries=queries,
        gallery=gallery,
        gallery_groups=np.append(groups, np.full(count, NO_GROUP)),
        protocol=protocol,
        description=description + distractors.in_words(count),
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
