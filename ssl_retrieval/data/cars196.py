"""Cars-196: 196 makes and models of cars in 16,185 photos; models that training never saw are to be found.

From Krause et al., "3D object representations for fine-grained categorization", 3dRR workshop at ICCV 2013
("Stanford Cars"). Both published forms are read; ``data.root`` is the folder with one of them::

    car_ims/000001.jpg ...                    cars_train/00001.jpg ...
    cars_annos.mat                            cars_test/00001.jpg ...
                                              devkit/cars_meta.mat
                                              devkit/cars_train_annos.mat
                                              devkit/cars_test_annos_withlabels.mat (or in root)

Classes 1 to 98 are for training (8,054 photos), 99 to 196 are searched (8,131), each photo with all others
(see `unseen_classes`). ``data.split=official`` lets the 8,041 official test photos search the 8,144 official
training photos, over all 196 classes. Of a ``.mat`` file (MATLAB 5) only arrays are read; nothing in it runs.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat

from ssl_retrieval.data.base import check, existing_folder, nearby
from ssl_retrieval.data.published import published_file, require_files
from ssl_retrieval.data.unseen_classes import Photos, SplitConfig, checked_boxes, task_of, training_images
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import FloatArray, ImageSet, IntArray, Task

_NUM_CLASSES = 196
_EDGES = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
_ADVICE = (
    "download Stanford Cars (Krause et al., 2013), either car_ims.tgz with cars_annos.mat or cars_train.tgz, "
    "cars_test.tgz, the devkit and cars_test_annos_withlabels.mat, and unpack it there"
)


@dataclass
class Config(SplitConfig):
    """Options of the loader; see `SplitConfig`."""

    name: str = "cars196"


@dataclass(frozen=True, eq=False)
class _Annotations:
    paths: list[str]
    classes: IntArray
    edges: FloatArray
    is_training: list[bool]


def load(cfg: Config) -> Task:
    """Make the category-level task.

    Raises:
        UserError: The folder, a ``.mat`` file or an option is wrong, or photos are missing.
    """
    return task_of(cfg, _read(cfg))


def images(cfg: Config) -> ImageSet:
    """List the photos for training, labelled by make and model.

    Raises:
        UserError: As for `load`.
    """
    return training_images(cfg, _read(cfg))


def _read(cfg: Config) -> Photos:
    check(cfg)
    root = existing_folder("data.root", cfg.root)
    if (root / "car_ims").is_dir():
        file = published_file(root, "cars_annos.mat", _ADVICE)
        names_in, parts = file, [_annotations(file, "", None)]
    elif (root / "cars_train").is_dir():
        names_in = _devkit(root, "cars_meta.mat")
        parts = [
            _annotations(_devkit(root, "cars_train_annos.mat"), "cars_train/", True),
            _annotations(_devkit(root, "cars_test_annos_withlabels.mat"), "cars_test/", False),
        ]
    else:
        found = nearby(root, "car_ims") or nearby(root, "cars_train")
        hint = f"try data.root={found}" if found else _ADVICE
        raise UserError(f"neither car_ims/ nor cars_train/ in {str(root)!r}: {hint}")
    paths = tuple(path for part in parts for path in part.paths)
    require_files(root, paths)
    photos = ImageSet(
        root,
        paths,
        labels=np.concatenate([part.classes for part in parts]) - 1,
        class_names=_class_names(names_in),
        boxes=checked_boxes(np.concatenate([part.edges for part in parts]), paths, str(names_in)),
    )
    is_training = np.array([flag for part in parts for flag in part.is_training])
    return Photos(photos, is_training, _NUM_CLASSES // 2, "make and model")


def _devkit(root: Path, name: str) -> Path:
    folder = root if (root / name).is_file() else root / "devkit"
    if not (folder / name).is_file():
        raise UserError(f"no {name!r} in {str(root)!r} nor in its folder devkit: {_ADVICE}")
    return folder / name


def _annotations(file: Path, folder: str, is_training: bool | None) -> _Annotations:
    entries = _content(file, "annotations")
    try:
        name = "relative_im_path" if folder == "" else "fname"
        classes = np.array([int(value) for value in entries["class"]], np.int64)
        if not (classes.min() >= 1 and classes.max() <= _NUM_CLASSES):
            raise ValueError(f"its classes are not from 1 to {_NUM_CLASSES}")
        edges = np.array([[float(entry[edge]) for edge in _EDGES] for entry in entries])
        flags = [not int(value) for value in entries["test"]] if is_training is None else None
        paths = [f"{folder}{value}" for value in entries[name]]
    except (ValueError, TypeError, IndexError) as error:
        raise _unfit(file, error) from None
    return _Annotations(paths, classes, edges, flags or [bool(is_training)] * len(paths))


def _class_names(file: Path) -> tuple[str, ...]:
    names = tuple(str(name) for name in _content(file, "class_names"))
    if len(names) != _NUM_CLASSES:
        raise UserError(f"{str(file)!r} names {len(names)} classes, not {_NUM_CLASSES}: {_ADVICE}")
    return names


def _content(file: Path, variable: str) -> Any:
    try:
        return np.atleast_1d(loadmat(file, squeeze_me=True, variable_names=(variable,))[variable])
    except Exception as error:  # a damaged file raises nearly any type
        raise _unfit(file, error) from None


def _unfit(file: Path, error: Exception) -> UserError:
    return UserError(
        f"{str(file)!r} is no annotation of Stanford Cars ({type(error).__name__}: {error}): {_ADVICE}"
    )
