"""CUB-200-2011: 200 bird species in 11,788 photos; species that training never saw are to be found.

From Wah et al., "The Caltech-UCSD Birds-200-2011 dataset", CNS-TR-2011-001; Caltech's data repository has it
as ``CUB_200_2011.tgz``. ``data.root`` is the folder in it::

    CUB_200_2011/images/001.Black_footed_Albatross/*.jpg ...
    CUB_200_2011/images.txt                 image, path
    CUB_200_2011/image_class_labels.txt     image, class from 1 to 200
    CUB_200_2011/train_test_split.txt       image, 1 = training
    CUB_200_2011/bounding_boxes.txt         image, left, top, width, height

Classes 1 to 100 are for training (5,864 photos), 101 to 200 are searched (5,924), each photo with all
others (see `unseen_classes`). ``data.split=official`` lets the 5,794 official test photos search the 5,994
official training photos, over all 200 classes.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ssl_retrieval.data.base import check, existing_folder
from ssl_retrieval.data.published import fields, published_file, require_files
from ssl_retrieval.data.unseen_classes import Photos, SplitConfig, checked_boxes, task_of, training_images
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import ImageSet, Task

_ADVICE = (
    "download CUB_200_2011.tgz (Caltech-UCSD Birds-200-2011, in Caltech's data repository), unpack it and "
    "give its folder CUB_200_2011"
)


@dataclass
class Config(SplitConfig):
    """Options of the loader; see `SplitConfig`."""

    name: str = "cub200"


def load(cfg: Config) -> Task:
    """Make the category-level task.

    Raises:
        UserError: The folder, a list or an option is wrong, or photos are missing.
    """
    return task_of(cfg, _read(cfg))


def images(cfg: Config) -> ImageSet:
    """List the photos for training, labelled by species.

    Raises:
        UserError: As for `load`.
    """
    return training_images(cfg, _read(cfg))


def _read(cfg: Config) -> Photos:
    check(cfg)
    root = existing_folder("data.root", cfg.root)
    paths = _by_image(root, "images.txt", {"path": str})["path"]
    classes = _of_images(root, "image_class_labels.txt", {"class": int}, paths)["class"]
    is_training = _of_images(root, "train_test_split.txt", {"is_training": int}, paths)["is_training"]
    boxes = _of_images(
        root, "bounding_boxes.txt", {"left": float, "top": float, "width": float, "height": float}, paths
    )
    if classes.min() < 1:
        raise UserError(f"{str(root / 'image_class_labels.txt')!r}: classes count from 1; download it again")
    folders = {number: path.split("/")[0] for number, path in zip(classes, paths, strict=True)}
    edges = boxes.assign(width=boxes["left"] + boxes["width"], height=boxes["top"] + boxes["height"])
    listed = tuple(f"images/{path}" for path in paths)
    require_files(root, listed)
    photos = ImageSet(
        root,
        listed,
        labels=classes.to_numpy("int64") - 1,
        class_names=tuple(folders.get(number, str(number)) for number in range(1, classes.max() + 1)),
        boxes=checked_boxes(edges.to_numpy("float64"), listed, str(root / "bounding_boxes.txt")),
    )
    return Photos(photos, is_training.to_numpy() == 1, 100, "species")


def _by_image(root: Path, name: str, columns: dict[str, type]) -> pd.DataFrame:
    rows = fields(published_file(root, name, _ADVICE), {"image": int} | columns).set_index("image")
    if rows.index.has_duplicates:
        twice = rows.index[rows.index.duplicated()][0]
        raise UserError(f"{str(root / name)!r} lists image {twice} twice: download the published file again")
    return rows


def _of_images(root: Path, name: str, columns: dict[str, type], paths: pd.Series) -> pd.DataFrame:
    rows = _by_image(root, name, columns)
    lacking = paths.index.difference(rows.index)
    if len(lacking):
        raise UserError(f"{str(root / name)!r} lacks image {lacking[0]}: download the published file again")
    return rows.loc[paths.index]
