"""Your own images with a table that says what they are: a CSV or Parquet file, one row per image.

Nothing to download. Columns (any order, others are ignored with a note):

========== =========================================================================================
path       relative to ``data.root``, which is the table's folder unless set; required, unique
label      class; images of one class match at category level; empty = matches nothing
instance   object; images of one object match at instance level; empty = matches nothing
role       ``query``, ``gallery``, ``both`` (also when empty) or ``distractor`` (in the gallery, matches
           nothing); without this column every image searches for its like among all others
split      any name; ``data.split`` picks the rows that are used
left, top, edges, in pixels of the upright image, of the object that is searched for: a query is cut to
right,     them, the gallery never is; all four empty = the whole image (see ``data.query_crop``)
bottom
========== =========================================================================================
"""

from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from ssl_retrieval.console import say
from ssl_retrieval.data.base import DataConfig, check, existing_folder, one_of
from ssl_retrieval.data.table import read_table, text
from ssl_retrieval.data.tasks import NO_GROUP, task_from_groups
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import ImageSet, IntArray, Protocol, Task, VectorArray

_BOX = ("left", "top", "right", "bottom")
_COLUMNS = ("path", "label", "instance", "role", "split", *_BOX)
_ROLES = ("query", "gallery", "both", "distractor")


@dataclass
class Config(DataConfig):
    """Options of the loader.

    Attributes:
        file: The table; ``~`` is expanded.
        root: The folder that its paths are relative to; empty = the table's own folder.
        level: ``category`` matches by label, ``instance`` by instance; ``auto`` takes the instance column
            if there is one.
        split: Use only the rows of this split; empty = all rows.
        query_crop: ``box`` cuts queries to their boxes, ``none`` leaves them whole; ``auto`` cuts where the
            table has boxes. The protocol records which it was.
    """

    name: str = "manifest"
    root: str = ""
    file: str = ""
    level: str = "auto"
    split: str = ""
    query_crop: str = "auto"


def load(cfg: Config) -> Task:
    """Make the task that the table describes.

    Post-processing may be fitted on the rows of split ``train`` when another split is searched. Files that
    are listed but missing stay in: they are reported when they are read.

    Raises:
        UserError: The table, a row or an option is wrong.
    """
    root, rows = _read(cfg)
    level = _level(cfg, rows)
    used = _of_split(cfg, rows)
    searching = used[used["role"].isin(["query", "both"])]
    searched = used[used["role"] != "query"]
    if len(searching) == 0 or len(searched) == 0:
        raise UserError(
            f"{cfg.file!r} has {len(searching)} queries and {len(searched)} gallery images"
            f"{f' in split {cfg.split!r}' if cfg.split else ''}: both are needed, see its column 'role'"
        )
    train = rows[rows["split"] == "train"]
    boxes = _boxes(cfg, searching)
    return task_from_groups(
        name="-".join(filter(None, [Path(cfg.file).stem, cfg.split])),
        level=level,
        queries=replace(_image_set(root, searching, level, rows), boxes=boxes),
        protocol=Protocol(query_crop="none" if boxes is None else "box"),
        gallery=_image_set(root, searched, level, rows),
        query_groups=_groups(searching, level, rows),
        gallery_groups=_groups(searched, level, rows),
        fit=_image_set(root, train, level, rows) if cfg.split not in ("", "train") and len(train) else None,
        description=f"{len(searching)} images search {len(searched)} for the same {_column(level)}.",
    )


def images(cfg: Config) -> ImageSet:
    """List the images of the split, labelled if every one has a label (or instance, by level).

    Raises:
        UserError: The table, a row or an option is wrong.
    """
    root, rows = _read(cfg)
    return _image_set(root, _of_split(cfg, rows), _level(cfg, rows), rows)


def _read(cfg: Config) -> tuple[Path, pd.DataFrame]:
    check(cfg)
    one_of("data.level", cfg.level, ("auto", "category", "instance"))
    if not cfg.file:
        raise UserError("data.file is not set: give the CSV or Parquet table, e.g. data.file=photos.csv")
    file = Path(cfg.file).expanduser()
    table = read_table("data.file", file)
    _check_columns(file, table)
    rows = pd.DataFrame({c: text(table[c]) if c in table else "" for c in _COLUMNS}, index=table.index)
    rows["role"] = rows["role"].str.lower().replace("", "both")
    _check_rows(file, rows)
    rows["path"] = [PurePosixPath(path).as_posix() for path in rows["path"]]
    twice = rows["path"].duplicated()
    if twice.any():
        raise UserError(f"{str(file)!r} lists {rows.loc[twice, 'path'].iloc[0]!r} twice: keep one row")
    return existing_folder("data.root", cfg.root or str(file.parent)), rows


def _check_columns(file: Path, table: pd.DataFrame) -> None:
    unknown = [column for column in table.columns if column not in _COLUMNS]
    if "path" not in table:
        near = get_close_matches("path", unknown, n=1)
        hint = f"did you mean {near[0]!r}? Rename it" if near else f"it has {', '.join(table.columns)}"
        raise UserError(f"{str(file)!r} has no column 'path': {hint}")
    if len(table) == 0:
        raise UserError(f"{str(file)!r} has no rows: list one image per row")
    for column in unknown:
        near = get_close_matches(column, _COLUMNS, n=1)
        say(f"{str(file)!r}: column {column!r} is ignored" + (f" (not {near[0]!r}?)" if near else ""))


def _check_rows(file: Path, rows: pd.DataFrame) -> None:
    for number, path, role in zip(range(1, len(rows) + 1), rows["path"], rows["role"], strict=True):
        where = f"{str(file)!r}, data row {number}"
        if not path:
            raise UserError(f"{where}: the path is empty")
        if path.startswith("/") or ".." in path.split("/"):
            raise UserError(f"{where}: path {path!r} must be relative and stay under data.root")
        one_of(f"{where}: role", role, _ROLES)


def _level(cfg: Config, rows: pd.DataFrame) -> str:
    if cfg.level == "auto":
        return "instance" if rows["instance"].any() else "category"
    if not rows[_column(cfg.level)].any():
        raise UserError(
            f"data.level={cfg.level}: {cfg.file!r} has no values in column {_column(cfg.level)!r}"
        )
    return cfg.level


def _of_split(cfg: Config, rows: pd.DataFrame) -> pd.DataFrame:
    if not cfg.split:
        return rows
    splits = tuple(sorted(set(rows["split"]) - {""}))
    if not splits:
        raise UserError(f"data.split={cfg.split!r}: {cfg.file!r} has no column 'split', or it is empty")
    one_of("data.split", cfg.split, splits)
    return rows[rows["split"] == cfg.split]


def _column(level: str) -> str:
    return "instance" if level == "instance" else "label"


def _codes(part: pd.DataFrame, level: str, rows: pd.DataFrame) -> tuple[IntArray, tuple[str, ...]]:
    names = tuple(sorted(set(rows[_column(level)]) - {""}))
    # get_indexer gives -1, which is NO_GROUP, where the name is empty.
    return pd.Index(names, dtype=object).get_indexer(part[_column(level)]).astype(np.int64), names


def _groups(part: pd.DataFrame, level: str, rows: pd.DataFrame) -> IntArray:
    codes, _ = _codes(part, level, rows)
    return np.where(part["role"] == "distractor", NO_GROUP, codes)


def _boxes(cfg: Config, part: pd.DataFrame) -> VectorArray | None:
    """Read the boxes of some rows: float32 [N, 4], NaN where there is none; None = nothing is cut."""
    one_of("data.query_crop", cfg.query_crop, ("auto", "box", "none"))
    texts = part[list(_BOX)]
    has_box = (texts != "").any(axis=1)
    if cfg.query_crop == "none" or not (has_box.any() or cfg.query_crop == "box"):
        return None
    if not has_box.any():
        raise UserError(
            f"data.query_crop=box: no query of {cfg.file!r} has a box: fill its columns {', '.join(_BOX)}"
        )
    boxes = texts.apply(pd.to_numeric, errors="coerce").to_numpy(np.float32)
    is_box = np.isfinite(boxes).all(axis=1) & (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
    wrong = has_box.to_numpy() & ~is_box
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        given = ", ".join(f"{name}={texts.iloc[row][name]}" for name in _BOX)
        raise UserError(
            f"{cfg.file!r}: the box of {part['path'].iloc[row]!r} ({given}) needs four numbers, left below "
            "right and top below bottom"
        )
    return np.where(has_box.to_numpy()[:, None], boxes, np.float32("nan"))


def _image_set(root: Path, part: pd.DataFrame, level: str, rows: pd.DataFrame) -> ImageSet:
    codes, names = _codes(part, level, rows)
    if (codes == NO_GROUP).any():
        return ImageSet(root, tuple(part["path"]))
    return ImageSet(root, tuple(part["path"]), codes, names)
