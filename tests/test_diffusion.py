"""Diffusion against a dense solver."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_vectors import Sides, sides

from ssl_retrieval.diffusion import diffuse, diffusion_ranking, mutual_graph
from ssl_retrieval.neighbours import neighbours
from ssl_retrieval.search import top_k
from ssl_retrieval.similarity import Cosine
from ssl_retrieval.types import FloatArray, VectorArray

MANY = 1000
"""Iterations after which conjugate gradients have surely converged on so few images."""


def dense_weights(gallery: VectorArray, k: int, gamma: float) -> FloatArray:
    count = len(gallery)
    cosines = (gallery @ gallery.T).astype(np.float64)
    listed = np.zeros((count, count), bool)
    for image in range(count):
        ranked = sorted(set(range(count)) - {image}, key=lambda g: (-np.float32(cosines[image, g]), g))
        listed[image, ranked[:k]] = True
    return np.where(listed & listed.T, np.maximum(cosines, 0) ** gamma, 0)


def dense_solution(weights: FloatArray, seeds: FloatArray, alpha: float) -> FloatArray:
    degrees = weights.sum(axis=1)
    roots = np.array([d**-0.5 if d > 0 else 0.0 for d in degrees])
    system = np.eye(len(weights)) - alpha * roots[:, None] * weights * roots
    solution: FloatArray = np.linalg.solve(system, seeds)
    return solution


@settings(max_examples=60, deadline=None)
@given(made=sides(), k=st.integers(1, 15), gamma=st.sampled_from([1.0, 3.0]))
def test_the_graph_joins_mutual_neighbours(made: Sides, k: int, gamma: float) -> None:
    found = mutual_graph(made.gallery, k, gamma).weights.toarray()
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_allclose(found, dense_weights(made.gallery, k, gamma), atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    made=sides(exact=False),
    k=st.integers(1, 15),
    alpha=st.sampled_from([0.1, 0.9, 0.99]),
    seed=st.integers(0, 99),
)
def test_diffusion_is_the_solution(made: Sides, k: int, alpha: float, seed: int) -> None:
    graph = mutual_graph(made.gallery, k, 1.0)
    weights = graph.weights.toarray().astype(np.float64)
    seeds = np.random.default_rng(seed).random(len(made.gallery))
    expected = dense_solution(weights, seeds, alpha)
    np.testing.assert_allclose(diffuse(graph, seeds, alpha, MANY), expected, rtol=1e-3, atol=1e-4)
    # Taken out of the graph: rows, columns and degrees go.
    out = seed % len(made.gallery)
    weights[out] = weights[:, out] = seeds[out] = 0
    expected = dense_solution(weights, seeds, alpha)
    found = diffuse(graph, seeds, alpha, MANY, without=[out])
    assert found[out] == 0
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def ranking(made: Sides, top: int = 100, **options: Any) -> Any:
    given = {"gamma": 1.0, "alpha": 0.9, "iterations": MANY} | options
    near = neighbours(made.queries, made.gallery, 2, made.own)
    graph = mutual_graph(made.gallery, 3, given["gamma"])
    base = Cosine(made.queries, made.gallery)
    return diffusion_ranking(base, near, graph, top=top, own=made.own, **given)


@settings(max_examples=60, deadline=None)
@given(made=sides(exact=False), top=st.integers(1, 14))
def test_what_is_reached_comes_first_and_the_rest_in_the_old_order(made: Sides, top: int) -> None:
    found = ranking(made, top)
    count = len(made.gallery)
    scores = found.scores(slice(0, len(made.queries)))
    old = Cosine(made.queries, made.gallery).scores(slice(0, len(made.queries)))
    assert np.isfinite(scores).all()
    for row, query in enumerate(made.queries):
        own = made.own[row]
        weights = dense_weights(made.gallery, 3, 1.0)
        weights[own] = weights[:, own] = 0
        near = neighbours(made.queries, made.gallery, 2, made.own).matrix(1.0).toarray()[row]
        solution = dense_solution(weights, near.astype(np.float64), 0.9)
        first = [g for g in range(count) if scores[row, g] != old[row, g]]
        assert len(first) == min(top, int((solution > 1e-9).sum()))
        assert all(scores[row, g] > old[row].max() for g in first)
        by_score = sorted(first, key=lambda g: -scores[row, g])
        assert (np.diff(solution[by_score]) <= 1e-3).all()
        rest = sorted(set(range(count)) - set(first))
        assert (solution[rest] <= solution[by_score].min(initial=np.inf) + 1e-3).all()
        assert query.any() or not first


def test_a_chain_is_followed() -> None:
    angles = np.deg2rad([0, 25, 50, 75, 100, -80])
    gallery = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    query = gallery[:1]
    nothing = (np.empty(0, np.int64),)
    near = neighbours(query, gallery, 2, nothing)
    graph = mutual_graph(gallery, 2, 3.0)
    found = diffusion_ranking(
        Cosine(query, gallery), near, graph, gamma=3.0, alpha=0.99, iterations=20, top=6, own=nothing
    )
    before = top_k(query, gallery, 6).indices[0].tolist()
    after = top_k(found, None, 6).indices[0].tolist()
    assert before.index(5) < before.index(4), "the last of the chain looks less like the query"
    assert after.index(5) > after.index(4)


def test_a_query_in_the_gallery_is_no_bridge() -> None:
    """Two images whose only link is the query itself: without it nothing leads from one to the other."""
    angles = np.deg2rad([0, 40, -50])
    gallery = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    graph = mutual_graph(gallery, 2, 1.0)
    seeds = np.array([0.0, 1.0, 0.0])
    assert diffuse(graph, seeds, 0.9, MANY)[2] > 0.1
    assert diffuse(graph, seeds, 0.9, MANY, without=[0]).tolist() == pytest.approx([0, 1, 0])
