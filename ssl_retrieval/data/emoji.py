"""The demo's emoji: what three vendors draw for one emoji is an instance, its Unicode group a category.

The pictures come inside the package (``demo/emoji.zip``, licences beside it; made by
``tools/build_demo_emoji.py``) and are unpacked once into a cache folder.
"""

import hashlib
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from ssl_retrieval.atomic import atomic_folder
from ssl_retrieval.data.base import DataConfig, check, one_of
from ssl_retrieval.data.tasks import labelled
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import ImageSet, IntArray, Task

ARCHIVE = Path(__file__).parent.parent / "demo" / "emoji.zip"
VENDORS = ("google", "twitter", "fluent")
TASKS = {
    "instance": "Find the two other drawings of the same emoji; drawings of one emoji are roughly aligned.",
    "moved": "Find the two other drawings of the same emoji; the query was shifted, shrunk, turned and "
    "laid on another background.",
    "category": "Find drawings of other emoji from the same Unicode group, such as food or animals.",
}
"""Task -> what is searched where. All of them use only emoji that no training image shows."""


@dataclass
class Config(DataConfig):
    """The demo's emoji.

    Attributes:
        name: ``emoji``.
        root: Where to unpack the pictures; empty = ``emoji`` in ``$SSL_RETRIEVAL_CACHE`` or in
            ``~/.cache/ssl_retrieval``.
        task: ``instance``, ``moved`` or ``category``.
        split: Which images `images` gives: ``train`` or ``test``.
    """

    name: str = "emoji"
    root: str = ""
    task: str = "instance"
    split: str = "train"


def load(cfg: Config) -> Task:
    """Make a task from the test emoji: Google's drawings search among Twitter's and Fluent's.

    Raises:
        UserError: An unknown task, or a root that cannot be written.
    """
    check(cfg)
    one_of("data.task", cfg.task, tuple(TASKS))
    root, table = _read(cfg)
    test = table[table["split"] == "test"]
    names = test["group" if cfg.task == "category" else "name"].tolist()
    queries = labelled(root, _paths(test, ["moved" if cfg.task == "moved" else "google"]), names)
    gallery = labelled(root, _paths(test, VENDORS[1:]), names * 2, queries.class_names)
    assert gallery.labels is not None
    assert queries.labels is not None

    num_emoji = len(test)
    same_emoji = tuple(np.array([i, i + num_emoji], dtype=np.int64) for i in range(num_emoji))
    relevant: tuple[IntArray, ...] = same_emoji
    ignored: tuple[IntArray, ...] = (np.empty(0, dtype=np.int64),) * num_emoji
    if cfg.task == "category":
        same_group = [np.flatnonzero(gallery.labels == label) for label in queries.labels]
        relevant = tuple(np.setdiff1d(g, e) for g, e in zip(same_group, same_emoji, strict=True))
        ignored = same_emoji
    return Task(
        name=f"emoji-{cfg.task}",
        level="category" if cfg.task == "category" else "instance",
        queries=queries,
        gallery=gallery,
        relevant=relevant,
        ignored=ignored,
        fit=ImageSet(root, _paths(table[table["split"] == "train"], VENDORS)),
        description=TASKS[cfg.task],
    )


def images(cfg: Config) -> ImageSet:
    """Give all vendors' drawings of the train (or test) emoji, without labels.

    Raises:
        UserError: An unknown split, or a root that cannot be written.
    """
    check(cfg)
    one_of("data.split", cfg.split, ("train", "test"))
    root, table = _read(cfg)
    return ImageSet(root, _paths(table[table["split"] == cfg.split], VENDORS))


def unpack(archive: Path, root: Path) -> Path:
    """Unpack a zip under ``root`` once, into a folder named by the zip's digest.

    The folder appears whole, in one step; of two processes that unpack at once one wins and the other
    uses its result.

    Raises:
        UserError: The root cannot be written, or a member of the zip would leave the folder.
    """
    digest = hashlib.blake2b(archive.read_bytes(), digest_size=8).hexdigest()
    folder = root / digest
    if folder.is_dir():
        return folder
    try:
        with atomic_folder(folder) as partial, zipfile.ZipFile(archive) as file:
            for name in file.namelist():
                inside = PurePosixPath(name.replace("\\", "/"))
                if inside.is_absolute() or ".." in inside.parts:
                    raise UserError(f"{archive}: member {name!r} leaves the folder")
            file.extractall(partial)
    except OSError as error:
        raise UserError(f"cannot unpack the emoji to {str(root)!r} ({error.strerror}): set root") from error
    return folder


def _read(cfg: Config) -> tuple[Path, pd.DataFrame]:
    cache = Path(os.environ.get("SSL_RETRIEVAL_CACHE") or Path.home() / ".cache" / "ssl_retrieval")
    root = Path(cfg.root).expanduser() if cfg.root else cache / "emoji"
    folder = unpack(ARCHIVE, root)
    return folder, pd.read_csv(folder / "index.csv")


def _paths(table: pd.DataFrame, folders: Sequence[str]) -> tuple[str, ...]:
    groups = table["group"].str.lower().str.replace(r"[^a-z0-9]+", "-", regex=True)
    files = groups + "/" + table["codepoints"] + ".webp"
    return tuple(f"{folder}/{file}" for folder in folders for file in files)
