"""Copies of pictures: same bytes, nearly the same hash, or nearly the same vector."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ssl_retrieval import perceptual_hash
from ssl_retrieval.errors import UserError
from ssl_retrieval.images import content_digests
from ssl_retrieval.perceptual_hash import Hashes
from ssl_retrieval.search import top_k
from ssl_retrieval.types import ImageSet, IntArray, VectorArray

COLUMNS = ("first", "second", "same_content", "hamming", "mirrored", "cosine", "found_by")

_FIRST_K = 32


@dataclass(frozen=True, eq=False)
class Pictures:
    """Images with all that copies are told by.

    Attributes:
        images: N images.
        digests: N hashes of the files' bytes; ``missing`` for a file that cannot be read.
        hashes: N perceptual hashes.
        vectors: float32 [N, D] of length 1, or 0 where there is none; None = told without vectors.
    """

    images: ImageSet
    digests: list[str]
    hashes: Hashes
    vectors: VectorArray | None = None

    @classmethod
    def of(cls, images: ImageSet, vectors: VectorArray | None = None) -> "Pictures":
        """Read the files; vectors are made elsewhere."""
        return cls(images, content_digests(images), perceptual_hash.hash_images(images), vectors)

    @property
    def files(self) -> list[Path]:
        """Full paths, links in the root's own path resolved."""
        root = self.images.root.resolve()
        return [root / path for path in self.images.paths]


def find_pairs(first: Pictures, second: Pictures, max_hamming: int, min_cosine: float) -> pd.DataFrame:
    """Find all pairs of which one looks like a copy of the other.

    The very same file in both is no pair. Where both are the same list, each pair stands once.

    Args:
        first: Q images.
        second: N images; the same object to search a list in itself.
        max_hamming: Bits of the perceptual hash that may differ.
        min_cosine: Least cosine of the vectors, above 0 and at most 1; of no use without vectors.

    Returns:
        One row per pair, the nearest first: ``first`` and ``second`` (indices), ``same_content``,
        ``hamming`` (bits that differ, NaN without hash), ``mirrored`` (whether it is the mirror image
        whose hash is near), ``cosine`` (NaN without vectors) and ``found_by``, such as ``hash+embedding``.

    Raises:
        UserError: A threshold is out of range, or passes millions of pairs.
    """
    if not 0 < min_cosine <= 1:
        raise UserError(f"min_cosine={min_cosine}: a cosine above 0 and at most 1 is needed, e.g. 0.95")
    ways = {
        "content": same_content(first.digests, second.digests),
        "hash": perceptual_hash.pairs_within(first.hashes, second.hashes, max_hamming),
    }
    if first.vectors is not None and second.vectors is not None:
        ways["embedding"] = within_cosine(first.vectors, second.vectors, min_cosine)
    width = max(1, len(second.images))
    keys = {name: left * width + right for name, (left, right) in ways.items()}
    every = np.unique(np.concatenate(list(keys.values())))
    every = every[~_is_no_pair(every // width, every % width, first, second)]
    left, right = every // width, every % width
    found = {name: np.isin(every, of_way) for name, of_way in keys.items()}
    hamming, mirrored = perceptual_hash.distances(first.hashes, second.hashes, (left, right))
    table = pd.DataFrame(
        {
            "first": left,
            "second": right,
            "same_content": found["content"],
            "hamming": hamming,
            "mirrored": mirrored & (hamming <= max_hamming),
            "cosine": _cosines(first.vectors, second.vectors, left, right),
            "found_by": np.array(
                ["+".join(n for n in found if found[n][row]) for row in range(len(every))], object
            ),
        },
        columns=list(COLUMNS),
    )
    order = ["same_content", "hamming", "cosine", "first", "second"]
    return table.sort_values(order, ascending=[False, True, False, True, True], ignore_index=True)


def _is_no_pair(left: IntArray, right: IntArray, first: Pictures, second: Pictures) -> np.ndarray:
    if first is second:
        return left >= right
    files, others = np.array(list(map(str, first.files))), np.array(list(map(str, second.files)))
    same: np.ndarray = files[left] == others[right]
    return same


def _cosines(
    first: VectorArray | None, second: VectorArray | None, left: IntArray, right: IntArray
) -> np.ndarray:
    if first is None or second is None:
        return np.full(len(left), np.nan)
    parts = [range(start, min(start + 4096, len(left))) for start in range(0, len(left), 4096)]
    found = [(first[left[list(part)]] * second[right[list(part)]]).sum(axis=1) for part in parts]
    return np.concatenate([np.empty(0), *found])


def same_content(first: list[str], second: list[str]) -> tuple[IntArray, IntArray]:
    """Find the pairs of files that hold the same bytes.

    >>> same_content(["a", "b", "missing"], ["b", "missing", "b"])
    (array([1, 1]), array([0, 2]))
    """
    tables = [
        pd.DataFrame({"digest": digests, "index": np.arange(len(digests))}) for digests in (first, second)
    ]
    known = [table[table["digest"] != "missing"] for table in tables]
    sizes = [table["digest"].value_counts() for table in known]
    perceptual_hash.refuse_too_many(int((sizes[0] * sizes[1]).fillna(0).sum()), "equality of content")
    pairs = known[0].merge(known[1], on="digest", suffixes=("_first", "_second"))
    return pairs["index_first"].to_numpy(np.int64), pairs["index_second"].to_numpy(np.int64)


def within_cosine(first: VectorArray, second: VectorArray, min_cosine: float) -> tuple[IntArray, IntArray]:
    """Find the pairs whose cosine is high, exactly.

    Args:
        first: float32 [Q, D], rows of length 1 or 0.
        second: float32 [N, D], likewise.
        min_cosine: The least cosine; above 0.

    Returns:
        int64 [P] and int64 [P]: indices into the first and the second.

    Raises:
        UserError: More than ``perceptual_hash.MAX_PAIRS``.
    """
    rows = np.arange(len(first))
    lefts, rights = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    k = min(_FIRST_K, len(second))
    num_found = 0
    while len(rows):
        ranking = top_k(first[rows], second, k)
        passed = ranking.scores >= np.float32(min_cosine)
        # Whoever has k copies may have more, and is asked again for a longer list.
        is_full = passed[:, -1] & (k < len(second))
        num_found += int(passed.sum())
        perceptual_hash.refuse_too_many(num_found, f"min_cosine={min_cosine}")
        row, place = np.nonzero(passed & ~is_full[:, None])
        lefts.append(rows[row])
        rights.append(ranking.indices[row, place])
        rows, k = rows[is_full], min(4 * k, len(second))
    return np.concatenate(lefts), np.concatenate(rights)


def groups(pairs: pd.DataFrame, count: int) -> IntArray:
    """Number the groups of copies; copies of copies are one group, however far its ends may be apart.

    Args:
        pairs: From `find_pairs` of a list in itself.
        count: N, the length of the list.

    Returns:
        int64 [N], the group of each; a group of its own where there is no copy.

    >>> groups(pd.DataFrame({"first": [0, 1], "second": [1, 4]}), 5).tolist()
    [0, 0, 1, 2, 0]
    """
    left, right = pairs["first"].to_numpy(np.int64), pairs["second"].to_numpy(np.int64)
    edges = coo_array((np.ones(len(pairs)), (left, right)), shape=(count, count))
    return connected_components(edges, directed=False)[1].astype(np.int64)


def later_copies(pairs: pd.DataFrame, count: int) -> IntArray:
    """List what must go so that one of each group of copies stays, the first.

    Args:
        pairs: From `find_pairs` of a list in itself.
        count: Length of the list.

    Returns:
        int64, sorted indices.

    >>> later_copies(pd.DataFrame({"first": [0, 1], "second": [1, 4]}), 5)
    array([1, 4])
    """
    _, firsts = np.unique(groups(pairs, count), return_index=True)
    later: IntArray = np.setdiff1d(np.arange(count, dtype=np.int64), firsts)
    return later
