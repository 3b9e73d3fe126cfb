"""Fusion against loops over single images, and reciprocal ranks against ranx."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_retrieval.fusion import RANK_OFFSET, ReciprocalRank, ScoreSum, concatenate
from ssl_retrieval.postprocess import l2_normalize
from ssl_retrieval.search import top_k
from ssl_retrieval.similarity import Cosine
from ssl_retrieval.types import VectorArray


class Table:
    """A similarity whose scores are given."""

    def __init__(self, scores: VectorArray) -> None:
        self.table = scores
        self.num_queries, self.num_gallery = scores.shape

    def scores(self, rows: slice) -> VectorArray:
        return self.table[rows]


class Parts:
    """Small whole scores, so that ties are common, of several parts with their weights."""

    def __init__(self, seed: int, num_parts: int, num_queries: int, num_gallery: int, spread: int) -> None:
        rng = np.random.default_rng(seed)
        shape = num_parts, num_queries, num_gallery
        self.tables = rng.integers(-spread, spread + 1, shape).astype(np.float32)
        self.weights = rng.choice([0.0, 0.5, 1.0, 3.0], num_parts).tolist()
        self.parts = [Table(table) for table in self.tables]


many_parts = st.builds(
    Parts,
    seed=st.integers(0, 2**32 - 1),
    num_parts=st.integers(1, 4),
    num_queries=st.integers(1, 4),
    num_gallery=st.integers(1, 12),
    spread=st.integers(0, 4),
)


def vectors(num: int, dim: int, seed: int) -> VectorArray:
    return np.random.default_rng(seed).normal(size=(num, dim)).astype(np.float32)


def mean_rank(scores: Sequence[float], place: int) -> float:
    """One plus the number of better ones, and half of those that are as good."""
    better = sum(score > scores[place] for score in scores)
    as_good = sum(score == scores[place] for score in scores) - 1
    return 1 + better + as_good / 2


@settings(max_examples=100, deadline=None)
@given(many=many_parts)
def test_the_score_sum_is_that_of_a_loop(many: Parts) -> None:
    found = ScoreSum(many.parts, many.weights)
    for query in range(found.num_queries):
        for item in range(found.num_gallery):
            expected = sum(
                weight * float(table[query, item])
                for weight, table in zip(many.weights, many.tables, strict=True)
            )
            assert found.scores(slice(query, query + 1))[0, item] == expected


@settings(max_examples=100, deadline=None)
@given(many=many_parts)
def test_reciprocal_ranks_are_those_of_a_loop(many: Parts) -> None:
    found = ReciprocalRank(many.parts, many.weights)
    whole = found.scores(slice(0, found.num_queries))
    assert whole.dtype == np.float32
    assert whole.shape == (found.num_queries, found.num_gallery)
    for query in range(found.num_queries):
        for item in range(found.num_gallery):
            expected = sum(
                weight / (RANK_OFFSET + mean_rank(table[query].tolist(), item))
                for weight, table in zip(many.weights, many.tables, strict=True)
            )
            assert whole[query, item] == pytest.approx(expected, rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(many=many_parts)
def test_rows_do_not_depend_on_how_they_are_asked_for(many: Parts) -> None:
    for fused in (ScoreSum(many.parts, many.weights), ReciprocalRank(many.parts, many.weights)):
        whole = fused.scores(slice(0, fused.num_queries))
        one_by_one = [fused.scores(slice(row, row + 1)) for row in range(fused.num_queries)]
        np.testing.assert_array_equal(np.concatenate(one_by_one), whole)


@settings(max_examples=50, deadline=None)
@given(many=many_parts, factor=st.floats(0.1, 100))
def test_only_the_order_of_a_part_counts_for_ranks(many: Parts, factor: float) -> None:
    scaled = [Table((table * np.float32(factor)).astype(np.float32)) for table in many.tables]
    rows = slice(0, many.parts[0].num_queries)
    np.testing.assert_array_equal(
        ReciprocalRank(scaled, many.weights).scores(rows),
        ReciprocalRank(many.parts, many.weights).scores(rows),
    )


@settings(max_examples=50, deadline=None)
@given(many=many_parts, seed=st.integers(0, 2**32 - 1))
def test_equal_weights_make_the_order_of_the_parts_irrelevant(many: Parts, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(many.parts))
    rows, weights = slice(0, many.parts[0].num_queries), [1.0] * len(many.parts)
    np.testing.assert_array_equal(
        ReciprocalRank([many.parts[i] for i in order], weights).scores(rows),
        ReciprocalRank(many.parts, weights).scores(rows),
    )


def test_a_part_in_which_all_is_equal_changes_no_order() -> None:
    scores = vectors(3, 20, seed=0)
    flat = Table(np.zeros_like(scores))
    fused = ReciprocalRank([flat, Table(scores)], [1.0, 1.0]).scores(slice(0, 3))
    np.testing.assert_array_equal(np.argsort(-fused, axis=1), np.argsort(-scores, axis=1))


@pytest.mark.slow  # ranx compiles its fusion with numba first
def test_reciprocal_ranks_are_those_of_ranx() -> None:
    from ranx import Run, fuse

    tables = [vectors(5, 30, seed) for seed in (1, 2, 3)]
    runs = [
        Run(
            {
                f"q{query}": {f"d{item}": float(score) for item, score in enumerate(row)}
                for query, row in enumerate(table)
            }
        )
        for table in tables
    ]
    oracle = fuse(runs=runs, norm=None, method="rrf", params={"k": RANK_OFFSET}).to_dict()
    found = ReciprocalRank([Table(table) for table in tables], [1.0] * 3).scores(slice(0, 5))
    for query in range(5):
        expected = [oracle[f"q{query}"][f"d{item}"] for item in range(30)]
        np.testing.assert_allclose(found[query], expected, rtol=1e-6)


def test_a_fused_similarity_can_be_searched() -> None:
    one, other = (Cosine(l2_normalize(vectors(4, 6, s)), l2_normalize(vectors(9, 6, s + 9))) for s in (0, 1))
    fused = ScoreSum([one, other], [1.0, 2.0])
    expected = one.queries @ one.gallery.T + 2 * (other.queries @ other.gallery.T)
    found = top_k(fused, None, 3, [np.array([query]) for query in range(4)])
    expected[np.arange(4), np.arange(4)] = -np.inf
    np.testing.assert_array_equal(found.indices, np.argsort(-expected, axis=1)[:, :3])


def test_a_cosine_of_joined_vectors_is_the_mean_cosine_weighted_by_squares() -> None:
    parts, weights = [vectors(7, dim, dim) * dim for dim in (3, 5, 2)], [1.0, 0.5, 2.0]
    joined = concatenate(parts, weights)
    assert joined.dtype == np.float32
    assert joined.shape == (7, 10)
    for one in range(7):
        for other in range(7):
            cosines = [
                float(part[one] @ part[other] / np.linalg.norm(part[one]) / np.linalg.norm(part[other]))
                for part in parts
            ]
            expected = np.average(cosines, weights=np.square(weights))
            assert joined[one] @ joined[other] == pytest.approx(expected, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    dims=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    scale=st.floats(1e-6, 1e6),
)
def test_joined_vectors_have_length_1_and_no_scale(seed: int, dims: list[int], scale: float) -> None:
    parts = [vectors(4, dim, seed % 1000 + i) for i, dim in enumerate(dims)]
    weights = np.random.default_rng(seed).uniform(0.1, 2, len(dims)).tolist()
    joined = concatenate(parts, weights)
    np.testing.assert_allclose(np.linalg.norm(joined, axis=1), 1, atol=1e-6)
    scaled = concatenate([parts[0] * np.float32(scale), *parts[1:]], [scale * weight for weight in weights])
    np.testing.assert_allclose(scaled, joined, atol=1e-5)


def test_a_row_of_zeros_leaves_the_other_part_alone() -> None:
    full, empty = vectors(2, 3, seed=0), np.zeros((2, 4), np.float32)
    joined = concatenate([full, empty], [1.0, 5.0])
    np.testing.assert_allclose(joined[:, :3], l2_normalize(full), atol=1e-6)
    assert not joined[:, 3:].any()
    assert not concatenate([empty, empty], [1.0, 1.0]).any()


def test_a_weight_of_zero_takes_a_part_out() -> None:
    one, other = vectors(3, 4, seed=0), vectors(3, 4, seed=1)
    joined = concatenate([one, other], [0.0, 1.0])
    np.testing.assert_allclose(joined[:, 4:], l2_normalize(other), atol=1e-6)
    assert not joined[:, :4].any()
    rows = slice(0, 3)
    np.testing.assert_array_equal(
        ReciprocalRank([Table(one), Table(other)], [0.0, 1.0]).scores(rows),
        ReciprocalRank([Table(other)], [1.0]).scores(rows),
    )
