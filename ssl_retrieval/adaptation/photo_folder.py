"""What lies in a folder of somebody's photos: how many differ, what cannot be read, what is a copy."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssl_retrieval import near_duplicates
from ssl_retrieval.console import say
from ssl_retrieval.errors import UserError
from ssl_retrieval.images import content_digests, header_sizes, list_images
from ssl_retrieval.near_duplicates import Pictures
from ssl_retrieval.types import ImageSet, IntArray, digest_of

MOST_PHOTOS = 10_000
"""More are drawn from: the longest training of a plan sees each of so many twice."""

MAX_HAMMING = 4
"""Bits of 64 in which the hashes of near copies differ: stricter than where a person looks at the pairs."""

_NO_COSINE = 1.0


@dataclass(frozen=True, eq=False)
class PhotoFolder:
    """The photos that an adaptation works with.

    Attributes:
        images: All image files of the folder.
        distinct: Those that are trained on and looked at: drawn from all, one of each group of copies. Some
            may turn out not to be readable.
        num_drawn: How many were drawn from ``images``.
        groups: Sizes of the groups of copies among the drawn, largest first, from 2 on.
        short_sides: Short sides in pixels of those that have a readable header.
        key: Hash of the paths, and of what the drawn hold.
    """

    images: ImageSet
    distinct: ImageSet
    num_drawn: int
    groups: tuple[int, ...]
    short_sides: tuple[int, ...]
    key: str

    @property
    def num_copies(self) -> int:
        """Count what is left out as a copy."""
        return sum(self.groups) - len(self.groups)

    def in_words(self) -> list[str]:
        """Say what was found, a sentence each."""
        said = [f"{len(self.images):,} image files."]
        if self.num_drawn < len(self.images):
            said.append(f"{self.num_drawn:,} of them, evenly drawn, are trained on and looked at.")
        if self.groups:
            largest = self.groups[0]
            said.append(
                f"{self.num_copies:,} are copies or nearly so of another one (the largest group has "
                f"{largest:,}): one of each group is used, for training takes any two photos for two things."
            )
        if self.short_sides:
            low, middle, high = (round(float(np.quantile(self.short_sides, q))) for q in (0, 0.5, 1))
            rest = "" if low == high else f" to {high:,} pixels, {middle:,} in the middle"
            said.append(f"Short sides: {low:,}{rest or ' pixels'}.")
        return said


def look(root: Path) -> PhotoFolder:
    """Look through a folder and its subfolders.

    Args:
        root: The folder.

    Raises:
        UserError: It does not exist, is no folder, or holds no image.
    """
    everything = ImageSet(root, tuple(list_images(root)))
    drawn = everything.take(_evenly(len(everything), MOST_PHOTOS))
    digests = content_digests(drawn)
    groups = _groups(drawn, digests)
    _, firsts = np.unique(groups, return_index=True)
    sizes = np.sort(np.bincount(groups))[::-1]
    return PhotoFolder(
        images=everything,
        distinct=drawn.take(np.sort(firsts)),
        num_drawn=len(drawn),
        groups=tuple(int(size) for size in sizes if size > 1),
        short_sides=tuple(min(size) for size in header_sizes(drawn) if not isinstance(size, str)),
        key=digest_of([everything.paths, digests]),
    )


def _evenly(count: int, most: int) -> IntArray:
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _groups(images: ImageSet, digests: list[str]) -> IntArray:
    """Number the groups of copies: the same bytes, or nearly the same look; int64 [N]."""
    # A thousand copies of one file are half a million pairs: they are told by their bytes beforehand.
    known = [digest if digest != "missing" else f"missing {i}" for i, digest in enumerate(digests)]
    _, firsts, same = np.unique(known, return_index=True, return_inverse=True)
    different = Pictures.of(images.take(firsts))
    try:
        pairs = near_duplicates.find_pairs(different, different, MAX_HAMMING, _NO_COSINE)
    except UserError:
        say("too many photos look alike to list near copies: only copies byte by byte are left out")
        return same.astype(np.int64)
    return near_duplicates.groups(pairs, len(firsts))[same]
