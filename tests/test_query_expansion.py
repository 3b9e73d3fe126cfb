"""Expanded queries and galleries against plain loops and scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from small_vectors import Sides, sides

from ssl_retrieval.postprocess import l2_normalize
from ssl_retrieval.query_expansion import augment_gallery, discriminative_queries, expand_queries
from ssl_retrieval.types import FloatArray, VectorArray


def looped(vector: VectorArray, gallery: VectorArray, n: int, alpha: float, own: set[int]) -> VectorArray:
    if not vector.any():
        return vector
    cosines = gallery.astype(np.float64) @ vector
    ranked = sorted(set(range(len(gallery))) - own, key=lambda g: (-cosines[g], g))[:n]
    total = vector.astype(np.float64)
    for item in ranked:
        total = total + (1.0 if alpha == 0 else max(cosines[item], 0.0) ** alpha) * gallery[item]
    return l2_normalize(total.astype(np.float32)[None])[0]


@settings(max_examples=80, deadline=None)
@given(made=sides(exact=False), n=st.integers(1, 15), alpha=st.sampled_from([0.0, 1.0, 3.0]))
def test_expansion_is_that_of_a_loop(made: Sides, n: int, alpha: float) -> None:
    found = expand_queries(made.queries, made.gallery, n, alpha, made.own)
    assert found.dtype == np.float32
    for row, query in enumerate(made.queries):
        expected = looped(query, made.gallery, n, alpha, set(made.own[row].tolist()))
        np.testing.assert_allclose(found[row], expected, atol=2e-3)


@settings(max_examples=80, deadline=None)
@given(made=sides(exact=False), n=st.integers(1, 15), alpha=st.sampled_from([0.0, 3.0]))
def test_augmentation_is_that_of_a_loop(made: Sides, n: int, alpha: float) -> None:
    found = augment_gallery(made.gallery, n, alpha)
    for row, image in enumerate(made.gallery):
        np.testing.assert_allclose(found[row], looped(image, made.gallery, n, alpha, {row}), atol=2e-3)


def test_opposite_images_count_in_the_average_and_not_with_alpha() -> None:
    query = np.array([[1, 0]], np.float32)
    gallery = np.array([[-0.6, 0.8]], np.float32)
    np.testing.assert_array_equal(expand_queries(query, gallery, 1, 3.0), query)
    np.testing.assert_allclose(expand_queries(query, gallery, 1, 0.0), l2_normalize(query + gallery))


def test_a_query_without_features_stays_so() -> None:
    gallery = np.eye(3, dtype=np.float32)
    nothing = np.zeros((1, 3), np.float32)
    assert not expand_queries(nothing, gallery, 2, 0.0).any()
    assert not discriminative_queries(nothing, gallery, 1, 1, 1.0).any()
    assert not augment_gallery(np.concatenate([gallery, nothing]), 2, 0.0)[3].any()


def squared_hinge(examples: FloatArray, signs: FloatArray, c: float) -> FloatArray:
    """Minimise |w|²/2 + c Σ max(0, 1 − y w·x)² directly."""

    def loss(w: FloatArray) -> float:
        slack = np.maximum(0, 1 - signs * (examples @ w))
        return float(w @ w / 2 + c * (slack**2).sum())

    found: FloatArray = minimize(loss, np.zeros(examples.shape[1]), tol=1e-10).x
    return found


@pytest.mark.parametrize("own", [True, False])
def test_discriminative_queries_are_those_of_another_solver(own: bool) -> None:
    generator = np.random.default_rng(3)
    gallery = l2_normalize(generator.normal(size=(60, 5)).astype(np.float32))
    queries = gallery[:3]
    places = [np.array([row] if own else [], np.int64) for row in range(3)]
    found = discriminative_queries(queries, gallery, 4, 20, 2.0, places)
    for row, query in enumerate(queries):
        order = [g for g in np.argsort(-(gallery @ query)) if not (own and g == row)]
        examples = np.concatenate([query[None], gallery[order[:4]], gallery[order[-20:]]])
        # LinearSVC punishes the offset too, as if it were one more feature that is always 1.
        examples = np.concatenate([examples, np.ones((25, 1))], axis=1).astype(np.float64)
        svm = squared_hinge(examples, np.r_[np.ones(5), -np.ones(20)], 2.0)
        expected = svm[:5] / np.linalg.norm(svm[:5])
        np.testing.assert_allclose(found[row], expected, atol=5e-3)


def test_positives_are_never_negatives() -> None:
    gallery = l2_normalize(np.array([[1, 0.1], [1, -0.1], [0.2, 1]], np.float32))
    query = np.array([[1, 0]], np.float32)
    np.testing.assert_array_equal(discriminative_queries(query, gallery, 3, 5, 1.0), query)
    found = discriminative_queries(query, gallery, 2, 5, 1.0)
    assert found[0, 0] > 0 > found[0, 1], "away from the only image that is left"
    twice = discriminative_queries(query, gallery, 2, 5, 1.0)
    np.testing.assert_array_equal(found, twice)
