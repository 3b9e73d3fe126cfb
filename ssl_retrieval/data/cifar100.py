"""CIFAR-100: a hundred classes in twenty coarse ones, 32 by 32 pixels, 50,000 train and 10,000 test images.

From Krizhevsky, "Learning multiple layers of features from tiny images", 2009; his CIFAR page has both forms
that are read, and ``data.root`` is the folder that comes out of the archive::

    cifar-100-python/train, test, meta                      pickles, read without running anything in them
    cifar-100-binary/train.bin, test.bin, fine_label_names.txt, coarse_label_names.txt

The images are written once, as PNG, to ``data.unpacked``: nothing is lost, and every stage reads image files.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from ssl_retrieval.atomic import atomic_folder
from ssl_retrieval.console import say
from ssl_retrieval.data import plain_pickle
from ssl_retrieval.data.base import DataConfig, check, existing_folder, nearby, one_of
from ssl_retrieval.data.plain_pickle import NumberArray
from ssl_retrieval.data.published import published_file, table
from ssl_retrieval.data.tasks import first_per_class, labelled, task_from_groups
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import ImageSet, Task

_SPLITS = ("train", "test")
_SIDE = 32
_ADVICE = "download the python or the binary version of CIFAR-100 (Krizhevsky's CIFAR page) and unpack it"


@dataclass
class Config(DataConfig):
    """Options of the loader.

    Attributes:
        task: ``fine`` (100 classes) or ``coarse`` (20).
        mode: ``leave_one_out``: each image of ``split`` searches among the others of ``split``;
            ``test_to_train``: test images search in train.
        split: What ``leave_one_out`` searches.
        images_split: What ``images`` gives, for training and plain embedding.
        limit_per_class: Keep the first n images of each class of the task in every split; null = all.
        unpacked: Where the PNG files are written, once; empty = ``images`` in ``root``.
    """

    name: str = "cifar100"
    task: str = "fine"
    mode: str = "leave_one_out"
    split: str = "test"
    images_split: str = "train"
    limit_per_class: int | None = None
    unpacked: str = ""


def load(cfg: Config) -> Task:
    """Make the category-level task; post-processing is fitted on train unless train is searched.

    Raises:
        UserError: The folder, its files or an option is wrong, or the images cannot be written.
    """
    one_of("data.mode", cfg.mode, ("leave_one_out", "test_to_train"))
    one_of("data.split", cfg.split, _SPLITS)
    to_train = cfg.mode == "test_to_train"
    queries = _split(cfg, "test" if to_train else cfg.split)
    train = _split(cfg, "train")
    gallery = train if to_train else queries
    return task_from_groups(
        name=f"cifar100-{cfg.task}-{'test-to-train' if to_train else cfg.split}",
        level="category",
        queries=queries,
        gallery=gallery,
        fit=train if to_train or cfg.split == "test" else None,
        description=f"{len(queries)} test images search {len(gallery)} of train for their {cfg.task} class."
        if to_train
        else f"Each of {len(queries)} {cfg.split} images searches the others for its {cfg.task} class.",
    )


def images(cfg: Config) -> ImageSet:
    """List the images of ``images_split``.

    Raises:
        UserError: As for `load`.
    """
    one_of("data.images_split", cfg.images_split, _SPLITS)
    return _split(cfg, cfg.images_split)


def _split(cfg: Config, split: str) -> ImageSet:
    check(cfg)
    one_of("data.task", cfg.task, ("fine", "coarse"))
    root = existing_folder("data.root", cfg.root)
    folder = Path(cfg.unpacked).expanduser() if cfg.unpacked else root / "images"
    if not (folder / "index.csv").is_file():
        _unpack(root, folder)
    rows = table(folder / "index.csv", ("path", "split", "fine", "coarse"))
    names = sorted(set(rows[cfg.task]))
    rows = rows[rows["split"] == split]
    return first_per_class(
        labelled(folder, rows["path"].tolist(), rows[cfg.task].tolist(), names), cfg.limit_per_class
    )


def _unpack(root: Path, folder: Path) -> None:
    is_python = (root / "meta").is_file()
    if not is_python and not (root / "train.bin").is_file():
        found = nearby(root, "meta") or nearby(root, "train.bin")
        hint = f"try data.root={found}" if found else _ADVICE
        raise UserError(f"neither 'meta' nor 'train.bin' in {str(root)!r}: {hint}")
    if folder.exists():
        raise UserError(f"{str(folder)!r} is in the way: the images of CIFAR-100 go there; set data.unpacked")
    parts = {split: (_from_pickle if is_python else _from_binary)(root, split) for split in _SPLITS}
    say(f"writing the images of CIFAR-100 to {str(folder)!r}, once")
    try:
        with atomic_folder(folder) as partial:
            rows = [row for split in _SPLITS for row in _write(partial, split, *parts[split])]
            columns = ["path", "split", "fine", "coarse"]
            pd.DataFrame(rows, columns=columns).to_csv(partial / "index.csv", index=False)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write to {str(folder)!r} ({reason}): set data.unpacked") from None


def _write(
    folder: Path, split: str, pixels: NDArray[np.uint8], fine: list[str], coarse: list[str]
) -> Iterator[tuple[str, str, str, str]]:
    """Write images [N, 3, 32, 32] and give the rows of the index."""
    for name in sorted(set(fine)):
        (folder / split / name).mkdir(parents=True)
    for number, (picture, name, group) in enumerate(zip(pixels, fine, coarse, strict=True)):
        path = f"{split}/{name}/{number:05d}.png"
        Image.fromarray(picture.transpose(1, 2, 0)).save(folder / path)
        yield path, split, name, group


def _from_pickle(root: Path, split: str) -> tuple[NDArray[np.uint8], list[str], list[str]]:
    file = published_file(root, split, _ADVICE)
    content, meta = plain_pickle.read(file), plain_pickle.read(root / "meta")
    try:
        data = content["data"]
        if not isinstance(data, NumberArray) or data.values.dtype != np.uint8:
            raise TypeError("its data are no bytes")
        labels = [np.array(content[f"{level}_labels"]) for level in ("fine", "coarse")]
        names = [meta[f"{level}_label_names"] for level in ("fine", "coarse")]
        return _checked(data.values, labels, names)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise _unfit(file, error) from None


def _from_binary(root: Path, split: str) -> tuple[NDArray[np.uint8], list[str], list[str]]:
    """Read records of coarse label, fine label and 3,072 bytes: red, green and blue, row by row."""
    file = published_file(root, f"{split}.bin", _ADVICE)
    try:
        names = [
            published_file(root, f"{level}_label_names.txt", _ADVICE).read_text("utf-8").split()
            for level in ("fine", "coarse")
        ]
        records = np.fromfile(file, np.uint8).reshape(-1, 2 + 3 * _SIDE**2)
        return _checked(records[:, 2:], [records[:, 1], records[:, 0]], names)
    except (OSError, ValueError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        raise _unfit(file, error) from None


def _checked(
    pixels: NDArray[np.uint8], labels: list[NDArray[Any]], names: list[Any]
) -> tuple[NDArray[np.uint8], list[str], list[str]]:
    pixels = pixels.reshape(-1, 3, _SIDE, _SIDE)
    named: dict[str, list[str]] = {}
    for level, numbers, known in zip(("fine", "coarse"), labels, names, strict=True):
        if numbers.shape != (len(pixels),) or numbers.dtype.kind not in "iu" or numbers.min() < 0:
            raise ValueError(f"{len(pixels)} images need as many labels")
        # A class becomes a folder.
        if not all(isinstance(name, str) and name.replace("_", "").isalnum() for name in known):
            raise ValueError("a class name is no word")
        named[level] = [known[number] for number in numbers.tolist()]
    return pixels, named["fine"], named["coarse"]


def _unfit(file: Path, error: Exception) -> UserError:
    return UserError(f"{str(file)!r} is no part of CIFAR-100 ({type(error).__name__}: {error}): {_ADVICE}")
