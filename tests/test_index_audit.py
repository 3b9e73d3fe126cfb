"""What an audit says, against loops and scikit-learn-like definitions."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from small_vectors import Sides, sides

from ssl_retrieval import metrics
from ssl_retrieval.index import build, search
from ssl_retrieval.index_audit import Problem, audit, audit_exact, ranks_within, recall_at_k
from ssl_retrieval.index_syntax import parse
from ssl_retrieval.postprocess import l2_normalize
from ssl_retrieval.search import relevant_ranks, top_k
from ssl_retrieval.statistics import paired_test
from ssl_retrieval.types import FloatArray, IntArray, Ranking, VectorArray

K = 10


def made(num: int = 800, num_queries: int = 60) -> tuple[VectorArray, list[IntArray], list[IntArray]]:
    rng = np.random.default_rng(0)
    classes = rng.integers(40, size=num)
    centres = rng.standard_normal((40, 32))
    vectors = l2_normalize((centres[classes] + rng.standard_normal((num, 32))).astype(np.float32))
    same = [np.flatnonzero(classes == classes[query]) for query in range(num_queries)]
    return (
        vectors,
        [np.array([query]) for query in range(num_queries)],
        [rows[rows != q] for q, rows in enumerate(same)],
    )


@pytest.fixture(scope="module")
def problem() -> Problem:
    vectors, ignored, relevant = made()
    return Problem.of(vectors[:60], vectors, K, ignored, relevant)


def naive_ap_at_k(rows: list[int], relevant: set[int], k: int) -> float:
    hits, total = 0, 0.0
    for rank, row in enumerate(rows[:k], start=1):
        if row in relevant:
            hits += 1
            total += hits / rank
    return total / min(len(relevant), k)


def test_exact_search_loses_nothing(problem: Problem) -> None:
    found = audit_exact(problem, at=10**6)
    assert (found.recall.low, found.recall.mean) == (1, 1)
    assert found.difference is not None
    assert (found.difference.mean, found.difference.p_value) == (0, 1)
    assert found.bytes_per_image == 4 * 32
    assert found.bytes_at == 4 * 32 * 10**6


def test_the_cut_ranking_scores_as_the_full_one_cut_at_the_same_rank(problem: Problem) -> None:
    assert problem.relevant is not None
    full = relevant_ranks(problem.queries, problem.gallery, problem.relevant, problem.ignored)
    assert problem.exact_map_at_k is not None
    assert problem.exact_map_at_k == pytest.approx(metrics.compute(f"mAP@{K}", full))
    assert problem.exact_map == pytest.approx(metrics.compute("mAP", full))


@pytest.mark.parametrize("text", ["PQ8x4", "RaBitQ", "IVF8,Flat"])
def test_recall_and_loss_are_those_of_loops(problem: Problem, text: str) -> None:
    spec = parse(text)
    built = build(spec, problem.gallery)
    one = audit(problem, spec, built, at=len(problem.gallery))
    assert problem.ignored is not None
    assert problem.relevant is not None
    found = search(built, spec, problem.queries, K, problem.ignored)
    exact = problem.exact.indices.tolist()
    recalls, values, best = [], [], []
    for query, row in enumerate(found.indices.tolist()):
        assert query not in row
        recalls.append(len(set(row) & set(exact[query])) / K)
        answers = set(problem.relevant[query].tolist())
        values.append(naive_ap_at_k([r for r in row if r >= 0], answers, K))
        best.append(naive_ap_at_k(exact[query], answers, K))
    assert one.recall.mean == pytest.approx(np.mean(recalls))
    assert one.map_at_k is not None
    assert one.map_at_k.mean == pytest.approx(np.mean(values))
    assert one.difference is not None
    wanted = paired_test(np.array(values), np.array(best))
    assert dataclasses.astuple(one.difference) == pytest.approx(dataclasses.astuple(wanted))
    assert one.recall.mean < 1
    assert one.bytes_per_image == pytest.approx(built.num_bytes / len(problem.gallery))
    assert one.accuracy == one.map_at_k.mean
    assert all(0 < it.median <= it.p95 for it in one.latencies)
    assert one.latencies[0].threads == 1


def test_without_answers_recall_is_the_accuracy(problem: Problem) -> None:
    blind = Problem.of(problem.queries, problem.gallery, K, problem.ignored)
    one = audit_exact(blind, at=1)
    assert one.map_at_k is None
    assert one.difference is None
    assert one.accuracy == one.recall.mean
    assert one.to_dict()["map_difference"] is None


def naive_recalls(both: Sides, found: Ranking, k: int) -> FloatArray:
    shares = []
    for query, row in enumerate(found.indices.tolist()):
        counted = sorted(both.cosines[query][i] for i in range(len(both.gallery)) if i not in both.own[query])
        best = counted[::-1][:k]
        hits = sum(both.cosines[query][i] >= best[-1] for i in row if i >= 0) if best else np.nan
        shares.append(hits / len(best) if best else np.nan)
    return np.array(shares)


@settings(max_examples=60, deadline=None)
@given(sides())
def test_equal_images_may_stand_for_each_other(both: Sides) -> None:
    for k in (1, 3, 20):
        problem = Problem.of(both.queries, both.gallery, k, both.own)
        # The last of equal images instead of the first.
        reversed_gallery = both.gallery[::-1].copy()
        own = [len(both.gallery) - 1 - rows for rows in both.own]
        turned = top_k(both.queries, reversed_gallery, k, own)
        indices = np.where(turned.indices >= 0, len(both.gallery) - 1 - turned.indices, -1)
        recalls = recall_at_k(problem, Ranking(indices, turned.scores))
        assert recalls == pytest.approx(naive_recalls(both, Ranking(indices, turned.scores), k), nan_ok=True)
        assert (np.isnan(recalls) | (recalls == 1)).all()


def test_what_is_missed_has_no_rank_but_counts() -> None:
    found = Ranking(np.array([[5, 2, -1]]), np.array([[0.9, 0.1, -np.inf]], np.float32))
    ranks = ranks_within(found, [np.array([2, 7])], 9, [np.array([1, 3])])
    assert ranks.ranks.tolist() == [[2, 0]]
    assert ranks.num_relevant.tolist() == [2]
    assert ranks.num_candidates.tolist() == [7]
    assert metrics.compute("mAP@3", ranks).tolist() == [0.25]
