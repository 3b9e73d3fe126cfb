"""In-Shop Clothes Retrieval (DeepFashion): 52,712 photos of 7,982 clothes; the same garment is to be found.

From Liu et al., "DeepFashion: powering robust clothes recognition and retrieval with rich annotations", CVPR
2016; the page of DeepFashion, "In-shop Clothes Retrieval Benchmark", tells where the images and the list
are. Under ``data.root``::

    list_eval_partition.txt (or Eval/list_eval_partition.txt)     path, garment, train or query or gallery
    img/WOMEN/Dresses/id_00000002/02_1_front.jpg ... (or Img/img/...)

14,218 query photos search 12,612 gallery photos for the same garment; both show the same 3,985 garments, and
the 25,882 training photos show 3,997 others.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ssl_retrieval.data.base import DataConfig, check, existing_folder
from ssl_retrieval.data.published import fields, published_file, require_files
from ssl_retrieval.data.tasks import labelled, task_from_groups
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import ImageSet, Task

_LIST = "list_eval_partition.txt"
_ADVICE = (
    "download img.zip and list_eval_partition.txt of DeepFashion's In-shop Clothes Retrieval Benchmark (its "
    "page tells where) and unpack both there"
)


@dataclass
class Config(DataConfig):
    """Options of the loader."""

    name: str = "inshop"


def load(cfg: Config) -> Task:
    """Make the task; post-processing is fitted on the training photos.

    Raises:
        UserError: The folder or the list is wrong, or photos are missing.
    """
    root, rows = _read(cfg)
    queries, gallery, train = (rows[rows["part"] == part] for part in ("query", "gallery", "train"))
    for name, part in {"query": queries, "gallery": gallery, "train": train}.items():
        if part.empty:
            raise UserError(f"the list of {str(root)!r} has no {name} photo: {_ADVICE}")
    seen = set(train["garment"]).intersection([*queries["garment"], *gallery["garment"]])
    if seen:
        raise UserError(f"garment {min(seen)} is both for training and for test: download the list again")
    garments = sorted({*queries["garment"], *gallery["garment"]})
    return task_from_groups(
        name="inshop",
        level="instance",
        queries=labelled(root, queries["path"].tolist(), queries["garment"].tolist(), garments),
        gallery=labelled(root, gallery["path"].tolist(), gallery["garment"].tolist(), garments),
        fit=_images(root, train),
        description=f"{len(queries)} photos search {len(gallery)} for the same garment.",
        metrics=("hit_rate@1", "hit_rate@10", "hit_rate@20", "hit_rate@30", "mAP@R"),
    )


def images(cfg: Config) -> ImageSet:
    """List the training photos, labelled by garment.

    Raises:
        UserError: As for `load`.
    """
    root, rows = _read(cfg)
    return _images(root, rows[rows["part"] == "train"])


def _images(root: Path, rows: pd.DataFrame) -> ImageSet:
    return labelled(root, rows["path"].tolist(), rows["garment"].tolist())


def _read(cfg: Config) -> tuple[Path, pd.DataFrame]:
    check(cfg)
    root = existing_folder("data.root", cfg.root)
    inner = f"Eval/{_LIST}"
    file = published_file(root, inner if (root / inner).is_file() else _LIST, _ADVICE)
    rows = fields(file, {"path": str, "garment": str, "part": str}, header=2)
    unknown = set(rows["part"]) - {"train", "query", "gallery"}
    if unknown:
        raise UserError(f"{str(file)!r}: {min(unknown)!r} is none of train, query, gallery: {_ADVICE}")
    if not (root / "img").is_dir() and (root / "Img" / "img").is_dir():
        rows["path"] = "Img/" + rows["path"]
    require_files(root, rows["path"].tolist())
    return root, rows
