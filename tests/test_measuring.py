"""From features to values: which metrics fit a task, and is each wired to its numbers?"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from small_task import CPU, histogram, root, store, task

from ssl_retrieval import measuring, metrics, metrics_global
from ssl_retrieval.errors import UserError
from ssl_retrieval.evaluate import score_features
from ssl_retrieval.features import Features, extracted
from ssl_retrieval.metrics_knn import knn_accuracy
from ssl_retrieval.report.files import read_report, write_report
from ssl_retrieval.search import global_positive_counts, relevant_ranks, top_k
from ssl_retrieval.store import Store
from ssl_retrieval.types import Task

__all__ = ["root", "store", "task"]


@pytest.fixture
def features(store: Store) -> Features:
    return extracted(histogram(bins=2), store)


def test_every_kind_of_metric_comes_from_its_own_numbers(features: Features, task: Task) -> None:
    names = [
        "mAP",
        "mAP_worst",
        "mMP@2",
        "knn@2_t0.5",
        "uap",
        "recall_at_p90",
        "gap",
        "mAP_macro",
        "knn@2_macro",
    ]
    for name in names:
        measuring.check(name, task)
    found = measuring.measure(features, names, CPU)

    assert features.queries is not None
    assert features.gallery is not None
    assert task.queries.labels is not None
    assert task.gallery.labels is not None
    sides = features.queries, features.gallery
    ranks = relevant_ranks(*sides, task.relevant)
    for name in ("mAP", "mAP_worst", "mMP@2"):
        np.testing.assert_array_equal(found.per_query[name], metrics.compute(name, ranks))
    nearest = top_k(*sides, 12)
    labels = task.queries.labels, task.gallery.labels
    np.testing.assert_array_equal(found.per_query["knn@2_t0.5"], knn_accuracy(nearest, *labels, 2, 0.5))
    counts = global_positive_counts(*sides, task.relevant)
    assert found.pooled["uap"] == metrics_global.uap(counts)
    assert found.pooled["recall_at_p90"] == metrics_global.recall_at_p90(counts)
    best = nearest.indices[:, 0]
    assert found.pooled["gap"] == metrics_global.gap(
        nearest.scores[:, 0].astype(np.float64), labels[1][best] == labels[0], np.ones(len(best), np.bool_)
    )
    values = metrics.compute("mAP", ranks)
    by_class = [values[labels[0] == label].mean() for label in range(4)]
    assert found.pooled["mAP_macro"] == pytest.approx(np.mean(by_class))
    assert found.per_query.keys() == {"mAP", "mAP_worst", "mMP@2", "knn@2_t0.5"}
    assert found.tie_band[0] <= values.mean() <= found.tie_band[1]


def test_more_neighbours_than_the_speed_is_measured_at_are_searched_anew(
    features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measuring.measure(features, ["knn@7"], CPU).per_query["knn@7"]
    monkeypatch.setattr("ssl_retrieval.measuring.SPEED_K", 2)
    np.testing.assert_array_equal(measuring.measure(features, ["knn@7"], CPU).per_query["knn@7"], whole)


def test_gap_settles_ties_by_the_queries_ids(features: Features) -> None:
    """All queries score 1 with everything, so that the order of ids alone decides."""
    first = np.array([1.0, 0.0, 0.0], np.float32)
    num_queries, num_gallery = len(features.task.queries), len(features.task.gallery)
    tied = dataclasses.replace(
        features, queries=np.tile(first, (num_queries, 1)), gallery=np.tile(first, (num_gallery, 1))
    )
    ids = np.array(features.task.queries.paths)
    relevant = [0 in list(indices) for indices in features.task.relevant]
    in_order = np.array(relevant)[np.argsort(ids)]
    precision = in_order.cumsum() / np.arange(1, num_queries + 1)
    expected = precision[in_order].sum() / num_queries
    assert measuring.measure(tied, ["gap"], CPU).pooled["gap"] == pytest.approx(expected)
    measured = measuring.measure(tied, ["mAP"], CPU)
    assert measured.num_tied_queries == num_queries
    assert measured.tie_band == pytest.approx((sum((i + 1) / (10 + i) for i in range(3)) / 3, 1.0))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("knn@20", "metric 'knn@20' needs labels, and task 'bare' has none: leave it out"),
        ("mAP_macro", "metric 'mAP_macro' needs labels, and task 'bare' has none: leave it out"),
        ("uap_macro", "metric 'uap_macro': uap has no value per query to average over classes"),
        ("mAPP_macro", "unknown metric 'mAPP': the nearest known are mAP"),
        ("recall@p90", "unknown metric 'recall@p90': the nearest known are recall_at_p90"),
        ("knn@x", "unknown metric 'knn@x': write knn@20, or knn@20_t0.1 for another temperature"),
    ],
)
def test_what_a_task_cannot_have_is_refused(name: str, words: str, task: Task) -> None:
    def bare(images: Any) -> Any:
        return dataclasses.replace(images, labels=None, class_names=())

    unlabelled = dataclasses.replace(
        task, name="bare", queries=bare(task.queries), gallery=bare(task.gallery)
    )
    with pytest.raises(UserError) as caught:
        measuring.check(name, unlabelled)
    assert str(caught.value).startswith(words)


def test_too_many_ranks_are_not_kept(features: Features, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(measuring.measure(features, ["mAP"], CPU).ranks) == len(features.task.queries)
    monkeypatch.setattr("ssl_retrieval.measuring.MAX_RANKS", 8 * 3 - 1)
    assert measuring.measure(features, ["mAP"], CPU).ranks == ()


def test_a_report_holds_ties_classes_and_the_means_of_each(features: Features, tmp_path: Path) -> None:
    report = score_features(features, ["mAP", "hit_rate@1"]).report
    assert report.info["tie_band"]["mAP"][0] <= np.mean(report.per_query["mAP"]) + 1e-12
    write_report(report, tmp_path / "report.json")
    back = read_report(tmp_path / "report.json")
    assert back.query_classes == report.query_classes
    for kept, indices, value in zip(back.ranks, features.task.relevant, back.per_query["mAP"], strict=True):
        assert len(kept) == len(indices)
        assert value == pytest.approx(np.mean(np.arange(1, len(kept) + 1) / kept))
    assert set(back.query_classes) == set(features.task.queries.class_names)
    table = pd.read_parquet(tmp_path / "report.per_class.parquet")
    assert table["num_queries"].tolist() == [2] * 4
    assert table["mAP"].mean() == pytest.approx(report.per_query["mAP"].mean())
