"""Clusters as labels, against blobs that anybody can tell apart and a naive loop."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from ssl_retrieval import pseudo_labels
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import IntArray, VectorArray


def unit(vectors: np.ndarray) -> VectorArray:
    found: VectorArray = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return found


def blobs(sizes: list[int], dim: int, noise: float, seed: int) -> tuple[VectorArray, IntArray]:
    draw = np.random.default_rng(seed)
    middles = unit(draw.normal(size=(len(sizes), dim)))
    labels = draw.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return unit(middles[labels] + noise * draw.normal(size=(len(labels), dim)) / np.sqrt(dim)), labels


@given(st.lists(st.integers(8, 30), min_size=2, max_size=6), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_blobs_are_hardly_mixed_up_by_clusters_that_are_more(sizes: list[int], seed: int) -> None:
    vectors, labels = blobs(sizes, dim=64, noise=0.3, seed=seed)
    found = pseudo_labels.cluster(vectors, 4 * len(sizes), seed)
    largest = [np.bincount(labels[found == number]).max() for number in range(4 * len(sizes))]
    assert sum(largest) >= 0.9 * len(labels)


def test_as_many_clusters_as_blobs_are_the_blobs() -> None:
    vectors, labels = blobs([40, 25, 60], dim=32, noise=0.3, seed=0)
    assert adjusted_rand_score(labels, pseudo_labels.cluster(vectors, 3, seed=1)) == 1.0


@given(st.integers(2, 25), st.integers(1, 25), st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_every_cluster_occurs_however_alike_images_are(count: int, different: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    vectors = unit(draw.normal(size=(different, 5)))[draw.integers(different, size=25)]
    found = pseudo_labels.cluster(vectors, count, seed)
    assert found.dtype == np.int64
    assert sorted(set(found.tolist())) == list(range(count))


def test_the_same_seed_gives_the_same_clusters() -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(200, 20)))
    first = pseudo_labels.cluster(vectors, 15, seed=3)
    assert (first == pseudo_labels.cluster(vectors, 15, seed=3)).all()
    assert (first != pseudo_labels.cluster(vectors, 15, seed=4)).any()


def test_an_empty_cluster_takes_the_image_that_lies_worst_and_empties_no_other() -> None:
    labels = np.array([0, 0, 0, 2, 4, 4])
    similarities = np.array([0.9, 0.5, 0.8, 0.1, 0.7, 0.6], np.float32)
    assert pseudo_labels._all_filled(labels, similarities, 5).tolist() == [0, 1, 0, 2, 4, 3]


def test_centres_are_mean_directions() -> None:
    vectors, labels = blobs([5, 9, 2], dim=6, noise=0.5, seed=2)
    wanted = unit(np.stack([vectors[labels == label].mean(axis=0) for label in range(3)]))
    np.testing.assert_allclose(pseudo_labels.centres(vectors, labels), wanted, rtol=1e-5, atol=1e-6)


def test_other_names_for_the_same_clusters_are_no_change() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2, 2])
    said = pseudo_labels.describe(labels, (labels + 1) % 3)
    assert said.endswith("NMI 1.00 with the last round, 0% of images changed company")
    assert pseudo_labels.describe(labels, None) == "3 clusters of 2 to 3 images, median 2"


def test_more_clusters_than_images_are_named() -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(30, 4)))
    with pytest.raises(UserError) as caught:
        pseudo_labels.cluster(vectors, 31, seed=0)
    assert str(caught.value).startswith("method.clusters=31: there are 30 training images")
    assert "\n" not in str(caught.value)
