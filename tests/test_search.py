"""Exact search: against full stable sorts, with ties galore, for any block size."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from ssl_retrieval.errors import UserError
from ssl_retrieval.metrics_global import uap
from ssl_retrieval.search import global_positive_counts, relevant_ranks, top_k
from ssl_retrieval.types import IntArray, VectorArray

block_sizes = st.integers(0, 4000)


class Problem:
    """A random search problem whose small integer vectors make every product exact and ties common."""

    def __init__(self, seed: int, num_queries: int, num_items: int, dim: int, spread: int) -> None:
        rng = np.random.default_rng(seed)
        self.queries = rng.integers(-spread, spread + 1, (num_queries, dim)).astype(np.float32)
        self.gallery = rng.integers(-spread, spread + 1, (num_items, dim)).astype(np.float32)
        self.relevant: list[IntArray] = []
        self.ignored: list[IntArray] = []
        for _ in range(num_queries):
            shuffled = rng.permutation(num_items).astype(np.int64)
            first, second = np.sort(rng.integers(0, num_items + 1, 2))
            self.relevant.append(shuffled[:first])
            self.ignored.append(shuffled[first:second])

    def order(self, query: int) -> IntArray:
        """Sort all candidates the slow way: descending score, then gallery index."""
        scores = self.gallery @ self.queries[query]
        order = np.argsort(-scores, kind="stable")
        return order[~np.isin(order, self.ignored[query])]

    def ranks(self, query: int) -> IntArray:
        return np.flatnonzero(np.isin(self.order(query), self.relevant[query])) + 1


problems = st.builds(
    Problem,
    seed=st.integers(0, 2**32 - 1),
    num_queries=st.integers(1, 6),
    num_items=st.integers(1, 40),
    dim=st.integers(1, 3),
    spread=st.integers(0, 3),
)


def unit_vectors(num: int, dim: int, seed: int) -> VectorArray:
    vectors = np.random.default_rng(seed).normal(size=(num, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@settings(max_examples=150, deadline=None)
@given(problem=problems, k=st.integers(1, 50), block_bytes=block_sizes)
def test_top_k_is_a_stable_sort_without_ignored_items(problem: Problem, k: int, block_bytes: int) -> None:
    ranking = top_k(problem.queries, problem.gallery, k, problem.ignored, block_bytes=block_bytes)
    assert ranking.indices.shape == (len(problem.queries), k)
    for query in range(len(problem.queries)):
        expected = problem.order(query)[:k]
        num_padded = k - len(expected)
        assert ranking.indices[query].tolist() == expected.tolist() + [-1] * num_padded
        scores = problem.gallery[expected] @ problem.queries[query]
        assert ranking.scores[query].tolist() == scores.tolist() + [-np.inf] * num_padded
        assert not np.isin(ranking.indices[query], problem.ignored[query]).any()


@settings(max_examples=150, deadline=None)
@given(problem=problems, block_bytes=block_sizes)
def test_relevant_ranks_are_those_of_a_full_stable_sort(problem: Problem, block_bytes: int) -> None:
    found = relevant_ranks(
        problem.queries, problem.gallery, problem.relevant, problem.ignored, block_bytes=block_bytes
    )
    assert found.ranks.shape[1] == max(len(indices) for indices in problem.relevant)
    for query, (relevant, ignored) in enumerate(zip(problem.relevant, problem.ignored, strict=True)):
        padding = [0] * (found.ranks.shape[1] - len(relevant))
        assert found.ranks[query].tolist() == problem.ranks(query).tolist() + padding
        assert found.num_relevant[query] == len(relevant)
        assert found.num_candidates[query] == len(problem.gallery) - len(ignored)


@settings(max_examples=150, deadline=None)
@given(problem=problems, block_bytes=block_sizes)
def test_tie_band_is_that_of_relevant_first_and_relevant_last(problem: Problem, block_bytes: int) -> None:
    found = relevant_ranks(
        problem.queries, problem.gallery, problem.relevant, problem.ignored, block_bytes=block_bytes
    )
    num_tied = 0
    for query, relevant in enumerate(problem.relevant):
        candidates = np.setdiff1d(np.arange(len(problem.gallery)), problem.ignored[query])
        scores = problem.gallery[candidates] @ problem.queries[query]
        is_relevant = np.isin(candidates, relevant)
        best = np.flatnonzero(is_relevant[np.lexsort((~is_relevant, -scores))]) + 1
        worst = np.flatnonzero(is_relevant[np.lexsort((is_relevant, -scores))]) + 1
        assert found.best_ranks[query, : len(relevant)].tolist() == best.tolist()
        assert found.worst_ranks[query, : len(relevant)].tolist() == worst.tolist()
        num_tied += bool(np.isin(scores[is_relevant], scores[~is_relevant]).any())
    assert found.num_tied_queries == num_tied
    assert (found.best_ranks <= found.ranks).all()
    assert (found.ranks <= found.worst_ranks).all()


@settings(max_examples=100, deadline=None)
@given(problem=problems, block_bytes=block_sizes)
def test_global_counts_give_scikit_learns_average_precision(problem: Problem, block_bytes: int) -> None:
    counts = global_positive_counts(
        problem.queries, problem.gallery, problem.relevant, problem.ignored, block_bytes=block_bytes
    )
    is_relevant, scores = [], []
    for query in range(len(problem.queries)):
        order = problem.order(query)
        is_relevant.append(np.isin(order, problem.relevant[query]))
        scores.append(problem.gallery[order] @ problem.queries[query])
    truth, score = np.concatenate(is_relevant), np.concatenate(scores)
    if truth.any():
        assert uap(counts) == pytest.approx(average_precision_score(truth, score), abs=1e-12)
    else:
        assert np.isnan(uap(counts))
    assert len(counts.num_relevant) == len(np.unique(score[truth]))


def test_real_valued_scores_agree_with_numpy_across_many_blocks() -> None:
    queries, gallery = unit_vectors(37, 48, seed=0), unit_vectors(1500, 48, seed=1)
    scores = queries.astype(np.float64) @ gallery.T.astype(np.float64)
    rng = np.random.default_rng(2)
    relevant = [rng.choice(1500, 20, replace=False) for _ in queries]
    order = np.argsort(-scores, axis=1)
    expected = np.sort(np.argsort(order, axis=1)[np.arange(37)[:, None], np.array(relevant)] + 1)
    for block_bytes in (20_000, 10**6, 10**9):
        ranking = top_k(queries, gallery, 10, block_bytes=block_bytes)
        assert (ranking.indices == order[:, :10]).all()
        np.testing.assert_allclose(ranking.scores, np.take_along_axis(scores, order, 1)[:, :10], atol=1e-6)
        found = relevant_ranks(queries, gallery, relevant, block_bytes=block_bytes)
        assert (found.ranks == expected).all()
        assert found.num_tied_queries == 0


def test_ranks_and_ranking_come_from_the_same_scores() -> None:
    """Near-duplicates differ in the last bit only: both must order them alike."""
    base = unit_vectors(1, 64, seed=3)
    gallery = np.repeat(base, 3000, axis=0)
    gallery[:, 0] += np.float32(1e-7) * np.random.default_rng(4).integers(-2, 3, 3000).astype(np.float32)
    relevant = [np.arange(0, 3000, 7)] * 5
    queries = np.repeat(base, 5, axis=0)
    for block_bytes in (10**5, 10**9):
        ranking = top_k(queries, gallery, 3000, block_bytes=block_bytes)
        found = relevant_ranks(queries, gallery, relevant, block_bytes=block_bytes)
        for query in range(5):
            ranks = np.flatnonzero(np.isin(ranking.indices[query], relevant[query])) + 1
            assert found.ranks[query].tolist() == ranks.tolist()


def test_zero_and_minus_zero_tie() -> None:
    gallery = np.array([[-1], [1], [-1]], np.float32)
    ranking = top_k(np.array([[-0.0]], np.float32), gallery, 3)
    assert ranking.indices.tolist() == [[0, 1, 2]]
    assert not np.signbit(ranking.scores).any()


def test_extreme_scores_keep_their_order_and_value() -> None:
    gallery = np.array([[1e38], [-1e38], [1e-38], [-1e-38], [0], [1]], np.float32)
    ranking = top_k(np.ones((1, 1), np.float32), gallery, 6)
    assert ranking.indices.tolist() == [[0, 5, 2, 4, 3, 1]]
    assert (ranking.scores[0] == gallery[ranking.indices[0], 0]).all()


def test_read_only_memmap_gives_the_same_as_an_array(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    gallery = unit_vectors(200, 8, seed=5)
    np.save(tmp_path / "vectors.npy", gallery)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    from_file = top_k(gallery[:9], mapped, 7, block_bytes=5000)
    in_memory = top_k(gallery[:9], gallery, 7, block_bytes=5000)
    assert (from_file.indices == in_memory.indices).all()
    assert (from_file.scores == in_memory.scores).all()
    assert [str(warning.message) for warning in recwarn] == []


def test_query_without_relevant_items_or_candidates() -> None:
    vectors = unit_vectors(3, 4, seed=6)
    everything, nothing = np.arange(3), np.empty(0, np.int64)
    found = relevant_ranks(vectors[:2], vectors, [nothing, everything], [everything, nothing])
    assert found.ranks.tolist() == [[0, 0, 0], [1, 2, 3]]
    assert found.num_relevant.tolist() == [0, 3]
    assert found.num_candidates.tolist() == [0, 3]
    ranking = top_k(vectors[:2], vectors, 2, [everything, nothing])
    assert ranking.indices[0].tolist() == [-1, -1]


def test_no_query_at_all() -> None:
    none, gallery = np.empty((0, 4), np.float32), unit_vectors(3, 4, seed=6)
    assert top_k(none, gallery, 2).indices.shape == (0, 2)
    assert relevant_ranks(none, gallery, []).ranks.shape == (0, 0)
    assert np.isnan(uap(global_positive_counts(none, gallery, [])))


def test_memory_stays_bounded_by_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """No temporary tensor of scores is larger than the block that was asked for."""
    largest = 0
    original = torch.Tensor.topk

    def watch(self: torch.Tensor, k: int, dim: int) -> object:
        nonlocal largest
        largest = max(largest, self.numel() * self.element_size())
        return original(self, k, dim=dim)

    monkeypatch.setattr(torch.Tensor, "topk", watch)
    vectors = unit_vectors(3000, 4, seed=7)
    top_k(vectors, vectors, 5, block_bytes=10**6)
    assert 0 < largest <= 10**6


def test_a_training_runs_matmul_precision_is_overridden_and_restored() -> None:
    vectors = unit_vectors(300, 256, seed=8)
    expected = top_k(vectors, vectors, 3).scores
    torch.set_float32_matmul_precision("medium")
    try:
        assert (top_k(vectors, vectors, 3).scores == expected).all()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_users_mistakes_are_named() -> None:
    queries, gallery = np.zeros((2, 3), np.float32), np.zeros((4, 5), np.float32)
    with pytest.raises(UserError, match="3 dimensions, the gallery has 5"):
        top_k(queries, gallery, 1)
    with pytest.raises(UserError, match="k=0"):
        top_k(queries, queries, 0)


@pytest.mark.parametrize(
    ("relevant", "ignored"),
    [([0, 1], [1]), ([0, 3], []), ([-1], []), ([0, 0], [])],
    ids=["also ignored", "too large", "negative", "twice"],
)
def test_impossible_relevant_lists_are_refused(relevant: list[int], ignored: list[int]) -> None:
    vectors = np.eye(3, dtype=np.float32)
    with pytest.raises(AssertionError):
        relevant_ranks(vectors[:1], vectors, [np.array(relevant, np.int64)], [np.array(ignored, np.int64)])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_gives_what_the_processor_gives() -> None:
    problem = Problem(seed=9, num_queries=50, num_items=400, dim=4, spread=3)
    q, g, relevant, ignored = problem.queries, problem.gallery, problem.relevant, problem.ignored
    for block_bytes in (3000, 10**9):
        on_gpu = top_k(q, g, 20, ignored, "cuda", block_bytes)
        assert (on_gpu.indices == top_k(q, g, 20, ignored).indices).all()
        ranks = relevant_ranks(q, g, relevant, ignored, "cuda", block_bytes)
        expected = relevant_ranks(q, g, relevant, ignored)
        assert (ranks.ranks == expected.ranks).all()
        assert (ranks.best_ranks == expected.best_ranks).all()
        assert (ranks.worst_ranks == expected.worst_ranks).all()
        counts = global_positive_counts(q, g, relevant, ignored, "cuda", block_bytes)
        assert uap(counts) == uap(global_positive_counts(q, g, relevant, ignored))
