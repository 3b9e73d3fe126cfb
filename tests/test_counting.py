"""Counting what comes before each relevant item, by bins and by sorting, against a loop."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_retrieval import counting
from ssl_retrieval.counting import count_before
from ssl_retrieval.score_keys import NOTHING, keys_of

LARGEST = float(np.finfo(np.float32).max)
SMALLEST = float(np.finfo(np.float32).smallest_subnormal)
numbers = st.one_of(
    st.sampled_from([0.0, -0.0, 0.5, 0.25, -0.25, 1.0, LARGEST, -LARGEST, SMALLEST]),
    st.floats(-1, 1, width=32),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[float], list[int]]:
    """Draw one query's scores, and which of them belong to relevant items."""
    scores = draw(st.lists(numbers, min_size=1, max_size=40))
    chosen = draw(st.sets(st.integers(0, len(scores) - 1), max_size=8))
    return scores, sorted(chosen)


def by_loop(scores: list[float], relevant: list[int]) -> np.ndarray:
    """Count pair by pair: int64 [3, R], relevant items in the order of the ranking."""
    order = sorted(relevant, key=lambda i: (-scores[i], i))
    others = [j for j in range(len(scores)) if j not in relevant]
    return np.array(
        [
            [sum((-scores[j], j) < (-scores[i], i) for j in others) for i in order],
            [sum(scores[j] > scores[i] for j in others) for i in order],
            [sum(scores[j] >= scores[i] for j in others) for i in order],
        ]
    ).reshape(3, -1)


@pytest.mark.parametrize("how", ["binned", "sorted"])
@given(queries=st.lists(rows(), min_size=1, max_size=4), start=st.integers(0, 10**9), cut=st.integers(0, 40))
def test_counts_are_those_of_a_loop(
    how: str, queries: list[tuple[list[float], list[int]]], start: int, cut: int
) -> None:
    width = max(len(scores) for scores, _ in queries)
    num_relevant = max(len(relevant) for _, relevant in queries)
    table = torch.full((len(queries), width), -torch.inf)
    keys = torch.full((len(queries), num_relevant), NOTHING)
    for row, (scores, relevant) in enumerate(queries):
        table[row, : len(scores)] = torch.tensor(scores)
        chosen = torch.tensor(relevant, dtype=torch.int64)
        keys[row, : len(relevant)] = keys_of(table[row, chosen], chosen + start).sort(descending=True).values
        table[row, chosen] = -torch.inf
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "MIN_BINNED_WIDTH", 1 if how == "binned" else 10**9)
        patch.setattr(counting, "NUM_BINS", 7)
        patch.setattr(counting, "MAX_SORTED_WIDTH", 5)
        # Two blocks: the second one need not hold a relevant item, and may be empty.
        found = count_before(table[:, :cut].clone(), start, keys)
        found = found + count_before(table[:, cut:].clone(), start + min(cut, width), keys)
    for row, (scores, relevant) in enumerate(queries):
        np.testing.assert_array_equal(found[row, :, : len(relevant)], by_loop(scores, relevant))


def test_wide_random_rows_are_counted_as_by_a_full_sort() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 50_000, generator=generator)
    relevant = torch.randint(50_000, (3, 40), generator=generator)
    values = scores.gather(1, relevant).sort(dim=1, descending=True).values
    keys = keys_of(values, torch.zeros(1, dtype=torch.int64))
    found = count_before(scores.clone(), 1, keys)
    for row in range(3):
        ascending = np.sort(scores[row].numpy())
        above = len(ascending) - np.searchsorted(ascending, values[row].numpy(), side="right")
        np.testing.assert_array_equal(found[row, 1], above)
