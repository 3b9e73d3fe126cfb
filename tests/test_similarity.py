"""Similarities, and the searches that take one in place of vectors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_retrieval.search import global_positive_counts, relevant_ranks, top_k
from ssl_retrieval.similarity import Cosine, Listed, Rows
from ssl_retrieval.types import IntArray, VectorArray


class Problem:
    """A search whose small whole numbers make every product exact and ties common."""

    def __init__(self, seed: int, num_queries: int, num_items: int, dim: int) -> None:
        rng = np.random.default_rng(seed)
        self.queries = rng.integers(-2, 3, (num_queries, dim)).astype(np.float32)
        self.gallery = rng.integers(-2, 3, (num_items, dim)).astype(np.float32)
        self.relevant: list[IntArray] = []
        self.ignored: list[IntArray] = []
        for _ in range(num_queries):
            shuffled = rng.permutation(num_items).astype(np.int64)
            first, second = np.sort(rng.integers(0, num_items + 1, 2))
            self.relevant.append(shuffled[:first])
            self.ignored.append(shuffled[first:second])


problems = st.builds(
    Problem,
    seed=st.integers(0, 2**32 - 1),
    num_queries=st.integers(1, 6),
    num_items=st.integers(1, 30),
    dim=st.integers(1, 3),
)
block_sizes = st.integers(0, 4000)


class Counted:
    """A cosine that notes which rows were asked for."""

    def __init__(self, inner: Cosine) -> None:
        self.inner, self.asked = inner, list[slice]()
        self.num_queries, self.num_gallery = inner.num_queries, inner.num_gallery

    def scores(self, rows: slice) -> VectorArray:
        self.asked.append(rows)
        return self.inner.scores(rows)


def test_a_cosine_is_the_product() -> None:
    rng = np.random.default_rng(0)
    queries, gallery = (rng.normal(size=(num, 4)).astype(np.float32) for num in (3, 5))
    cosine = Cosine(queries, gallery)
    assert (cosine.num_queries, cosine.num_gallery) == (3, 5)
    found = cosine.scores(slice(1, 3))
    assert found.dtype == np.float32
    for row in range(2):
        for item in range(5):
            expected = sum(queries[row + 1, d] * gallery[item, d] for d in range(4))
            assert found[row, item] == pytest.approx(expected, abs=1e-5)


def test_rows_are_those_of_the_whole_in_their_own_order() -> None:
    problem = Problem(seed=3, num_queries=6, num_items=7, dim=2)
    whole = Cosine(problem.queries, problem.gallery)
    some = Rows(whole, np.array([4, 0, 4, 2], np.int64))
    assert (some.num_queries, some.num_gallery) == (4, 7)
    expected = whole.scores(slice(0, 6))[[4, 0, 4, 2]]
    np.testing.assert_array_equal(some.scores(slice(0, 4)), expected)
    np.testing.assert_array_equal(some.scores(slice(1, 3)), expected[1:3])
    nothing = Rows(whole, np.empty(0, np.int64))
    assert nothing.scores(slice(0, 0)).shape == (0, 7)


@settings(max_examples=100, deadline=None)
@given(problem=problems, k=st.integers(1, 40), block_bytes=block_sizes)
def test_searches_find_with_a_similarity_what_they_find_with_its_vectors(
    problem: Problem, k: int, block_bytes: int
) -> None:
    queries, gallery, lists = problem.queries, problem.gallery, (problem.relevant, problem.ignored)
    whole = Cosine(queries, gallery)
    best = top_k(queries, gallery, k, problem.ignored, block_bytes=block_bytes)
    same = top_k(whole, None, k, problem.ignored, block_bytes=block_bytes)
    np.testing.assert_array_equal(same.indices, best.indices)
    np.testing.assert_array_equal(same.scores, best.scores)
    ranks = relevant_ranks(queries, gallery, *lists, block_bytes=block_bytes)
    same_ranks = relevant_ranks(whole, None, *lists, block_bytes=block_bytes)
    for name in ("ranks", "best_ranks", "worst_ranks", "num_relevant", "num_candidates"):
        np.testing.assert_array_equal(getattr(same_ranks, name), getattr(ranks, name), err_msg=name)
    counts = global_positive_counts(queries, gallery, *lists, block_bytes=block_bytes)
    same_counts = global_positive_counts(whole, None, *lists, block_bytes=block_bytes)
    np.testing.assert_array_equal(same_counts.num_relevant, counts.num_relevant)
    np.testing.assert_array_equal(same_counts.num_candidates, counts.num_candidates)


def test_every_row_is_asked_for_once_and_few_at_a_time() -> None:
    problem = Problem(seed=0, num_queries=6, num_items=10, dim=2)
    counted = Counted(Cosine(problem.queries, problem.gallery))
    top_k(counted, None, 3, block_bytes=24 * 10 * 2)
    assert counted.asked == [slice(0, 2), slice(2, 4), slice(4, 6)]
    counted.asked.clear()
    relevant_ranks(counted, None, problem.relevant, problem.ignored, block_bytes=1)
    assert counted.asked == [slice(row, row + 1) for row in range(6)]


def test_scores_that_are_no_numbers_are_an_error_of_ours() -> None:
    broken = Cosine(np.full((1, 2), np.nan, np.float32), np.ones((3, 2), np.float32))
    with pytest.raises(AssertionError):
        top_k(broken, None, 1)


@settings(max_examples=150, deadline=None)
@given(
    problem=problems,
    width=st.integers(0, 30),
    scale=st.sampled_from([1e-9, 1.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_what_is_listed_comes_first_in_its_order_and_the_rest_in_the_old_one(
    problem: Problem, width: int, scale: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    base = Cosine(problem.queries, problem.gallery)
    old = base.scores(slice(0, base.num_queries))
    count = base.num_gallery
    width = min(width, count)
    indices = np.full((base.num_queries, width), -1, np.int64)
    scores = np.zeros((base.num_queries, width))
    expected = []
    for row in range(base.num_queries):
        listed = generator.permutation(count)[: generator.integers(0, width + 1)].tolist()
        values = -np.sort(-scale * generator.integers(0, 5, len(listed)).astype(np.float64))
        indices[row, : len(listed)] = listed
        scores[row, : len(listed)] = values
        rest = np.setdiff1d(np.arange(count), listed)
        order = np.argsort(-old[row, rest], kind="stable")
        first = [item for _, item in sorted(zip(-values, listed, strict=True))]
        expected.append(first + rest[order].tolist())
    found = Listed.of(base, indices, scores)
    assert top_k(found, None, count).indices.tolist() == expected
    whole = found.scores(slice(0, base.num_queries))
    for row in range(base.num_queries):
        np.testing.assert_array_equal(found.scores(slice(row, row + 1))[0], whole[row])


def test_listed_scores_can_be_compared_across_queries() -> None:
    base = Cosine(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32))
    found = Listed.of(base, np.array([[1], [0]]), np.array([[0.5], [0.25]])).scores(slice(0, 2))
    assert found[0, 1] - found[1, 0] == pytest.approx(0.25)
    assert found[0, 1] > found[1, 0] > base.scores(slice(0, 2)).max()
