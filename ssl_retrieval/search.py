"""Exact search in bounded memory: the best items, or where the relevant items landed.

The gallery is streamed in blocks and no [Q, N] matrix ever exists. Equal scores are ordered by gallery index.

All functions cut the same vectors into the same blocks for the same ``block_bytes``, so that their scores
agree to the last bit. Other block sizes may change the last bits of a float32 product, and with them the
order of items whose scores differ by no more than that.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssl_retrieval.counting import count_before
from ssl_retrieval.errors import UserError
from ssl_retrieval.score_blocks import BLOCK_BYTES, IndexLists, Pairs, cut, lengths
from ssl_retrieval.score_keys import NOTHING, indices_of, keys_of, score_bits, scores_of, sort_rows
from ssl_retrieval.selecting import highest_keys
from ssl_retrieval.similarity import Similarity
from ssl_retrieval.types import IntArray, Ranking, VectorArray


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
    pairs = cut(queries, gallery, ignored, device, block_bytes)
    indices = np.empty((pairs.num_queries, k), np.int64)
    scores = np.empty((pairs.num_queries, k), np.float32)
    for rows in pairs.query_blocks():
        best = torch.full((rows.stop - rows.start, k), NOTHING, device=pairs.device)
        ignored_here = pairs.ignored_of(rows)
        for start, block in pairs.scores(rows):
            if ignored_here is not None:
                in_block = ignored_here.within(start, start + block.shape[1])
                block[in_block.rows, in_block.columns] = -torch.inf
            best = torch.cat([best, highest_keys(block, start, k)], dim=1).topk(k, dim=1).values
        empty = best == NOTHING
        indices[rows] = indices_of(best).masked_fill(empty, -1).cpu().numpy()
        scores[rows] = scores_of(best).masked_fill(empty, -torch.inf).cpu().numpy()
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
    memory is that of a few blocks plus that of the relevant items.

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
    pairs = cut(queries, gallery, ignored, device, block_bytes)
    assert len(relevant) == pairs.num_queries
    num_relevant = lengths(relevant)
    found = np.zeros((3, pairs.num_queries, num_relevant.max(initial=0)), np.int64)
    for rows in pairs.query_blocks():
        of_block = _ranks_in_block(pairs, rows, IndexLists.of(relevant[rows], pairs.device))
        found[:, rows, : of_block.shape[2]] = of_block.transpose(0, 1).cpu().numpy()
    num_ignored = np.zeros_like(num_relevant) if ignored is None else lengths(ignored)
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
    pairs = cut(queries, gallery, ignored, device, block_bytes)
    assert len(relevant) == pairs.num_queries
    positives = [torch.empty(0, dtype=torch.int32, device=pairs.device)]
    for rows in pairs.query_blocks():
        lists = IndexLists.of(relevant[rows], pairs.device)
        assert not lists.overlaps(pairs.ignored_of(rows)), "a relevant item is ignored"
        keys = _gather(pairs.scores(rows), lists)
        positives.append(score_bits(keys[keys != NOTHING]))
    thresholds, multiplicity = torch.cat(positives).unique(return_counts=True)

    # Slot p counts the pairs that reach exactly the p lowest thresholds.
    reached = torch.zeros(len(thresholds) + 1, dtype=torch.int64, device=pairs.device)
    for rows in pairs.query_blocks():
        for _, keys in pairs.keys(rows):
            # Sorted, neighbours visit the same thresholds: several times faster when these are many.
            scores = sort_rows(score_bits(keys).reshape(1, -1))[0]
            slots = torch.searchsorted(thresholds, scores, right=True)
            reached += torch.bincount(slots, minlength=len(reached))
    num_relevant = multiplicity.flip(0).cumsum(0)
    num_candidates = reached[1:].flip(0).cumsum(0)
    return GlobalCounts(num_relevant.cpu().numpy(), num_candidates.cpu().numpy())


def _gather(blocks: Iterator[tuple[int, Tensor]], lists: IndexLists) -> Tensor:
    """Collect the int64 [q, R] keys of listed items, padded with NOTHING."""
    gathered = torch.full(lists.shape, NOTHING, device=lists.rows.device)
    for start, scores in blocks:
        in_block = lists.within(start, start + scores.shape[1])
        found = scores[in_block.rows, in_block.columns]
        gathered[in_block.rows, in_block.slots] = keys_of(found, in_block.columns + start)
    num_found = int((gathered != NOTHING).sum())
    assert num_found == len(lists.rows), "a relevant item lies outside the gallery"
    return gathered


def _ranks_in_block(pairs: Pairs, rows: slice, relevant: IndexLists) -> Tensor:
    """Give the three ranks of some queries' relevant items: int64 [q, 3, R], padded with 0."""
    ignored = pairs.ignored_of(rows)
    assert not relevant.overlaps(ignored), "a relevant item is ignored"
    first_pass, second_pass = pairs.two_passes(rows)
    keys = _gather(first_pass, relevant).sort(dim=1, descending=True).values
    ranks = torch.arange(1, keys.shape[1] + 1, device=pairs.device).repeat(len(keys), 3, 1)
    for start, scores in second_pass:
        for no_candidates in (relevant, ignored):
            if no_candidates is not None:
                in_block = no_candidates.within(start, start + scores.shape[1])
                scores[in_block.rows, in_block.columns] = -torch.inf
        ranks += count_before(scores, start, keys)
    return ranks.masked_fill_((keys == NOTHING)[:, None], 0)
