"""One query's ranking, item by item: what every metric library is given in its own form."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np

from ssl_retrieval.errors import UserError
from ssl_retrieval.search import RelevantRanks
from ssl_retrieval.types import BoolArray, FloatArray, IntArray

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, eq=False)
class OneRanking:
    """The top of one query's ranking, and how many relevant items the gallery has.

    Attributes:
        hits: bool [N], best first: whether each item is relevant. Equal scores are in the order given.
        scores: float64 [N], descending; N, N - 1, …, 1 where none were given.
        num_relevant: Relevant items in the gallery, listed or not.
    """

    hits: BoolArray
    scores: FloatArray
    num_relevant: int

    @classmethod
    def make(
        cls, hits: Sequence[int], scores: Sequence[float] | None = None, num_relevant: int | None = None
    ) -> "OneRanking":
        """Sort a list of items by score and check it.

        Args:
            hits: 1 for each relevant item and 0 for each other one, best first; in any order with scores.
            scores: One per item, higher is nearer; None = the items are listed best first and none tie.
            num_relevant: Relevant items in the gallery; None = those listed are all.

        Raises:
            UserError: The list is empty, or its parts contradict each other.

        >>> OneRanking.make([0, 1, 1], [0.2, 0.9, 0.2]).hits.astype(int)
        array([1, 0, 1])
        """
        if not hits or set(hits) - {0, 1}:
            raise UserError(f"hits={list(hits)}: give one 1 or 0 per item, e.g. 1,0,1,0")
        listed = np.array(hits, np.bool_)
        total = int(listed.sum()) if num_relevant is None else num_relevant
        if total < listed.sum():
            raise UserError(f"relevant={total}, but {listed.sum()} relevant items are among the hits")
        if scores is None:
            return cls(listed, np.arange(len(listed), 0.0, -1.0), total)
        if len(scores) != len(listed) or not np.isfinite(scores).all():
            raise UserError(
                f"{len(scores)} scores for {len(listed)} items: give one finite number for each of them"
            )
        values = np.array(scores, np.float64)
        order = np.argsort(-values, kind="stable")
        return cls(listed[order], values[order], total)

    @classmethod
    def of_ranks(cls, ranks: IntArray) -> "OneRanking":
        """Write out a ranking down to its last relevant item, of which all are ranked.

        Args:
            ranks: int64 [R], 1-based.

        Raises:
            UserError: There is none.

        >>> OneRanking.of_ranks(np.array([1, 3])).hits.astype(int)
        array([1, 0, 1])
        """
        if len(ranks) == 0:
            raise UserError("the query has nothing to find, so it has no value: choose another")
        hits = np.zeros(int(ranks.max()), np.int64)
        hits[ranks - 1] = 1
        return cls.make(hits.tolist())

    @property
    def num_listed(self) -> int:
        """Count the relevant items in the list."""
        return int(self.hits.sum())

    @property
    def is_tied(self) -> bool:
        """Whether a relevant item scores exactly like one that is not."""
        return bool((self.arranged(first=True) != self.arranged(first=False)).any())

    @property
    def shares_scores(self) -> bool:
        """Whether a relevant item scores exactly like any other, relevant or not."""
        _, group, sizes = np.unique(self.scores, return_inverse=True, return_counts=True)
        return bool((sizes[group][self.hits] > 1).any())

    def arranged(self, first: bool) -> BoolArray:
        """Give the hits if every relevant item comes first, or last, among equal scores."""
        return self.hits[np.lexsort((~self.hits if first else self.hits, -self.scores))]

    def orders(self, k: int) -> Iterator[BoolArray]:
        """Give orders of equal scores among which any metric of the top k has its extremes.

        With so and so many relevant items of one score in the top k, they stand there first or last.
        """
        best, worst = self.arranged(first=True), self.arranged(first=False)
        yield best
        yield worst
        if k >= len(self.hits):
            return
        group = np.flatnonzero(self.scores == self.scores[k - 1])
        start, stop = int(group[0]), int(group[-1]) + 1
        relevant, inside = int(self.hits[start:stop].sum()), k - start
        for within in range(max(0, relevant - (stop - k)), min(relevant, inside) + 1):
            behind = np.arange(stop - k) < relevant - within
            front = np.arange(inside)
            for base, part in ((best, front < within), (worst, front >= inside - within)):
                yield np.concatenate([base[:start], part, behind, base[stop:]])

    @cached_property
    def ranks(self) -> RelevantRanks:
        """Where the relevant items landed, as `metrics.compute` takes it."""
        return RelevantRanks(
            ranks=_ranks(self.hits),
            best_ranks=_ranks(self.arranged(first=True)),
            worst_ranks=_ranks(self.arranged(first=False)),
            num_relevant=np.array([self.num_relevant], np.int64),
            num_candidates=np.array([len(self.hits)], np.int64),
        )


def numbers(name: str, text: str, kind: type[Number]) -> list[Number]:
    """Read numbers that commas separate.

    Raises:
        UserError: There is something else among them.

    >>> numbers("hits", "1,0, 1", int)
    [1, 0, 1]
    """
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"{name}={text!r}: give numbers with commas between them, e.g. 1,0,1,0") from error


def _ranks(hits: BoolArray) -> IntArray:
    return np.flatnonzero(hits)[None] + 1
