"""From vectors to numbers against three libraries: ties, junk, duplicates, queries without positives."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.metrics import average_precision_score

from ssl_retrieval.metrics import compute
from ssl_retrieval.search import RelevantRanks, relevant_ranks
from ssl_retrieval.types import BoolArray, FloatArray, IntArray


class Problem:
    """Small integer vectors, each drawn twice or more, with relevant items and junk at random."""

    def __init__(self, seed: int, num_queries: int, num_items: int, dim: int) -> None:
        rng = np.random.default_rng(seed)
        self.queries = rng.integers(-2, 3, (num_queries, dim)).astype(np.float32)
        distinct = rng.integers(-2, 3, (max(1, num_items // 2), dim)).astype(np.float32)
        self.gallery = distinct[rng.integers(0, len(distinct), num_items)]
        self.relevant: list[IntArray] = []
        self.junk: list[IntArray] = []
        for _ in range(num_queries):
            shuffled = rng.permutation(num_items).astype(np.int64)
            first, second = np.sort(rng.integers(0, num_items, 2)) * rng.integers(0, 2)
            self.relevant.append(shuffled[:first])
            self.junk.append(shuffled[first:second])

    @property
    def ranks(self) -> RelevantRanks:
        return relevant_ranks(self.queries, self.gallery, self.relevant, self.junk)

    def listed(self, query: int) -> tuple[BoolArray, FloatArray]:
        """Give relevance and scores without the junk, by descending score, then gallery index."""
        scores = (self.gallery @ self.queries[query]).astype(np.float64)
        order = np.argsort(-scores, kind="stable")
        order = order[~np.isin(order, self.junk[query])]
        return np.isin(order, self.relevant[query]), scores[order]


problems = st.builds(
    Problem,
    seed=st.integers(0, 2**32 - 1),
    num_queries=st.integers(1, 5),
    num_items=st.integers(2, 30),
    dim=st.integers(1, 3),
)


@settings(deadline=None)
@given(problem=problems)
def test_scikit_learn_on_average_precision(problem: Problem) -> None:
    ours = compute("mAP", problem.ranks)
    for query, value in enumerate(ours):
        hits, scores = problem.listed(query)
        if not hits.any():
            assert np.isnan(value)
            continue
        distinct_scores = -np.arange(len(hits))
        assert value == pytest.approx(average_precision_score(hits, distinct_scores), abs=1e-12)
        # With equal scores, scikit-learn's value is another one.
        if not (_repeated(scores) & hits).any():
            assert value == pytest.approx(average_precision_score(hits, scores), abs=1e-12)


def _repeated(scores: FloatArray) -> BoolArray:
    _, group, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    repeated: BoolArray = sizes[group] > 1
    return repeated


@pytest.mark.slow  # ranx compiles its metrics with numba first
@settings(deadline=None, max_examples=10)
@given(problem=problems)
def test_ranx_on_rankings_whose_ties_are_broken(problem: Problem) -> None:
    import ranx

    ranks = problem.ranks
    qrels, run = {}, {}
    for query, relevant in enumerate(problem.relevant):
        hits, _ = problem.listed(query)
        names = [f"d{place:02}" for place in range(len(hits))]
        # ranx has no query without positives: an item that is never found stands for nothing.
        qrels[f"q{query}"] = {name: 1 for name, hit in zip(names, hits, strict=True) if hit} or {"none": 1}
        run[f"q{query}"] = {name: 1.0 / (place + 1) for place, name in enumerate(names)} or {"other": 1.0}
        assert hits.sum() == len(relevant)
    keys = {"mAP": "map", "ndcg@5": "ndcg@5", "r_precision": "r-precision", "mrr": "mrr"}
    theirs = ranx.evaluate(ranx.Qrels(qrels), ranx.Run(run), [*keys.values(), "map@5"], return_mean=False)
    for ours, name in keys.items():
        values = np.nan_to_num(compute(ours, ranks))
        np.testing.assert_allclose(values, theirs[name], atol=1e-9, err_msg=name)
    rescaled = compute("mAP@5", ranks) * np.minimum(ranks.num_relevant, 5) / np.maximum(ranks.num_relevant, 1)
    np.testing.assert_allclose(np.nan_to_num(rescaled), theirs["map@5"], atol=1e-9)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num_classes=st.integers(1, 8), num_images=st.integers(2, 30))
def test_pytorch_metric_learning_leaves_out_lone_images(seed: int, num_classes: int, num_images: int) -> None:
    """Leave-one-out by id; a lone image of its class has nothing to find."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num_images)
    vectors = rng.normal(size=(num_images, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    itself = [np.array([i]) for i in range(num_images)]
    same = [np.setdiff1d(np.flatnonzero(labels == label), [i]) for i, label in enumerate(labels)]
    ranks = relevant_ranks(vectors, vectors, same, itself)
    names = {
        "mAP": "mean_average_precision",
        "mAP@R": "mean_average_precision_at_r",
        "r_precision": "r_precision",
        "precision@1": "precision_at_1",
        "mrr": "mean_reciprocal_rank",
    }
    calculator = AccuracyCalculator(
        include=tuple(names.values()), k=num_images - 1, device=torch.device("cpu")
    )
    theirs = calculator.get_accuracy(torch.from_numpy(vectors), torch.from_numpy(labels))
    has_any = ranks.num_relevant > 0
    for ours, name in names.items():
        values = compute(ours, ranks)
        assert (np.isnan(values) != has_any).all()
        if has_any.any():
            assert np.nanmean(values) == pytest.approx(theirs[name], abs=1e-6), name
        else:
            assert np.isnan(theirs[name])
