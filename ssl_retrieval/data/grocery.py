"""Grocery Store: phone photos of 81 products in 43 coarse classes, and a shop picture of each product.

From https://github.com/marcusklasson/GroceryStoreDataset (Klasson, Zhang and Kjellström, WACV 2019; MIT).
Download the repository; ``data.root`` is its folder ``dataset``, the one with ``train.txt``, ``val.txt``,
``test.txt`` and ``classes.csv``.

Three tasks. ``fine`` and ``coarse``: each test photo searches the train photos for its class.
``iconic``: each shop picture searches the test photos for its product. Test is never searched with test:
the photos come in bursts, so that would only find near-duplicates.

Post-processing is fitted on train in all three. For ``fine`` and ``coarse`` that is the gallery itself,
which is fair: a gallery is known before the first query comes, and the queries are not in it.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ssl_retrieval.data.base import DataConfig, check, existing_folder, nearby, one_of
from ssl_retrieval.data.tasks import labelled, task_from_groups
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import ImageSet, Task


@dataclass
class Config(DataConfig):
    """Options of the loader.

    Attributes:
        task: ``fine`` (81 classes), ``coarse`` (43 classes) or ``iconic`` (81 products).
        query_split: Whose photos search in ``fine`` and ``coarse``: ``test``, or ``val`` to choose by.
        split: What ``images`` gives, for training and plain embedding: ``train``, ``val``, ``test`` or
            ``iconic``.
    """

    name: str = "grocery"
    task: str = "fine"
    query_split: str = "test"
    split: str = "train"


def load(cfg: Config) -> Task:
    """Make the task that ``cfg.task`` names.

    Raises:
        UserError: The folder, its lists or an option is wrong.
    """
    one_of("data.task", cfg.task, ("fine", "coarse", "iconic"))
    one_of("data.query_split", cfg.query_split, ("test", "val"))
    root = _root(cfg)
    level = "coarse" if cfg.task == "coarse" else "fine"
    train, test = _split(root, "train", level), _split(root, cfg.query_split, level)
    if cfg.task == "iconic":
        if cfg.query_split != "test":
            raise UserError("data.query_split=val: task=iconic searches the test photos; use fine or coarse")
        queries = _split(root, "iconic", level)
        return task_from_groups(
            name="grocery-iconic",
            level="instance",
            queries=queries,
            gallery=test,
            fit=train,
            description=f"{len(queries)} shop pictures search {len(test)} photos for the same product.",
        )
    return task_from_groups(
        name=f"grocery-{cfg.task}" + ("" if cfg.query_split == "test" else "-val"),
        level="category",
        queries=test,
        gallery=train,
        fit=train,
        description=f"{len(test)} {cfg.query_split} photos search {len(train)} train photos for their "
        f"{level} class.",
    )


def images(cfg: Config) -> ImageSet:
    """List the images of ``cfg.split``, with coarse labels if ``cfg.task`` is coarse, else fine ones.

    Raises:
        UserError: The folder, its lists or an option is wrong.
    """
    one_of("data.split", cfg.split, ("train", "val", "test", "iconic"))
    one_of("data.task", cfg.task, ("fine", "coarse", "iconic"))
    return _split(_root(cfg), cfg.split, "coarse" if cfg.task == "coarse" else "fine")


def _root(cfg: Config) -> Path:
    check(cfg)
    root = existing_folder("data.root", cfg.root)
    if (root / "test.txt").is_file():
        return root
    found = nearby(root, "test.txt")
    hint = f"try data.root={found}" if found else "give the folder with train.txt, val.txt and test.txt"
    raise UserError(f"no test.txt in {str(root)!r}: {hint}")


def _split(root: Path, split: str, level: str) -> ImageSet:
    classes = _table(root / "classes.csv", header=0)
    classes.columns = pd.Index(["fine_name", "fine", "coarse_name", "coarse", "iconic", "description"])
    names = classes.drop_duplicates(level).set_index(level)[f"{level}_name"]
    if split == "iconic":
        items = classes.assign(path=[_iconic_path(root, path) for path in classes["iconic"]])
    else:
        items = _table(root / f"{split}.txt", header=None)
        items.columns = pd.Index(["path", "fine", "coarse"])
    unknown = items.loc[~items[level].isin(names.index), level]
    if len(unknown):
        raise UserError(f"{level} class {unknown.iloc[0]} of {split} is not in {str(root / 'classes.csv')!r}")
    class_names = names.sort_index().tolist()
    return labelled(root, items["path"].tolist(), names[items[level]].tolist(), class_names)


def _table(file: Path, header: int | None) -> pd.DataFrame:
    num_columns = 6 if header == 0 else 3
    try:
        table = pd.read_csv(file, header=header, skipinitialspace=True)
    except FileNotFoundError:
        raise UserError(f"{str(file)!r} is missing: unpack the dataset again") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {str(file)!r}: {error}") from None
    if table.shape[1] != num_columns:
        raise UserError(f"{str(file)!r} has {table.shape[1]} columns, expected {num_columns}")
    return table


def _iconic_path(root: Path, listed: str) -> str:
    # Exports keep these pictures in one flat folder, while classes.csv has the original tree.
    original = listed.lstrip("/")
    return original if (root / original).is_file() else f"iconic/{Path(listed).name}"
