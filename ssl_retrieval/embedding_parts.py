"""The rows of an EmbeddingSet while it is made: kept on disk, so that a killed run goes on."""

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from ssl_retrieval.atomic import atomic_path
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import EmbeddingSet, ImageSet, IntArray, VectorArray


class Parts:
    """The rows finished so far, in memory and as files that a later run can take up.

    Attributes:
        num_before: Images that an earlier run had finished.
    """

    def __init__(self, folder: Path, key: str, count: int, dim: int) -> None:
        """Take up what an interrupted run of the same key has left; anything else is removed.

        Args:
            folder: Where parts are kept.
            key: Of the EmbeddingSet that is made.
            count: Images in all.
            dim: Dimensions per vector.
        """
        self.folder, self.count = folder, count
        self.vectors = np.zeros((count, dim), np.float32)
        self.done = np.zeros(count, dtype=bool)
        self.reasons: dict[int, str] = {}
        self.unsaved: list[int] = []
        self.saved_at = self.begin = time.monotonic()
        marker = folder / "key.txt"
        if marker.is_file() and marker.read_text() == key:
            self._load()
        else:
            shutil.rmtree(folder, ignore_errors=True)
        self.marker, self.key = marker, key
        self.num_before = self.num_done

    @property
    def num_done(self) -> int:
        """Count the images that are finished, unreadable ones included."""
        return int(self.done.sum())

    def missing(self) -> IntArray:
        """Give the numbers of the images that are left: int64 [M]."""
        return np.flatnonzero(~self.done).astype(np.int64)

    def add(self, numbers: list[int], vectors: VectorArray, reasons: dict[int, str]) -> None:
        """Take in what became of some images.

        Args:
            numbers: M images that could be read.
            vectors: float32 [M, D].
            reasons: Number of an unreadable image -> why.
        """
        self.vectors[numbers] = vectors
        self.reasons |= reasons
        touched = [*numbers, *reasons]
        self.done[touched] = True
        self.unsaved += touched

    def seconds_unsaved(self) -> float:
        """Tell how much work a kill would cost now."""
        return time.monotonic() - self.saved_at

    def seconds(self) -> float:
        """Tell how long this run has taken so far; more than 0."""
        return max(time.monotonic() - self.begin, 1e-9)

    def save(self) -> None:
        """Write what has come since the last time into a file of its own."""
        if not self.marker.is_file():
            with atomic_path(self.marker) as partial:
                partial.write_text(self.key)
        numbers = np.array(self.unsaved, np.int64)
        reasons = np.array([self.reasons.get(int(n), "") for n in numbers], dtype=np.str_)
        with atomic_path(self.folder / f"{int(numbers[0]):09d}.npz") as partial, partial.open("wb") as stream:
            np.savez(stream, numbers=numbers, vectors=self.vectors[numbers], reasons=reasons)
        self.unsaved, self.saved_at = [], time.monotonic()

    def collect(
        self, image_set: ImageSet, key: str, meta: dict[str, Any], may_be_empty: bool = False
    ) -> EmbeddingSet:
        """Put the finished rows together, in the order of ``image_set``.

        Args:
            image_set: What was embedded.
            key: See `EmbeddingSet`.
            meta: See `EmbeddingSet`.
            may_be_empty: Whether none may be readable.

        Raises:
            UserError: No image could be read, and some had to be.
        """
        good = np.array([n for n in range(self.count) if n not in self.reasons], np.int64)
        if len(good) == 0 and not may_be_empty:
            number, reason = next(iter(sorted(self.reasons.items())))
            raise UserError(
                f"none of the {self.count} images in {str(image_set.root)!r} can be read: check the files; "
                f"the first, {image_set.paths[number]!r}: {reason}"
            )
        num_new = self.count - self.num_before
        return EmbeddingSet(
            ids=tuple(image_set.paths[n] for n in good),
            vectors=self.vectors[good],
            key=key,
            skipped=tuple((image_set.paths[n], r) for n, r in sorted(self.reasons.items())),
            images_per_s=num_new / self.seconds() if num_new else float("nan"),
            meta=meta,
        )

    def _load(self) -> None:
        for file in sorted(self.folder.glob("*.npz")):
            with np.load(file, allow_pickle=False) as part:
                numbers, reasons = part["numbers"], part["reasons"]
                self.vectors[numbers] = part["vectors"]
            self.done[numbers] = True
            self.reasons |= {int(n): str(r) for n, r in zip(numbers, reasons, strict=True) if r}
