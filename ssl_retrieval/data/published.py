"""Published ground truths: find the images that they name, and read their tables."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from ssl_retrieval.data.base import nearby
from ssl_retrieval.errors import UserError
from ssl_retrieval.images import list_images
from ssl_retrieval.types import ImageSet, IntArray


def ground_truth_file(root: Path, name: str, given: str, source: str) -> Path:
    """Find a file of the ground truth.

    Args:
        root: The dataset's folder.
        name: The published file name, looked for there.
        given: Another place, from ``data.ground_truth``; ``~`` is expanded, empty = there is none.
        source: Where to get the file, for the message.

    Raises:
        UserError: There is no such file.
    """
    file = Path(given).expanduser() if given else root / name
    if file.is_file():
        return file
    found = None if given else nearby(root, name)
    hint = f"data.root={str(found)!r} has it" if found else f"download it ({source})"
    raise UserError(f"no ground truth {str(file)!r}: {hint}, or set data.ground_truth to where it is")


def published_file(root: Path, name: str, advice: str) -> Path:
    """Find a file that a dataset's archive holds.

    Args:
        root: The dataset's folder.
        name: Relative to it.
        advice: What to download and where to unpack it, for the message.

    Raises:
        UserError: There is no such file.
    """
    if (root / name).is_file():
        return root / name
    found = nearby(root, name)
    hint = f"try data.root={found}" if found else advice
    raise UserError(f"no {name!r} in {str(root)!r}: {hint}")


def by_stem(root: Path) -> dict[str, str]:
    """Find images by their names without folder and suffix, which is how ground truths name them.

    Args:
        root: Searched at any depth.

    Returns:
        Name -> path relative to ``root``, in natural order of the paths.

    Raises:
        UserError: Two images have the same name, or the folder is wrong.
    """
    found: dict[str, str] = {}
    for path in list_images(root):
        name = Path(path).stem
        if name in found:
            raise UserError(
                f"two images in {str(root)!r} have the same name, {found[name]!r} and {path!r}: "
                "keep one, or set data.root to the dataset alone"
            )
        found[name] = path
    return found


def in_part(root: Path, folder: str, advice: str) -> dict[str, str]:
    """Find the images of one part of a dataset, which is a folder of its own.

    Args:
        root: The dataset's folder.
        folder: The part, below ``root``.
        advice: What to do when it is not there, nor nearby.

    Returns:
        As `by_stem`, with paths relative to ``root``.

    Raises:
        UserError: There is no such folder, or two images in it have the same name.
    """
    if not (root / folder).is_dir():
        found = nearby(root, folder)
        hint = f"try data.root={found}" if found else advice
        raise UserError(f"no folder {folder!r} in {str(root)!r}: {hint}")
    return {name: (Path(folder) / path).as_posix() for name, path in by_stem(root / folder).items()}


def require(names: Iterable[str], there: Iterable[str], root: Path) -> None:
    """Insist that all images that a ground truth names are there.

    A number computed without some of them would pass for the published one. Unreadable images are another
    matter: they are seen when they are decoded, and ``data.on_error`` decides.

    Args:
        names: What the ground truth names.
        there: What was found.
        root: Where, for the message.

    Raises:
        UserError: Some are missing; the first three are named.
    """
    wanted = set(names)
    missing = sorted(wanted.difference(there))
    if missing:
        raise UserError(
            f"{len(missing)} of {len(wanted)} images that the ground truth names are not in {str(root)!r} "
            f"({', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}): unpack all parts of the "
            "dataset, or check data.root"
        )


def require_files(root: Path, paths: Sequence[str]) -> None:
    """Insist that all image files that a ground truth names are there (see `require`).

    Each folder is listed once, which for a million files is far quicker than asking for every one.

    Args:
        root: The dataset's folder.
        paths: Relative to it; none leaves it.

    Raises:
        UserError: A path leaves the root or is listed twice, or files are missing.
    """
    ImageSet(root, tuple(paths))  # refuses paths that leave the root before any is looked at
    folders = {str(PurePosixPath(path).parent) for path in paths}
    there = {(folder, name) for folder in folders for name in _names_in(root / folder)}
    require(paths, (path for path in paths if _split(path) in there), root)


def _names_in(folder: Path) -> list[str]:
    return [entry.name for entry in os.scandir(folder)] if folder.is_dir() else []


def _split(path: str) -> tuple[str, str]:
    return str(PurePosixPath(path).parent), PurePosixPath(path).name


def fields(file: Path, columns: Mapping[str, type], header: int = 0) -> pd.DataFrame:
    """Read a text file of fields between spaces, one row per line.

    Args:
        file: Its empty lines are left out.
        columns: Name -> int, float or str, for each field of a line.
        header: How many lines come before the first row.

    Returns:
        One row per line.

    Raises:
        UserError: The file is missing, unreadable or has no row, or a line does not fit; it is named.
    """
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise UserError(f"cannot read {str(file)!r}: {reason}; download the published file") from None
    rows = []
    for number, line in enumerate(lines[header:], start=header + 1):
        parts = line.split()
        if not parts:
            continue
        try:
            rows.append([kind(part) for kind, part in zip(columns.values(), parts, strict=True)])
        except ValueError:
            raise UserError(
                f"{str(file)!r}, line {number}: {' '.join(columns)} are needed, not {line[:60]!r}: "
                "download the published file again"
            ) from None
    if not rows:
        raise UserError(f"{str(file)!r} has no rows: download the published file again")
    return pd.DataFrame(rows, columns=list(columns))


def table(file: Path, columns: tuple[str, ...], header: bool = True) -> pd.DataFrame:
    """Read a CSV file of texts.

    Args:
        file: With a first row of column names unless ``header`` is false.
        columns: Those that are needed; without a header the names of all, in order.
        header: Whether the first row names the columns.

    Returns:
        The needed columns; what is empty is an empty text.

    Raises:
        UserError: The file is missing, unreadable or lacks a column.
    """
    try:
        found = pd.read_csv(
            file, dtype=str, keep_default_na=False, encoding="utf-8-sig", header=0 if header else None
        )
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"cannot read {str(file)!r}: {reason or error}; download the published file"
        ) from None
    if not header and found.shape[1] == len(columns):
        found.columns = pd.Index(columns)
    lacking = [column for column in columns if column not in found]
    if lacking:
        raise UserError(f"{str(file)!r} has no column {lacking[0]!r}: give the published file")
    return found[list(columns)]


def indices_of(names: Iterable[str], position: dict[str, int]) -> IntArray:
    """Give the gallery indices of names, ascending, each once: int64 [R].

    >>> indices_of(["b", "a", "b"], {"a": 0, "b": 1})
    array([0, 1])
    """
    return np.unique(np.array([position[name] for name in names], dtype=np.int64))
