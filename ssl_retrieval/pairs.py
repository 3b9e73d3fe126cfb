"""Which images match: a table of pairs (from geometric verification, clicks, known duplicates), and clusters.

A cluster is what a chain of pairs holds together: whether two of its images match is not known, only that
they may. Nothing is said of images of different clusters, but that most of them do not match.
"""

from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from ssl_retrieval.console import say
from ssl_retrieval.data.table import read_table, text
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import IntArray

KEY = "method.pairs"
COLUMNS = ("path_a", "path_b")


def read_pairs(file: Path, paths: Sequence[str], left_out: Collection[str] = ()) -> IntArray:
    """Read a CSV or Parquet file with the columns ``path_a`` and ``path_b``, a pair of images per row.

    Args:
        file: The table; ``~`` is expanded.
        paths: N images' paths, relative to ``data.root`` as those of the table.
        left_out: Paths of images that are listed but cannot be read: their pairs are left out, with a note.

    Returns:
        int64 [M, 2] image numbers.

    Raises:
        UserError: The file is no such table, or a row names an unknown image, an image with itself, or a
            pair that another row names.
    """
    file = file.expanduser()
    table = read_table(KEY, file)
    missing = [column for column in COLUMNS if column not in table]
    if missing:
        raise UserError(f"{str(file)!r} has no column {missing[0]!r}: it has {', '.join(table.columns)}")
    if len(table) == 0:
        raise UserError(f"{str(file)!r} has no rows: list one pair of images per row")
    names = pd.DataFrame({column: text(table[column]).map(_plain) for column in COLUMNS})
    readable = ~names.isin(set(left_out)).any(axis=1).to_numpy()
    index = pd.Index(paths)
    found = [index.get_indexer(pd.Index(names[column])) for column in COLUMNS]
    numbers = np.stack(found, axis=1).astype(np.int64)
    _check(file, names, numbers, readable)
    if not readable.all():
        say(f"{str(file)!r}: {int((~readable).sum())} pairs are left out: an image of theirs is unreadable")
    return numbers[readable]


def clusters(pairs: IntArray, num_images: int) -> IntArray:
    """Number the clusters, the connected components of the graph of pairs; the rest are clusters of one.

    Args:
        pairs: int64 [M, 2] image numbers.
        num_images: N.

    Returns:
        int64 [N]: each image's cluster.

    >>> clusters(np.array([[0, 3], [3, 1]]), num_images=5)
    array([0, 0, 1, 0, 2])
    """
    edges = np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])
    graph = sparse.coo_matrix(edges, shape=(num_images, num_images))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _plain(path: str) -> str:
    # An empty path would become ".".
    return PurePosixPath(path).as_posix() if path else ""


def _check(file: Path, names: pd.DataFrame, numbers: IntArray, readable: NDArray[np.bool_]) -> None:
    first_row: dict[tuple[int, ...], int] = {}
    for row, (two, found) in enumerate(
        zip(names.to_numpy().tolist(), numbers.tolist(), strict=True), start=1
    ):
        where = f"{str(file)!r}, data row {row}"
        if "" in two:
            raise UserError(f"{where}: {COLUMNS[two.index('')]} is empty")
        if two[0] == two[1]:
            raise UserError(f"{where}: {two[0]!r} is paired with itself: remove the row")
        if not readable[row - 1]:
            continue
        if -1 in found:
            raise UserError(
                f"{where}: {two[found.index(-1)]!r} is none of the training images: give paths relative to "
                "data.root"
            )
        earlier = first_row.setdefault(tuple(sorted(found)), row)
        if earlier != row:
            raise UserError(f"{where}: {two[0]!r} and {two[1]!r} are paired in row {earlier} too: keep one")
