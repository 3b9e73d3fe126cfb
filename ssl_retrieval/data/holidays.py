"""INRIA Holidays: 500 groups of photos, each of one scene or object.

From Jégou, Douze and Schmid, "Hamming embedding and weak geometric consistency for large scale image search",
ECCV 2008; the page "INRIA Holidays dataset" has two archives, ``jpg1.tar.gz`` and ``jpg2.tar.gz``. Unpack
both anywhere under ``data.root``::

    holidays/jpg/100000.jpg, 100001.jpg, 100002.jpg, 100100.jpg, ...

The number divided by 100 is the group; the first of each group, divisible by 100, is the query. It searches
among all 1,491 photos, itself taken out of the ranking.

Some photos are stored lying on their side. Many papers turned those by hand ("upright"), which scores several
points higher: compare only numbers from the same files.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssl_retrieval.data import distractors
from ssl_retrieval.data.base import DataConfig, check, existing_folder
from ssl_retrieval.data.published import by_stem
from ssl_retrieval.data.tasks import NO_GROUP, labelled, task_from_groups
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import ImageSet, Task


@dataclass
class Config(DataConfig):
    """Options of the loader.

    Attributes:
        distractors: A folder of other images that join the gallery (Flickr100k, Flickr1M); empty = none.
    """

    name: str = "holidays"
    distractors: str = ""


def load(cfg: Config) -> Task:
    """Make the instance-level task.

    Raises:
        UserError: The folder is wrong, or holds no query.
    """
    gallery = images(cfg)
    is_query = np.array([int(Path(path).stem) % 100 == 0 for path in gallery.paths])
    if not is_query.any():
        raise UserError(
            f"no query among the {len(gallery)} photos in {str(gallery.root)!r}: those with a number "
            "divisible by 100 are the queries; unpack both archives"
        )
    queries = gallery.take(np.flatnonzero(is_query))
    assert gallery.labels is not None
    groups = gallery.labels
    queries, gallery, count = distractors.add(cfg.distractors, queries, gallery)
    return task_from_groups(
        name=f"holidays{distractors.in_name(count)}",
        level="instance",
        queries=queries,
        gallery=gallery,
        gallery_groups=np.append(groups, np.full(count, NO_GROUP)),
        description=f"{len(queries)} photos search for the others of their scene among "
        f"{len(gallery) - count}.{distractors.in_words(count)}",
        metrics=("mAP",),
    )


def images(cfg: Config) -> ImageSet:
    """List the photos, labelled by group, without distractors.

    Raises:
        UserError: The folder is wrong, or holds no photo named by a number of six digits.
    """
    check(cfg)
    root = existing_folder("data.root", cfg.root)
    paths = {name: path for name, path in by_stem(root).items() if re.fullmatch(r"\d{6}", name)}
    if not paths:
        raise UserError(
            f"no photo named 100000.jpg, ... in {str(root)!r}: unpack jpg1.tar.gz and jpg2.tar.gz"
        )
    return labelled(root, list(paths.values()), [name[:4] for name in paths])
