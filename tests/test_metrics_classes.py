"""Means per class against plain loops and pytorch-metric-learning."""

import numpy as np
import pytest
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from ssl_retrieval.metrics import compute
from ssl_retrieval.metrics_classes import macro, per_class
from ssl_retrieval.search import relevant_ranks


def test_each_class_counts_its_queries_and_averages_those_that_have_a_value() -> None:
    values = {"mAP": np.array([1.0, 0.5, np.nan, np.nan, 0.2]), "mrr": np.array([1.0, 0.0, 0.0, np.nan, 1.0])}
    table = per_class(values, ["pear", "pear", "pear", "fig", "apple"])
    assert table.columns.tolist() == ["class", "num_queries", "mAP", "mrr"]
    assert table["class"].tolist() == ["apple", "fig", "pear"]
    assert table["num_queries"].tolist() == [1, 1, 3]
    np.testing.assert_allclose(table["mAP"], [0.2, np.nan, 0.75])
    np.testing.assert_allclose(table["mrr"], [1.0, np.nan, 1 / 3])


def test_macro_leaves_out_classes_without_a_value() -> None:
    assert macro(np.array([1.0, 0.5, np.nan, 0.25]), ["a", "a", "b", "c"]) == (0.75 + 0.25) / 2
    assert np.isnan(macro(np.array([np.nan]), ["a"]))


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("mAP@R_macro", "mean_average_precision_at_r"), ("precision@1_macro", "precision_at_1")],
)
def test_pytorch_metric_learnings_average_of_averages_agrees(name: str, theirs: str) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), [2, 3, 5, 9, 14])
    vectors = (rng.normal(size=(len(labels), 8)) + labels[:, None]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    itself = [np.array([i]) for i in range(len(labels))]
    same = [np.setdiff1d(np.flatnonzero(labels == label), [i]) for i, label in enumerate(labels)]
    values = compute(name.removesuffix("_macro"), relevant_ranks(vectors, vectors, same, itself))
    calculator = AccuracyCalculator(
        include=(theirs,), avg_of_avgs=True, k=len(labels) - 1, device=torch.device("cpu")
    )
    expected = calculator.get_accuracy(torch.from_numpy(vectors), torch.from_numpy(labels))[theirs]
    assert macro(values, [str(label) for label in labels]) == pytest.approx(expected, abs=1e-6)
    assert abs(values.mean() - expected) > 1e-3
