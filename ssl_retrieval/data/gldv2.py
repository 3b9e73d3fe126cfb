"""Google Landmarks v2, retrieval: 1,129 test photos search for their landmark among 761,757.

From Weyand et al., "Google Landmarks Dataset v2", CVPR 2020, arXiv 2004.01804; the repository
cvdfoundation/google-landmark has the archives and tables. Under ``data.root``::

    gldv2/index/a/b/c/abc0123456789def.jpg ...     index archives; folders: the id's first letters
    gldv2/test/a/b/c/...                           test archives
    gldv2/index.csv                                id
    gldv2/retrieval_solution_v2.1.csv              id, images, Usage

Queries are the rows of the solution whose ``Usage`` is ``data.usage``: 379 ``Public`` ones (validation) and
750 ``Private`` ones (the test set of papers); rows that are ``Ignored`` are none. The benchmark's metric is
``mAP@100``, divided by min(R, 100).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssl_retrieval.data.base import DataConfig, check, existing_folder, one_of
from ssl_retrieval.data.published import ground_truth_file, indices_of, require, table
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import ImageSet, Task

_SOURCE = "the repository cvdfoundation/google-landmark has it"


@dataclass
class Config(DataConfig):
    """Options of the loader.

    Attributes:
        usage: ``private``, ``public``, or ``both``.
        ground_truth: The solution; empty = ``retrieval_solution_v2.1.csv`` in ``root``.
    """

    name: str = "gldv2"
    usage: str = "private"
    ground_truth: str = ""


def load(cfg: Config) -> Task:
    """Make the instance-level task.

    Raises:
        UserError: The folder, a table or an option is wrong, or photos are missing.
    """
    one_of("data.usage", cfg.usage, ("private", "public", "both"))
    root = _root(cfg)
    file = ground_truth_file(root, "retrieval_solution_v2.1.csv", cfg.ground_truth, _SOURCE)
    rows = table(file, ("id", "images", "Usage"))
    usages = ("public", "private") if cfg.usage == "both" else (cfg.usage,)
    rows = rows[rows["Usage"].str.lower().isin(usages)]
    if rows.empty:
        raise UserError(f"{str(file)!r} has no query with Usage {cfg.usage!r}: give the published file")
    index = _index(root)
    answers = [text.split() for text in rows["images"]]
    position = {name: i for i, name in enumerate(index)}
    require((name for names in answers for name in names), position, root / "index.csv")
    gallery = _photos(root, "index", index)
    queries = _photos(root, "test", rows["id"].tolist())
    return Task(
        name=f"gldv2-{cfg.usage}",
        level="instance",
        queries=queries,
        gallery=gallery,
        relevant=tuple(indices_of(names, position) for names in answers),
        ignored=(np.empty(0, np.int64),) * len(queries),
        description=f"{len(queries)} photos search for their landmark among {len(gallery)}.",
        metrics=("mAP@100",),
    )


def images(cfg: Config) -> ImageSet:
    """List the photos that are searched.

    Raises:
        UserError: The folder or its table is wrong, or photos are missing.
    """
    root = _root(cfg)
    return _photos(root, "index", _index(root))


def _root(cfg: Config) -> Path:
    check(cfg)
    return existing_folder("data.root", cfg.root)


def _index(root: Path) -> list[str]:
    return table(ground_truth_file(root, "index.csv", "", _SOURCE), ("id",))["id"].tolist()


def _photos(root: Path, folder: str, names: list[str]) -> ImageSet:
    """Give each photo's path, in folders named by the first three letters of its id."""
    paths = tuple(f"{folder}/{'/'.join(name[:3])}/{name}.jpg" for name in names)
    found = ImageSet(root, paths)  # refuses paths that leave the root before any is looked at
    require(paths, (path for path in paths if (root / path).is_file()), root)
    return found
