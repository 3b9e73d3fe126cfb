"""INRIA Copydays: 157 photos, and copies of them that were cropped, compressed or attacked strongly.

From Douze et al., "Evaluation of GIST descriptors for web-scale image search", CIVR 2009; the page "INRIA
Copydays dataset" has one archive per part. Unpack each into a folder of its own under ``data.root``, named as
DINO's evaluation (Caron et al., ICCV 2021, arXiv 2104.14294) expects them::

    copydays/original/200000.jpg ...
    copydays/strong/200001.jpg ...
    copydays/jpegqual/3/200000.jpg ...     75, 50, 30, 20, 15, 10, 8, 5, 3
    copydays/crops/10/200000.jpg ...       10, 15, 20, 30, 40, 50, 60, 70, 80

Each altered photo searches for its original among all originals, and among distractors where they are given:
DINO reports mAP on the 229 strong copies with 10,000 photos of YFCC100M in the way and whitening learned on
20,000 others (``fit.name=folder``). Its own script looks at the first 20 results only; here all count.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssl_retrieval.data import distractors
from ssl_retrieval.data.base import DataConfig, check, existing_folder
from ssl_retrieval.data.published import in_part, require
from ssl_retrieval.data.tasks import NO_GROUP, task_from_groups
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import ImageSet, IntArray, Task


@dataclass
class Config(DataConfig):
    """Options of the loader.

    Attributes:
        queries: The folder of the altered photos under ``root``: ``strong``, ``jpegqual/3``, ``crops/80``, ….
        original: The folder of the originals under ``root``.
        distractors: A folder of other images that join the gallery; empty = none.
    """

    name: str = "copydays"
    queries: str = "strong"
    original: str = "original"
    distractors: str = ""


def load(cfg: Config) -> Task:
    """Make the instance-level task.

    Raises:
        UserError: A folder is wrong, or the original of a copy is missing.
    """
    gallery = images(cfg)
    if Path(cfg.queries) == Path(cfg.original):
        raise UserError(f"data.queries={cfg.queries!r} are the originals: give a folder of altered photos")
    queries = _part(gallery.root, cfg.queries)
    query_groups, groups = _groups(queries), _groups(gallery)
    require(_originals(query_groups), _originals(groups), gallery.root / cfg.original)
    queries, gallery, count = distractors.add(cfg.distractors, queries, gallery)
    return task_from_groups(
        name=f"copydays-{cfg.queries.strip('/').replace('/', '-')}{distractors.in_name(count)}",
        level="instance",
        queries=queries,
        gallery=gallery,
        query_groups=query_groups,
        gallery_groups=np.append(groups, np.full(count, NO_GROUP)),
        description=f"{len(queries)} altered photos ({cfg.queries}) search for their originals among "
        f"{len(gallery) - count}.{distractors.in_words(count)}",
        metrics=("mAP", "uap"),
    )


def images(cfg: Config) -> ImageSet:
    """List the originals.

    Raises:
        UserError: The folder is wrong.
    """
    check(cfg)
    return _part(existing_folder("data.root", cfg.root), cfg.original)


def _part(root: Path, folder: str) -> ImageSet:
    found = in_part(root, folder, "unpack each archive into a folder of its own")
    paths = tuple(path for name, path in found.items() if re.fullmatch(r"\d{6}", name))
    if not paths:
        raise UserError(f"no photo named 200000.jpg, ... in {str(root / folder)!r}: check data.root")
    return ImageSet(root, paths)


def _originals(groups: IntArray) -> list[str]:
    return [f"{group}00" for group in groups.tolist()]


def _groups(images_: ImageSet) -> IntArray:
    return np.array([int(Path(path).stem) // 100 for path in images_.paths], np.int64)
