"""A ranking written out item by item, and all orders that its ties allow."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl_retrieval.errors import UserError
from ssl_retrieval.metrics_one_ranking import OneRanking, numbers
from ssl_retrieval.search import relevant_ranks

items = st.lists(st.tuples(st.sampled_from([0, 1]), st.integers(0, 3)), min_size=1, max_size=6)


def all_orders(one: OneRanking) -> list[list[bool]]:
    """List the hits of every permutation that keeps the scores descending."""
    orders = permutations(range(len(one.hits)))
    kept = [order for order in orders if (np.diff(one.scores[list(order)]) <= 0).all()]
    return [one.hits[list(order)].tolist() for order in kept]


@given(items=items, k=st.integers(1, 7))
def test_the_orders_are_possible_and_hold_the_extremes_of_the_top_k(
    items: list[tuple[int, int]], k: int
) -> None:
    one = OneRanking.make([hit for hit, _ in items], [float(score) for _, score in items])
    possible = all_orders(one)
    orders = [order.tolist() for order in one.orders(k)]
    assert all(order in possible for order in orders)

    def mean_precision_of_the_found(order: list[bool]) -> float:
        """Not monotone: one more hit at the end of the top k may lower it."""
        ranks = np.flatnonzero(order[:k]) + 1
        return float((np.arange(1, len(ranks) + 1) / ranks).mean()) if len(ranks) else 0.0

    for extreme in (min, max):
        expected = extreme(mean_precision_of_the_found(order) for order in possible)
        assert extreme(mean_precision_of_the_found(order) for order in orders) == pytest.approx(expected)


@given(items=items)
def test_ranks_are_those_of_the_search(items: list[tuple[int, int]]) -> None:
    hits = np.array([hit for hit, _ in items])
    scores = np.array([score for _, score in items], np.float32)
    one = OneRanking.make(hits.tolist(), scores.tolist())
    expected = relevant_ranks(np.ones((1, 1), np.float32), scores[:, None], [np.flatnonzero(hits)])
    assert (one.ranks.ranks == expected.ranks).all()
    assert (one.ranks.best_ranks == expected.best_ranks).all()
    assert (one.ranks.worst_ranks == expected.worst_ranks).all()
    assert one.is_tied == bool(expected.num_tied_queries)


@pytest.mark.parametrize(
    ("hits", "scores", "num_relevant", "words"),
    [
        ([], None, None, r"hits=\[\]: give one 1 or 0 per item"),
        ([1, 2], None, None, r"hits=\[1, 2\]: give one 1 or 0 per item"),
        ([1, 1], None, 1, "relevant=1, but 2 relevant items are among the hits"),
        ([0, 0], None, -1, "relevant=-1, but 0 relevant items are among the hits"),
        ([1, 0], [0.5], None, "1 scores for 2 items"),
        ([1, 0], [0.5, float("nan")], None, "give one finite number for each"),
    ],
)
def test_contradictions_are_refused(
    hits: list[int], scores: list[float] | None, num_relevant: int | None, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        OneRanking.make(hits, scores, num_relevant)


@pytest.mark.parametrize("text", ["", "1,,0", "1;0", "1.5,0"])
def test_what_is_no_list_of_numbers_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"hits='.*': give numbers with commas between them"):
        numbers("hits", text, int)
