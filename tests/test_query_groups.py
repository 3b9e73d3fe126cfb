"""Queries that search for the same things are one group, however the task was made."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ssl_retrieval.data.tasks import labelled, task_from_groups
from ssl_retrieval.query_groups import query_groups
from ssl_retrieval.types import ImageSet, Task

ROOT = Path("/photos")


def task_of(relevant: list[list[int]], num_gallery: int, own: bool = False) -> Task:
    """Unlabelled queries; with ``own`` they are the first images of the gallery."""
    names = [f"{'g' if own else 'q'}{i}" for i in range(len(relevant))]
    gallery = ImageSet(ROOT, tuple(f"g{i}" for i in range(num_gallery)))
    lists = tuple(np.array(sorted(one), np.int64) for one in relevant)
    nothing = (np.empty(0, np.int64),) * len(relevant)
    return Task("t", "instance", ImageSet(ROOT, tuple(names)), gallery, lists, nothing)


def test_labels_are_the_groups() -> None:
    images = labelled(ROOT, ["a", "b", "c", "d"], ["cat", "dog", "cat", "emu"])
    task = task_from_groups(name="t", level="category", queries=images, gallery=images)
    assert query_groups(task).tolist() == [0, 1, 0, 2]


def test_without_labels_those_that_share_something_to_find_are_together() -> None:
    """0 and 2 share image 1; 2 and 3 share image 5, so 0 and 3 belong together; 4 finds nothing."""
    groups = query_groups(task_of([[0, 1], [2, 3], [1, 5], [5], []], 6))
    assert groups.dtype == np.int64
    assert groups[0] == groups[2] == groups[3]
    assert len(np.unique(groups)) == 3


def test_two_photos_that_search_for_each_other_are_one_group() -> None:
    """Leave-one-out: lists without the own photo do not overlap, but the photos are each other's answer."""
    groups = query_groups(task_of([[1], [0], [3], [2]], 5, own=True))
    assert groups[0] == groups[1] != groups[2] == groups[3]


@given(
    relevant=st.lists(st.lists(st.integers(0, 19), max_size=4, unique=True), min_size=1, max_size=15),
    own=st.booleans(),
)
def test_groups_are_the_connected_components(relevant: list[list[int]], own: bool) -> None:
    edges = [(q, len(relevant) + g) for q, one in enumerate(relevant) for g in one]
    edges += [(q, len(relevant) + q) for q in range(len(relevant))] if own else []
    # A query is not to be found by itself, which Task would accept; the components are the same.
    rows, columns = np.array(edges, np.int64).reshape(-1, 2).T
    size = len(relevant) + 20
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(size, size))
    expected = connected_components(graph, directed=False)[1][: len(relevant)]

    found = query_groups(task_of(relevant, 20, own))

    same = found[:, None] == found[None, :]
    np.testing.assert_array_equal(same, expected[:, None] == expected[None, :])


@pytest.mark.parametrize("kept", [{"g0", "g1"}, {"g0", "g1", "g2", "g3"}])
def test_groups_fit_what_is_left_of_a_task(kept: set[str]) -> None:
    task = task_of([[1], [0], [3], [2]], 4, own=True).restrict(kept, {"g0", "g1", "g2", "g3"})
    assert len(query_groups(task)) == len(task.queries)
