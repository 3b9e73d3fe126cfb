"""Half of the queries chooses, the other half scores: whole groups, every query once."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ssl_retrieval.errors import UserError
from ssl_retrieval.query_groups import query_groups
from ssl_retrieval.query_halves import query_halves
from ssl_retrieval.types import ImageSet, Task


def task_of(labels: list[int], wanted: list[int]) -> Task:
    """Queries of these classes, of which some have something to find: the gallery image of their class."""
    names = tuple(str(number) for number in range(max(labels) + 1))
    queries = ImageSet(
        Path("q"), tuple(f"{row}.png" for row in range(len(labels))), np.array(labels, np.int64), names
    )
    gallery = ImageSet(
        Path("g"), tuple(f"{name}.png" for name in names), np.arange(len(names), dtype=np.int64), names
    )
    nothing = np.empty(0, np.int64)
    relevant = tuple(np.array([label], np.int64) if label in wanted else nothing for label in labels)
    return Task("made-up", "category", queries, gallery, relevant, (nothing,) * len(labels))


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=40), st.integers(0, 1000))
def test_every_query_is_in_one_half_with_all_of_its_class(labels: list[int], seed: int) -> None:
    if len(set(labels)) < 2:
        return
    task = task_of(labels, sorted(set(labels)))
    first, second = query_halves(task, seed)
    assert sorted([*first.queries.paths, *second.queries.paths]) == sorted(task.queries.paths)
    assert not set(query_groups(first).tolist()) & set(query_groups(second).tolist())
    assert first.gallery is second.gallery is task.gallery
    largest = max(labels.count(label) for label in labels)
    assert abs(len(first.queries) - len(second.queries)) <= largest
    for half in (first, second):
        assert half.queries.labels is not None
        assert [found.tolist() for found in half.relevant] == [[label] for label in half.queries.labels]


def test_queries_with_nothing_to_find_do_not_count() -> None:
    labels = [0, 1, *[2] * 20]
    for seed in range(5):
        for half in query_halves(task_of(labels, [0, 1]), seed):
            assert half.num_queries_with_positives == 1


def test_the_seed_decides() -> None:
    task = task_of([label for label in range(12) for _ in range(3)], list(range(12)))
    paths = [query_halves(task, seed)[0].queries.paths for seed in (0, 0, 1)]
    assert paths[0] == paths[1] != paths[2]


def test_one_class_cannot_be_split() -> None:
    with pytest.raises(UserError, match="all queries are of one class or object"):
        query_halves(task_of([3, 3, 3], [3]), 0)
