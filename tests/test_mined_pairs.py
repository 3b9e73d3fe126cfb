"""Pairs found without labels, against loops over all images and a dense solver of the diffusion."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ssl_retrieval.mined_pairs import ALPHA, GAMMA, hard_positives, mutual_neighbours
from ssl_retrieval.types import VectorArray


def photos(count: int, seed: int) -> VectorArray:
    drawn = np.random.default_rng(seed).standard_normal((count, 5)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def nearest(vectors: VectorArray, k: int) -> list[list[int]]:
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    return [[int(i) for i in np.argsort(-row, kind="stable")[:k] if row[i] > -np.inf] for row in scores]


@settings(max_examples=60, deadline=None)
@given(count=st.integers(2, 20), k=st.integers(1, 6), spared=st.integers(0, 8), seed=st.integers(0, 99))
def test_mutual_neighbours_are_among_each_others_nearest(count: int, k: int, spared: int, seed: int) -> None:
    vectors = photos(count, seed)
    near = nearest(vectors, k)
    found = mutual_neighbours(vectors, k, spared)
    wanted = [[a, b] for a in range(count) for b in range(a + 1, count) if b in near[a] and a in near[b]]
    assert found.pairs.tolist() == wanted
    assert [[i for i in row if i >= 0] for row in found.nearest.tolist()] == nearest(vectors, spared)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(5, 16), k=st.integers(1, 4), seed=st.integers(0, 99))
@example(count=7, k=3, seed=65)  # an image with a twin that nothing else reaches
def test_hard_positives_are_reached_by_diffusion_and_not_nearest(count: int, k: int, seed: int) -> None:
    vectors = photos(count, seed)
    near = nearest(vectors, k)
    cosines = np.maximum(vectors @ vectors.T, 0).astype(np.float64) ** GAMMA
    listed = np.zeros((count, count), bool)
    for image, row in enumerate(near):
        listed[image, row] = True
    sure, possible = set(), set()
    for image in range(count):
        weights = np.where(listed & listed.T, cosines, 0)
        weights[image] = weights[:, image] = 0
        roots = np.array([d**-0.5 if d > 1e-9 else 0.0 for d in weights.sum(axis=1)])
        seeds = np.where(listed[image], cosines[image], 0)
        reached = np.linalg.solve(np.eye(count) - ALPHA * roots[:, None] * weights * roots, seeds)
        # The solver stops at a residual of a millionth, and no eigenvalue of its system is below 1 - ALPHA.
        # So each value is as near as half of this, and two that are nearer than this may stand either way.
        unsure = 2 * 1e-6 / (1 - ALPHA) * np.linalg.norm(seeds)
        last, next_one = np.sort(reached)[::-1][k - 1 : k + 1]
        others = [i for i in range(count) if i != image and i not in near[image]]
        sure |= {tuple(sorted((image, i))) for i in others if reached[i] > next_one + unsure}
        possible |= {tuple(sorted((image, i))) for i in others if reached[i] > max(last - unsure, 1e-9)}
    found = hard_positives(vectors, k, spared=3)
    assert sure <= {tuple(pair) for pair in found.pairs.tolist()} <= possible
    assert found.nearest.shape == (count, 3)


def test_a_chain_of_similar_images_gives_a_hard_positive() -> None:
    """Steps along an arc of equal angles, and a far group: the second next is reached, not similar."""
    angles = np.array([0.0, 0.2, 0.41, 0.63, 0.86, 2.5, 2.52, 2.55])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert [0, 2] not in mutual_neighbours(vectors, 1, 0).pairs.tolist()
    found = hard_positives(vectors, k=2, spared=0).pairs.tolist()
    assert [1, 3] in found or [0, 3] in found
    assert not [pair for pair in found if (pair[0] < 5) != (pair[1] < 5)]


def test_images_without_features_are_nobodys_pair() -> None:
    vectors = np.concatenate([photos(6, 0), np.zeros((2, 5), np.float32)])
    assert mutual_neighbours(vectors, 5, 0).pairs.max() < 6
    assert hard_positives(vectors, 3, 0).pairs.max(initial=0) < 6


@pytest.mark.parametrize("find", [mutual_neighbours, hard_positives])
def test_the_same_vectors_give_the_same_pairs(find: object) -> None:
    assert callable(find)
    first, second = (find(photos(30, 1), 4, 6) for _ in range(2))
    assert (first.pairs == second.pairs).all()
    assert (first.nearest == second.nearest).all()
