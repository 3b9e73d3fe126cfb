"""All query-gallery pairs of a search, cut into blocks whose scores fit in memory."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssl_retrieval.errors import UserError
from ssl_retrieval.score_keys import LOW_BITS, NOTHING, keys_of
from ssl_retrieval.similarity import Similarity
from ssl_retrieval.types import IntArray, VectorArray

BLOCK_BYTES = 256 * 2**20
MAX_QUERY_ROWS = 512
MIN_QUERY_ROWS = 128
"""Fewer rows would make the product of two blocks slow."""
CACHED_BYTES = 8 * 2**20
"""Vectors of a block on the CPU: what its caches hold."""
KEPT_BLOCKS = 2
"""Scores of whole rows are kept where they take no more memory than so many blocks."""
# Per pair: the float32 score, the int64 key, and the temporaries of making, sorting or merging them.
BYTES_PER_PAIR = 24


@dataclass(frozen=True, eq=False)
class InBlock:
    """The entries of some index lists that fall into one gallery block."""

    rows: Tensor
    slots: Tensor
    columns: Tensor


@dataclass(frozen=True, eq=False)
class IndexLists:
    """One list of gallery indices per query of a block, ordered by index so that a range is a slice."""

    rows: Tensor
    slots: Tensor
    indices: Tensor
    sorted_indices: IntArray
    shape: tuple[int, int]

    @classmethod
    def of(cls, lists: Sequence[IntArray], device: torch.device) -> "IndexLists":
        """List some queries' gallery indices, unique for each query."""
        counts = lengths(lists)
        rows = np.repeat(np.arange(len(lists)), counts)
        slots = np.arange(len(rows)) - np.repeat(counts.cumsum() - counts, counts)
        indices = np.concatenate([np.empty(0, np.int64), *lists])
        order = np.lexsort((rows, indices))
        rows, slots, indices = rows[order], slots[order], indices[order]
        repeated = (np.diff(indices) == 0) & (np.diff(rows) == 0)
        assert not repeated.any(), "a gallery index is listed twice for the same query"
        return cls(
            rows=torch.from_numpy(rows).to(device),
            slots=torch.from_numpy(slots).to(device),
            indices=torch.from_numpy(indices).to(device),
            sorted_indices=indices,
            shape=(len(lists), int(counts.max(initial=0))),
        )

    def overlaps(self, other: "IndexLists | None") -> bool:
        """Say whether a query lists an item in both."""
        if other is None:
            return False
        mine, others = (x.rows + x.indices * self.shape[0] for x in (self, other))
        return bool(torch.isin(mine, others).any())

    def within(self, start: int, stop: int) -> InBlock:
        """Give the entries with gallery indices from ``start`` to below ``stop``."""
        low, high = np.searchsorted(self.sorted_indices, [start, stop])
        return InBlock(self.rows[low:high], self.slots[low:high], self.indices[low:high] - start)


@dataclass(frozen=True, eq=False)
class Pairs(ABC):
    """All query-gallery pairs, cut into blocks whose scores fit in memory."""

    ignored: Sequence[IntArray] | None
    device: torch.device
    num_queries: int
    num_gallery: int
    query_rows: int
    gallery_rows: int
    kept: bool

    def query_blocks(self) -> Iterator[slice]:
        """Cut the queries."""
        for start in range(0, self.num_queries, self.query_rows):
            yield slice(start, min(start + self.query_rows, self.num_queries))

    def keys(self, rows: slice) -> Iterator[tuple[int, Tensor]]:
        """Yield the first gallery index and the int64 [q, g] keys of each block, ignored items blanked."""
        ignored = self.ignored_of(rows)
        for start, scores in self.scores(rows):
            keys = keys_of(scores, torch.arange(start, start + scores.shape[1], device=self.device))
            if ignored is not None:
                in_block = ignored.within(start, start + scores.shape[1])
                keys[in_block.rows, in_block.columns] = NOTHING
            yield start, keys

    def ignored_of(self, rows: slice) -> "IndexLists | None":
        """Give the ignored items of some queries; None where no query has any."""
        return None if self.ignored is None else IndexLists.of(self.ignored[rows], self.device)

    @abstractmethod
    def scores(self, rows: slice) -> Iterator[tuple[int, Tensor]]:
        """Yield the first gallery index and the float32 [q, g] scores of each block."""

    def two_passes(self, rows: slice) -> tuple[Iterator[tuple[int, Tensor]], Iterator[tuple[int, Tensor]]]:
        """Give the scores twice; the second pass may overwrite them once the first is through.

        They are computed twice where those of whole rows do not fit in memory.
        """
        if not self.kept:
            return self.scores(rows), self.scores(rows)
        kept = torch.empty(rows.stop - rows.start, self.num_gallery, device=self.device)
        for start, scores in self.scores(rows):
            kept[:, start : start + scores.shape[1]] = scores
        return iter([(0, kept)]), iter([(0, kept)])

    def _load(self, values: VectorArray, into: Tensor | None = None) -> Tensor:
        # Always a copy: every block then has the same memory alignment, hence the same rounding, on
        # each pass, and a read-only memmap is as good as an array.
        if into is None:
            block = torch.tensor(values, device=self.device)
        else:
            block = into[: len(values)]
            np.copyto(block.numpy(), values)
        # The least and the largest tell of NaN and infinity, several times faster than a look at each.
        assert block.numel() == 0 or torch.isfinite(torch.stack(block.aminmax())).all()
        return block


@dataclass(frozen=True, eq=False)
class Products(Pairs):
    """Scores are dot products."""

    queries: VectorArray
    gallery: VectorArray

    def scores(self, rows: slice) -> Iterator[tuple[int, Tensor]]:
        """Multiply block by block."""
        queries = self._load(self.queries[rows])
        # One buffer for all blocks: fresh memory costs more than the product of a few queries.
        shape = min(self.gallery_rows, self.num_gallery), self.gallery.shape[1]
        buffer = torch.empty(shape) if self.device.type == "cpu" else None
        for start in range(0, self.num_gallery, self.gallery_rows):
            block = self._load(self.gallery[start : start + self.gallery_rows], buffer)
            yield start, queries @ block.T


@dataclass(frozen=True, eq=False)
class Given(Pairs):
    """Scores come from a `Similarity`, whole rows at a time."""

    similarity: Similarity

    def scores(self, rows: slice) -> Iterator[tuple[int, Tensor]]:
        """Ask for whole rows."""
        yield 0, self._load(self.similarity.scores(rows))


def cut(
    queries: VectorArray | Similarity,
    gallery: VectorArray | None,
    ignored: Sequence[IntArray] | None,
    device: str | torch.device,
    block_bytes: int,
) -> Pairs:
    """Plan the blocks: the same vectors and ``block_bytes`` always give the same.

    Args:
        queries: float32 [Q, D], or a `Similarity`.
        gallery: float32 [N, D]; None with a `Similarity`.
        ignored: Q arrays of gallery indices; None = none.
        device: Where scores are computed.
        block_bytes: Rough memory for one block.

    Raises:
        UserError: The vectors differ in dimension.
    """
    device = torch.device(device)
    if gallery is None:
        assert not isinstance(queries, np.ndarray)
        num_queries, num_gallery = queries.num_queries, queries.num_gallery
        fitting = block_bytes // (BYTES_PER_PAIR * max(1, num_gallery))
        query_rows = max(1, min(MAX_QUERY_ROWS, num_queries, fitting))
        pairs: Pairs = Given(
            ignored, device, num_queries, num_gallery, query_rows, num_gallery, True, queries
        )
    else:
        assert isinstance(queries, np.ndarray)
        assert queries.dtype == gallery.dtype == np.float32
        assert queries.ndim == gallery.ndim == 2
        dim = queries.shape[1]
        if dim != gallery.shape[1]:
            raise UserError(
                f"queries have {dim} dimensions, the gallery has {gallery.shape[1]}: "
                "embed both with the same representation and post-processing"
            )
        query_rows = max(1, min(MAX_QUERY_ROWS, len(queries), math.isqrt(block_bytes // BYTES_PER_PAIR)))
        fitting = KEPT_BLOCKS * block_bytes // (4 * max(1, len(gallery)))
        kept = fitting >= min(query_rows, MIN_QUERY_ROWS)
        if kept:
            query_rows = min(query_rows, fitting)
        fitting = block_bytes // (BYTES_PER_PAIR * query_rows + 4 * dim)
        if device.type == "cpu":
            fitting = min(fitting, CACHED_BYTES // (4 * max(1, dim)))
        gallery_rows = max(1, fitting)
        shape = len(queries), len(gallery)
        pairs = Products(ignored, device, *shape, query_rows, gallery_rows, kept, queries, gallery)
    assert pairs.num_gallery < LOW_BITS
    assert ignored is None or len(ignored) == pairs.num_queries
    return pairs


def lengths(lists: Sequence[IntArray]) -> IntArray:
    """Count the entries of each list: int64 [Q]."""
    return np.fromiter((len(indices) for indices in lists), np.int64, len(lists))
