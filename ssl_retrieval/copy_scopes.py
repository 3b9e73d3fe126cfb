"""What a search for copies found between two lists of a task, counted and in words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ssl_retrieval.near_duplicates import later_copies
from ssl_retrieval.types import ImageSet, Task


@dataclass(frozen=True, eq=False)
class Scope:
    """Two lists that were searched for copies of each other's images.

    Attributes:
        name: ``training-queries``, ``training-gallery``, ``queries-gallery`` or ``within-gallery``.
        first: Q images.
        second: N images; the same list to search it in itself.
        pairs: What `find_pairs` gave.
        same_files: Indices into the second of the images that the first holds too, as the same files.
    """

    name: str
    first: ImageSet
    second: ImageSet
    pairs: pd.DataFrame
    same_files: np.ndarray

    def copied(self, side: str) -> np.ndarray:
        """Give the sorted indices into ``first`` or ``second`` of images that have a copy in the other."""
        return np.unique(self.pairs[side].to_numpy(np.int64))

    def counts(self) -> dict[str, object]:
        """Count, as one row of ``summary.csv``."""
        ways = {
            f"pairs_by_{way}": int(self.pairs["found_by"].str.split("+").map(lambda f, w=way: w in f).sum())
            for way in ("content", "hash", "embedding")
        }
        return {
            "scope": self.name,
            "first_images": len(self.first),
            "second_images": len(self.second),
            "same_files": len(self.same_files),
            "pairs": len(self.pairs),
            **ways,
            "first_with_copy": len(self.copied("first")),
            "second_with_copy": len(self.copied("second")),
        }

    def named(self) -> pd.DataFrame:
        """Give the pairs with ids in place of indices."""
        ids = [
            np.array(images.paths, dtype=object)[self.pairs[side].to_numpy(np.int64)]
            for side, images in (("first", self.first), ("second", self.second))
        ]
        return self.pairs.assign(scope=self.name, first=ids[0], second=ids[1])


def in_words(task: Task, scopes: Sequence[Scope]) -> Iterator[str]:
    """Say what was found, one sentence per pair of lists."""
    for scope in scopes:
        same, total = len(scope.same_files), len(scope.second)
        copied = f"{len(scope.copied('second'))} have a near copy"
        sure = scope.pairs["found_by"] != "embedding"
        by_hash = f"({scope.pairs.loc[sure, 'second'].nunique()} by content or hash)"
        if scope.name.startswith("training-"):
            images = "queries" if scope.name == "training-queries" else "gallery images"
            yield (
                f"Of {total} {images} {same} are training images themselves; {copied} {by_hash} among the "
                f"others of the {len(scope.first)} training images."
            )
        elif scope.name == "queries-gallery":
            relevant = _relevant_pairs(task, scope.pairs)
            firsts = scope.pairs["first"]
            yield (
                f"Of {len(scope.first)} queries {firsts.nunique()} have a near copy "
                f"({firsts[sure].nunique()} by content or hash) in the gallery, which is a right answer for "
                f"{firsts[relevant].nunique()} of them."
            )
        else:
            later = len(later_copies(scope.pairs, total))
            yield (
                f"Of {total} gallery images {_in_any(scope.pairs)} have a near copy "
                f"({_in_any(scope.pairs[sure])} by content or hash) in it; {later} would go to keep one of "
                "each."
            )


def _in_any(pairs: pd.DataFrame) -> int:
    return int(pd.concat([pairs["first"], pairs["second"]]).nunique())


def _relevant_pairs(task: Task, pairs: pd.DataFrame) -> np.ndarray:
    columns = pairs["first"].to_numpy(np.int64), pairs["second"].to_numpy(np.int64)
    sets: dict[int, set[int]] = {}
    return np.array(
        [
            item in sets.setdefault(query, set(task.relevant[query].tolist()))
            for query, item in zip(*(column.tolist() for column in columns), strict=True)
        ],
        np.bool_,
    )
