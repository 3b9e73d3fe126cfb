"""Vectors from elsewhere: scored as by hand, and what may be wrong with them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from ssl_retrieval.compare import compare
from ssl_retrieval.errors import UserError
from ssl_retrieval.own_vectors import evaluate_vectors


def draw(count: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    """Draw float64 [count, dim]."""
    return np.random.default_rng(seed).standard_normal((count, dim))


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Give all pairs' cosines."""
    normalised = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
    return normalised[0] @ normalised[1].T


def test_leave_one_out_by_labels_is_scikit_learns() -> None:
    vectors, labels = draw(30), np.random.default_rng(1).integers(4, size=30)
    report = evaluate_vectors("mine", vectors, query_labels=labels.tolist())
    scores = cosine(vectors, vectors)
    for query, found in enumerate(report.per_query["mAP"]):
        others = np.arange(30) != query
        expected = average_precision_score(labels[others] == labels[query], scores[query, others])
        assert found == pytest.approx(expected)
    assert report.info["level"] == "category"
    assert "knn@20" in report.per_query


def test_given_lists_with_junk_are_scikit_learns() -> None:
    queries, gallery = draw(5, seed=1), draw(20, seed=2)
    relevant, ignored = [[0, 3], [5], [7, 8, 9], [], [1]], [[4], [], [0, 1], [2], [1]]
    report = evaluate_vectors("mine", queries, gallery, relevant=relevant, ignored=ignored)
    scores = cosine(queries, gallery)
    for query in range(3):
        counted = ~np.isin(np.arange(20), ignored[query])
        truth = np.isin(np.arange(20), relevant[query])
        expected = average_precision_score(truth[counted], scores[query, counted])
        assert report.per_query["mAP"][query] == pytest.approx(expected)
    # What is both relevant and junk is junk; a query with nothing to find has no value and is counted.
    assert np.isnan(report.per_query["mAP"][3:]).all()
    assert report.info["num_queries_without_positives"] == 2


def test_the_same_id_is_the_same_image() -> None:
    vectors = draw(6)
    by_id = evaluate_vectors(
        "mine",
        vectors[:2],
        vectors,
        query_labels="ab",
        gallery_labels="abbaab",
        query_ids=["/x/0.jpg", "/x/1.jpg"],
        gallery_ids=[f"/x/{i}.jpg" for i in range(6)],
    )
    whole = evaluate_vectors("mine", vectors, query_labels="abbaab")
    np.testing.assert_allclose(by_id.per_query["mAP"], whole.per_query["mAP"][:2])


def test_labels_beyond_float32_stay_distinct() -> None:
    # As float32 both would be 2**24.
    labels = [2**24, 2**24 + 1, 2**24, 2**24 + 1]
    vectors: Any = [[1, 0], [1, 0.1], [0, 1], [0.1, 1]]
    report = evaluate_vectors("mine", vectors, query_labels=labels)
    assert report.per_query["mAP"].max() < 1
    assert evaluate_vectors("mine", vectors, query_labels=[7, 7, 8, 8]).per_query["mAP"].min() == 1


def test_unlabelled_items_are_in_the_way() -> None:
    gallery: Any = [[1, 0], [1, 0.2], [1, 0.1]]
    report = evaluate_vectors(
        "mine", [[1, 0]], gallery, query_labels=["cat"], gallery_labels=[None, "cat", None]
    )
    assert report.per_query["mAP"][0] == pytest.approx(1 / 3)


def test_a_vector_of_zeros_scores_zero_with_everything(capsys: pytest.CaptureFixture[str]) -> None:
    report = evaluate_vectors("mine", [[0, 0], [1, 0]], [[-1, 0], [1, 0]], relevant=[[1], [1]])
    # All scores of the first query tie, and ties go by position.
    assert report.per_query["mAP"].tolist() == [0.5, 1.0]
    assert report.info["num_queries_with_ties"] == 1
    assert report.info["num_images_without_features"] == 1
    assert "query/0" in capsys.readouterr().err


def test_cut_offs_beyond_the_gallery_are_defined() -> None:
    report = evaluate_vectors(
        "mine", [[1, 0]], [[1, 0], [0, 1]], relevant=[[0]], metrics=["precision@10", "recall@10"]
    )
    assert report.per_query["precision@10"].tolist() == [0.1]
    assert report.per_query["recall@10"].tolist() == [1.0]


def test_reports_of_own_vectors_can_be_compared() -> None:
    labels = np.repeat(np.arange(10), 4).tolist()
    centres = np.repeat(draw(10, seed=9), 4, axis=0)
    weak = evaluate_vectors("weak", draw(40, seed=1) + 0.1 * centres, query_labels=labels)
    strong = evaluate_vectors("strong", draw(40, seed=2) + 2 * centres, query_labels=labels)
    assert compare([weak, strong]).tasks[0].best.name == "strong"


Call = Callable[[], object]
V: Any = [[1.0, 0.0], [0.0, 1.0]]
HALF: Any = 0.5
BAD: Any = [[1, 0], [np.inf, 0]]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: evaluate_vectors("x", [[1, np.nan]], V, relevant=[[0]]), "queries: row 0 is not finite"),
        (
            lambda: evaluate_vectors("x", V, BAD, relevant=[[0], [1]]),
            "gallery: row 1",
        ),
        (lambda: evaluate_vectors("x", [[1e300, 0]], V, relevant=[[0]]), "beyond float32"),
        (lambda: evaluate_vectors("x", [[1, 0, 0]], V, relevant=[[0]]), "3 dimensions, the gallery has 2"),
        (lambda: evaluate_vectors("x", [1, 0], V, relevant=[[0]]), r"shape \[2\]"),
        (lambda: evaluate_vectors("x", [["a", "b"]], V, relevant=[[0]]), "no table of numbers"),
        (lambda: evaluate_vectors("x", np.empty((0, 2)), V, relevant=[]), "queries: is empty"),
        (lambda: evaluate_vectors("x", V, np.empty((0, 2)), relevant=[[], []]), "gallery: is empty"),
        (lambda: evaluate_vectors("x", V, V, relevant=[[], []]), "no query of task"),
        (lambda: evaluate_vectors("x", V, V, relevant=[[0], [2]]), "out of range 0..1"),
        (lambda: evaluate_vectors("x", V, V, relevant=[[0], [-1]]), "out of range"),
        (lambda: evaluate_vectors("x", V, V, relevant=[[0], [HALF]]), "no gallery positions"),
        (lambda: evaluate_vectors("x", V, V, relevant=[[0]]), "1 lists for 2 queries"),
        (lambda: evaluate_vectors("x", V, V, relevant=[[0], [1]], gallery_ids=["a", "a"]), "listed twice"),
        (lambda: evaluate_vectors("x", V, V, relevant=[[0], [1]], gallery_ids=["a"]), "gallery ids: 1 for 2"),
        (lambda: evaluate_vectors("x", V, V, query_labels="ab"), "say what is to be found"),
        (lambda: evaluate_vectors("x", V, query_labels="a"), "query labels: 1 for 2"),
        (lambda: evaluate_vectors("x", V, query_labels="aa", gallery_labels="aa"), "needs a gallery"),
        (lambda: evaluate_vectors("x", V, query_labels="aa", metrics=["mAPP"]), "unknown metric"),
    ],
)
def test_users_mistakes_are_named(call: Call, words: str) -> None:
    with pytest.raises(UserError, match=words):
        call()
