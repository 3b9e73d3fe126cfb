"""Exact search in bounded memory: the best items, or where the relevant items landed.

A score and its gallery index are packed into one int64 key whose order is the ranking's order: higher
scores first, equal scores by lower gallery index. Sorting, selecting and counting keys therefore settles
ties without any second look. The gallery is streamed in blocks and no [Q, N] matrix ever exists.

All functions cut the same vectors into the same blocks for the same ``block_bytes``, so that their scores
agree to the last bit. Other block sizes may change the last bits of a float32 product, and with them the
order of items whose scores differ by no more than that.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssl_retrieval.errors import UserError
from ssl_retrieval.similarity import Similarity
from ssl_retrieval.types import IntArray, Ranking, VectorArray

BLOCK_BYTES = 256 * 2**20
MAX_QUERY_ROWS = 512
# Per pair: the float32 score, the int64 key, and the temporaries of making, sorting or merging them.
BYTES_PER_PAIR = 24

LOW_BITS = 2**32 - 1
NOTHING = torch.iinfo(torch.int64).min
"""The key of an item that does not count: below the key of every finite score."""


@dataclass(frozen=True, eq=False)
class RelevantRanks:
    """Where the relevant items landed in the full ranking, ignored items taken out.

    Attributes:
        ranks: int64 [Q, R_max], 1-based, ascending, then padded with 0; equal scores are ordered by
            gallery index.
        best_ranks: The same if every relevant item wins its ties against items that are not relevant.
        worst_ranks: The same if it loses them.
        num_relevant: int64 [Q].
        num_candidates: int64 [Q], the gallery without the ignored items.
    """

    ranks: IntArray
    best_ranks: IntArray
    worst_ranks: IntArray
    num_relevant: IntArray
    num_candidates: IntArray

    def __post_init__(self) -> None:
        """Check shapes and dtypes."""
        assert self.ranks.ndim == 2
        assert self.ranks.shape == self.best_ranks.shape == self.worst_ranks.shape
        assert self.num_relevant.shape == self.num_candidates.shape == self.ranks.shape[:1]
        for array in (self.ranks, self.best_ranks, self.worst_ranks, self.num_relevant, self.num_candidates):
            assert array.dtype == np.int64

    @property
    def num_tied_queries(self) -> int:
        """Count the queries where a relevant item scores exactly like one that is not."""
        return int((self.best_ranks != self.worst_ranks).any(axis=1).sum())


@dataclass(frozen=True, eq=False)
class GlobalCounts:
    """One ranking of all query-candidate pairs, counted at each distinct score of a relevant pair.

    Attributes:
        num_relevant: int64 [U], relevant pairs that score at least as high; scores descending.
        num_candidates: int64 [U], all pairs, relevant or not, that score at least as high.
    """

    num_relevant: IntArray
    num_candidates: IntArray


@contextmanager
def _full_precision() -> Iterator[None]:
    """Keep a training run's TF32 or bfloat16 setting away from scores that are to be exact."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@_full_precision()
def top_k(
    queries: VectorArray | Similarity,
    gallery: VectorArray | None,
    k: int,
    ignored: Sequence[IntArray] | None = None,
    device: str | torch.device = "cpu",
    block_bytes: int = BLOCK_BYTES,
) -> Ranking:
    """Find the ``k`` gallery items with the highest dot product, exactly.

    Args:
        queries: float32 [Q, D]; L2-normalised when the score is to be the cosine. Or a `Similarity`.
        gallery: float32 [N, D], likewise; may be an ``np.memmap``. None with a `Similarity`.
        k: How many items per query.
        ignored: Q arrays of gallery indices that must not appear; None = every item may.
        device: Where scores are computed.
        block_bytes: Rough memory for one block of scores.

    Returns:
        A ranking of width ``k``, padded where fewer items are left. Equal scores are ordered by lower
        gallery index.

    Raises:
        UserError: The vectors differ in dimension, or ``k`` is below 1.

    >>> gallery = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
    >>> top_k(gallery[:1], gallery, k=2, ignored=[np.array([0])]).indices
    array([[2, 1]])
    """
    if k < 1:
        raise UserError(f"k={k}: at least one item per query is needed")
    pairs = _cut(queries, gallery, ignored, device, block_bytes)
    indices = np.empty((pairs.num_queries, k), np.int64)
    scores = np.empty((pairs.num_queries, k), np.float32)
    for rows in pairs.query_blocks():
        best = torch.full((rows.stop - rows.start, k), NOTHING, device=pairs.device)
        for _, keys in pairs.keys(rows):
            of_block = keys.topk(min(k, keys.shape[1]), dim=1).values
            best = torch.cat([best, of_block], dim=1).topk(k, dim=1).values
        empty = best == NOTHING
        indices[rows] = (LOW_BITS - (best & LOW_BITS)).masked_fill(empty, -1).cpu().numpy()
        scores[rows] = _scores_of(best).masked_fill(empty, -torch.inf).cpu().numpy()
    return Ranking(indices, scores)


@_full_precision()
def relevant_ranks(
    queries: VectorArray | Similarity,
    gallery: VectorArray | None,
    relevant: Sequence[IntArray],
    ignored: Sequence[IntArray] | None = None,
    device: str | torch.device = "cpu",
    block_bytes: int = BLOCK_BYTES,
) -> RelevantRanks:
    """Rank the relevant items among all candidates, exactly, for a gallery of any size.

    A relevant item's rank is one plus the number of candidates before it, so counting suffices: the
    memory is that of one block plus that of the relevant items.

    Args:
        queries: float32 [Q, D], or a `Similarity`.
        gallery: float32 [N, D]; may be an ``np.memmap``. None with a `Similarity`.
        relevant: Q arrays of gallery indices, unique and disjoint from the ignored ones.
        ignored: Q arrays of gallery indices that are taken out before ranking; None = none.
        device: Where scores are computed.
        block_bytes: Rough memory for one block of scores.

    Returns:
        The ranks, with the band that ties leave open.

    Raises:
        UserError: The vectors differ in dimension.

    >>> gallery = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
    >>> found = relevant_ranks(gallery[:1], gallery, relevant=[np.array([1, 2])])
    >>> found.ranks, found.best_ranks
    (array([[2, 3]]), array([[1, 3]]))
    """
    pairs = _cut(queries, gallery, ignored, device, block_bytes)
    assert len(relevant) == pairs.num_queries
    num_relevant = _lengths(relevant)
    found = np.zeros((3, pairs.num_queries, num_relevant.max(initial=0)), np.int64)
    for rows in pairs.query_blocks():
        lists = _IndexLists.of(relevant[rows], pairs.device)
        first_pass, second_pass = pairs.two_passes(rows)
        relevant_keys = _gather(first_pass, lists).sort(dim=1, descending=True).values

        # No item but a relevant one can have these keys, or lie between them and the true key without
        # being tied, so the same count answers for won, indexed and lost ties.
        won, lost = relevant_keys | LOW_BITS, relevant_keys & ~LOW_BITS
        thresholds = torch.cat([relevant_keys, won, lost], dim=1)
        before = torch.zeros_like(thresholds)
        for start, keys in second_pass:
            in_block = lists.within(start, start + keys.shape[1])
            keys[in_block.rows, in_block.columns] = NOTHING
            before += keys.shape[1] - torch.searchsorted(_sort_rows(keys), thresholds, right=True)

        width = relevant_keys.shape[1]
        ranks = before.reshape(len(before), 3, width) + torch.arange(1, width + 1, device=pairs.device)
        ranks.masked_fill_((relevant_keys == NOTHING)[:, None], 0)
        found[:, rows, :width] = ranks.transpose(0, 1).cpu().numpy()
    num_ignored = np.zeros_like(num_relevant) if ignored is None else _lengths(ignored)
    return RelevantRanks(found[0], found[1], found[2], num_relevant, pairs.num_gallery - num_ignored)


@_full_precision()
def global_positive_counts(
    queries: VectorArray | Similarity,
    gallery: VectorArray | None,
    relevant: Sequence[IntArray],
    ignored: Sequence[IntArray] | None = None,
    device: str | torch.device = "cpu",
    block_bytes: int = BLOCK_BYTES,
) -> GlobalCounts:
    """Count over all query-candidate pairs in one global ranking: what micro AP (uAP) needs.

    Pairs with the same score stand or fall together, as in scikit-learn's ``average_precision_score``.
    Memory: one block plus O(relevant pairs).

    Args:
        queries: float32 [Q, D], or a `Similarity`.
        gallery: float32 [N, D]; may be an ``np.memmap``. None with a `Similarity`.
        relevant: Q arrays of gallery indices, unique and disjoint from the ignored ones.
        ignored: Q arrays of gallery indices whose pairs do not count; None = none.
        device: Where scores are computed.
        block_bytes: Rough memory for one block of scores.

    Returns:
        The counts at each distinct score of a relevant pair, scores descending.

    Raises:
        UserError: The vectors differ in dimension.
    """
    pairs = _cut(queries, gallery, ignored, device, block_bytes)
    assert len(relevant) == pairs.num_queries
    positives = [torch.empty(0, dtype=torch.int32, device=pairs.device)]
    for rows in pairs.query_blocks():
        keys = _gather(pairs.keys(rows), _IndexLists.of(relevant[rows], pairs.device))
        positives.append(_score_bits(keys[keys != NOTHING]))
    thresholds, multiplicity = torch.cat(positives).unique(return_counts=True)

    # Slot p counts the pairs that reach exactly the p lowest thresholds.
    reached = torch.zeros(len(thresholds) + 1, dtype=torch.int64, device=pairs.device)
    for rows in pairs.query_blocks():
        for _, keys in pairs.keys(rows):
            # Sorted, neighbours visit the same thresholds: several times faster when these are many.
            scores = _sort_rows(_score_bits(keys).reshape(1, -1))[0]
            slots = torch.searchsorted(thresholds, scores, right=True)
            reached += torch.bincount(slots, minlength=len(reached))
    num_relevant = multiplicity.flip(0).cumsum(0)
    num_candidates = reached[1:].flip(0).cumsum(0)
    return GlobalCounts(num_relevant.cpu().numpy(), num_candidates.cpu().numpy())


@dataclass(frozen=True, eq=False)
class _InBlock:
    """The entries of some index lists that fall into one gallery block."""

    rows: Tensor
    slots: Tensor
    columns: Tensor


@dataclass(frozen=True, eq=False)
class _IndexLists:
    """One list of gallery indices per query of a block, ordered by index so that a range is a slice."""

    rows: Tensor
    slots: Tensor
    indices: Tensor
    sorted_indices: IntArray
    shape: tuple[int, int]

    @classmethod
    def of(cls, lists: Sequence[IntArray], device: torch.device) -> "_IndexLists":
        lengths = _lengths(lists)
        rows = np.repeat(np.arange(len(lists)), lengths)
        slots = np.arange(len(rows)) - np.repeat(lengths.cumsum() - lengths, lengths)
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
            shape=(len(lists), int(lengths.max(initial=0))),
        )

    def within(self, start: int, stop: int) -> _InBlock:
        low, high = np.searchsorted(self.sorted_indices, [start, stop])
        return _InBlock(self.rows[low:high], self.slots[low:high], self.indices[low:high] - start)


@dataclass(frozen=True, eq=False)
class _Pairs(ABC):
    """All query-gallery pairs, cut into blocks whose scores fit in memory."""

    ignored: Sequence[IntArray] | None
    device: torch.device
    num_queries: int
    num_gallery: int
    query_rows: int
    gallery_rows: int

    def query_blocks(self) -> Iterator[slice]:
        for start in range(0, self.num_queries, self.query_rows):
            yield slice(start, min(start + self.query_rows, self.num_queries))

    def keys(self, rows: slice) -> Iterator[tuple[int, Tensor]]:
        """Yield the first gallery index and the int64 [q, g] keys of each block, ignored items blanked."""
        ignored = None if self.ignored is None else _IndexLists.of(self.ignored[rows], self.device)
        for start, scores in self.scores(rows):
            keys = _keys_of(scores, start)
            if ignored is not None:
                in_block = ignored.within(start, start + scores.shape[1])
                keys[in_block.rows, in_block.columns] = NOTHING
            yield start, keys

    @abstractmethod
    def scores(self, rows: slice) -> Iterator[tuple[int, Tensor]]:
        """Yield the first gallery index and the float32 [q, g] scores of each block."""

    def two_passes(self, rows: slice) -> tuple[Iterator[tuple[int, Tensor]], Iterator[tuple[int, Tensor]]]:
        """Give the blocks twice; the second pass may overwrite them once the first is through."""
        if self.num_gallery <= self.gallery_rows:
            only = list(self.keys(rows))
            return iter(only), iter(only)
        return self.keys(rows), self.keys(rows)

    def _load(self, values: VectorArray) -> Tensor:
        # Always a copy: every block then has the same memory alignment, hence the same rounding, on
        # each pass, and a read-only memmap is as good as an array.
        block = torch.tensor(values, device=self.device)
        assert torch.isfinite(block).all()
        return block


@dataclass(frozen=True, eq=False)
class _Products(_Pairs):
    """Scores are dot products."""

    queries: VectorArray
    gallery: VectorArray

    def scores(self, rows: slice) -> Iterator[tuple[int, Tensor]]:
        queries = self._load(self.queries[rows])
        for start in range(0, self.num_gallery, self.gallery_rows):
            yield start, queries @ self._load(self.gallery[start : start + self.gallery_rows]).T


@dataclass(frozen=True, eq=False)
class _Given(_Pairs):
    """Scores come from a `Similarity`, whole rows at a time."""

    similarity: Similarity

    def scores(self, rows: slice) -> Iterator[tuple[int, Tensor]]:
        yield 0, self._load(self.similarity.scores(rows))


def _cut(
    queries: VectorArray | Similarity,
    gallery: VectorArray | None,
    ignored: Sequence[IntArray] | None,
    device: str | torch.device,
    block_bytes: int,
) -> _Pairs:
    device = torch.device(device)
    if gallery is None:
        assert not isinstance(queries, np.ndarray)
        num_queries, num_gallery = queries.num_queries, queries.num_gallery
        fitting = block_bytes // (BYTES_PER_PAIR * max(1, num_gallery))
        query_rows = max(1, min(MAX_QUERY_ROWS, num_queries, fitting))
        pairs: _Pairs = _Given(ignored, device, num_queries, num_gallery, query_rows, num_gallery, queries)
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
        gallery_rows = max(1, block_bytes // (BYTES_PER_PAIR * query_rows + 4 * dim))
        shape = len(queries), len(gallery)
        pairs = _Products(ignored, device, *shape, query_rows, gallery_rows, queries, gallery)
    assert pairs.num_gallery < LOW_BITS
    assert ignored is None or len(ignored) == pairs.num_queries
    return pairs


def _lengths(lists: Sequence[IntArray]) -> IntArray:
    return np.fromiter((len(indices) for indices in lists), np.int64, len(lists))


def _keys_of(scores: Tensor, start: int) -> Tensor:
    """Pack float32 scores [q, g] and gallery indices from ``start`` on into sortable int64 keys."""
    # Adding zero turns -0.0 into 0.0, which must tie. Below zero, IEEE 754 stores sign and magnitude:
    # flipping the magnitude bits makes the integer order the order of the floats.
    bits = (scores + 0.0).view(torch.int32)
    bits ^= (bits >> 31) & 0x7FFFFFFF
    keys = bits.to(torch.int64)
    keys <<= 32
    keys |= LOW_BITS - torch.arange(start, start + scores.shape[1], device=scores.device)
    return keys


def _score_bits(keys: Tensor) -> Tensor:
    """Take the int32 part of int64 keys that orders like the scores."""
    return (keys >> 32).to(torch.int32)


def _scores_of(keys: Tensor) -> Tensor:
    """Take the float32 scores back out of int64 keys."""
    bits = _score_bits(keys)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)


def _sort_rows(keys: Tensor) -> Tensor:
    """Sort each row ascending, in place where that is faster."""
    if keys.device.type != "cpu":
        return keys.sort(dim=1).values
    # NumPy sorts integers with SIMD, several times faster than torch.sort, which also makes indices.
    keys.numpy().sort(axis=1)
    return keys


def _gather(blocks: Iterator[tuple[int, Tensor]], lists: _IndexLists) -> Tensor:
    """Collect the int64 [q, R] keys of listed items, padded with NOTHING."""
    gathered = torch.full(lists.shape, NOTHING, device=lists.rows.device)
    for start, keys in blocks:
        in_block = lists.within(start, start + keys.shape[1])
        gathered[in_block.rows, in_block.slots] = keys[in_block.rows, in_block.columns]
    num_found = int((gathered != NOTHING).sum())
    assert num_found == len(lists.rows), "a relevant item is ignored, or lies outside the gallery"
    return gathered
