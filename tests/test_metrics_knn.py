"""Votes of neighbours against a plain loop."""

import numpy as np
import pytest

from ssl_retrieval.errors import UserError
from ssl_retrieval.metrics_knn import Vote, knn_accuracy
from ssl_retrieval.search import top_k
from ssl_retrieval.types import IntArray, Ranking


def loop_knn(ranking: Ranking, labels: IntArray, gallery_labels: IntArray, k: int) -> list[float]:
    """Vote neighbour by neighbour; ``max`` keeps the first, hence lowest, class on equal votes."""
    correct = []
    for indices, scores, label in zip(ranking.indices, ranking.scores, labels, strict=True):
        votes = dict.fromkeys(range(int(gallery_labels.max()) + 1), 0.0)
        for index, score in zip(indices[:k], scores[:k], strict=True):
            if index >= 0:
                votes[int(gallery_labels[index])] += float(np.exp(float(score) / 0.07))
        correct.append(float(max(votes, key=lambda label: votes[label]) == label))
    return correct


@pytest.mark.parametrize("k", [1, 5, 20, 40])
@pytest.mark.parametrize("chunk", [10, 2**20])
def test_knn_agrees_with_a_plain_vote(k: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    vectors = rng.normal(size=(90, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = rng.integers(0, 4, 90)
    ranking = top_k(vectors[:60], vectors[60:], k=max(k, 20))
    monkeypatch.setattr("ssl_retrieval.metrics_knn.CHUNK_ENTRIES", chunk)
    accuracy = knn_accuracy(ranking, labels[:60], labels[60:], k=k)
    assert accuracy.tolist() == loop_knn(ranking, labels[:60], labels[60:], k)
    assert 0 < accuracy.mean() < 1


def ranking_of(indices: list[int], scores: list[float]) -> Ranking:
    """Make the ranking of a single query."""
    return Ranking(np.array([indices], np.int64), np.array([scores], np.float32))


def test_knn_ties_go_to_the_lower_class_and_weights_beat_counts() -> None:
    labels = np.array([2, 1, 1, 0])
    tied = ranking_of([0, 1], [0.5, 0.5])
    assert knn_accuracy(tied, np.array([1]), labels, k=2).tolist() == [1]
    weighted = ranking_of([0, 1, 2], [0.9, 0.1, 0.1])
    assert knn_accuracy(weighted, np.array([2]), labels, k=3).tolist() == [1]


def test_knn_survives_padding_large_scores_unseen_classes_and_small_galleries() -> None:
    labels = np.array([2, 1])
    large = ranking_of([0, 1, -1], [1e4, 9e3, -np.inf])
    assert knn_accuracy(large, np.array([2]), labels, k=3).tolist() == [1]
    assert knn_accuracy(large, np.array([7]), labels, k=3).tolist() == [0]
    assert knn_accuracy(large, np.array([2]), labels, k=20).tolist() == [1]
    with pytest.raises(AssertionError):
        knn_accuracy(large, np.array([2]), np.zeros(30, np.int64), k=20)
    alone = ranking_of([-1, -1], [-np.inf, -np.inf])
    assert np.isnan(knn_accuracy(alone, np.array([2]), labels, k=2)).all()


def test_names_say_how_many_vote_and_how_sharply() -> None:
    assert [Vote.named(name) for name in ("knn@10", "knn@200_t0.1", "knn@5_t2", "mAP", "knnn")] == [
        Vote(10, 0.07),
        Vote(200, 0.1),
        Vote(5, 2.0),
        None,
        None,
    ]


@pytest.mark.parametrize(
    "name", ["knn", "knn@", "knn@0", "knn@20_t0", "knn@20_t-1", "knn@20_tx", "knn@20_best"]
)
def test_names_that_say_nothing_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"unknown metric '{name}'.*knn@20_t0.1"):
        Vote.named(name)


def test_the_temperature_decides_between_the_nearest_and_the_many() -> None:
    labels = np.array([2, 1, 1])
    ranking = ranking_of([0, 1, 2], [0.9, 0.8, 0.8])
    votes = {t: knn_accuracy(ranking, np.array([2]), labels, k=3, temperature=t)[0] for t in (0.07, 1.0)}
    assert votes == {0.07: 1, 1.0: 0}
