"""k-reciprocal re-ranking against plain loops over sets and dictionaries."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from small_vectors import Sides, sides

from ssl_retrieval.k_reciprocal import encode_gallery, reciprocal_similarity
from ssl_retrieval.types import FloatArray

Weights = dict[int, float]


class Loops:
    """The paper's algorithm for one query beside a gallery that is encoded on its own."""

    def __init__(self, made: Sides, k1: int, k2: int) -> None:
        self.made, self.k1, self.k2 = made, k1, k2
        self.images = [g for g in range(len(made.gallery)) if made.gallery[g].any()]
        self.cosines = made.gallery.astype(np.float64) @ made.gallery.T
        self.half = {g: self.reciprocal(g, round(k1 / 2)) for g in self.images}
        self.plain = {g: self.encode(self.reciprocal(g, k1), self.cosines[g], set()) for g in self.images}
        self.averaged = {
            g: average([self.plain[g], *(self.plain[h] for h in self.near(g)[: k2 - 1])]) for g in self.images
        }

    def near(self, g: int) -> list[int]:
        others = [h for h in range(len(self.made.gallery)) if h != g]
        ranked = sorted(others, key=lambda h: (-np.float32(self.cosines[g, h]), h))[: self.k1]
        return [h for h in ranked if h in self.images]

    def within(self, g: int, k: int) -> list[int]:
        return self.near(g)[:k]

    def reciprocal(self, g: int, k: int) -> set[int]:
        return {g, *(h for h in self.within(g, k) if g in self.within(h, k))}

    def encode(self, members: set[int], cosines: FloatArray, own: set[int]) -> Weights:
        joined = set(members)
        for member in members:
            candidate = self.half[member] - own
            if len(candidate & members) > 2 / 3 * len(candidate):
                joined |= candidate
        weights = {g: math.exp(cosines[g] - 1) for g in joined}
        return {g: w / sum(weights.values()) for g, w in weights.items()}

    def query(self, row: int) -> Weights:
        made = self.made
        own = set(made.own[row].tolist())
        if not made.queries[row].any():
            return {}
        cosines = made.cosines[row]
        others = [g for g in range(len(made.gallery)) if g not in own]
        ranked = sorted(others, key=lambda g: (-np.float32(cosines[g]), g))[: self.k1]
        near = [g for g in ranked if g in self.images]
        mutual = set()
        for g in near:
            everyone = [self.cosines[g, h] for h in range(len(made.gallery)) if h != g]
            better = sorted(everyone, reverse=True)
            if len(better) < self.k1 or cosines[g] >= better[self.k1 - 1] - 1e-6:
                mutual.add(g)
        plain = self.encode(mutual, cosines, own)
        parts = [plain, *(self.plain[g] for g in near[: self.k2 - 1])]
        struck = {g: w for g, w in average(parts).items() if g not in own}
        return average([struck])


def average(parts: list[Weights]) -> Weights:
    total: Weights = {}
    for part in parts:
        for place, weight in part.items():
            total[place] = total.get(place, 0.0) + weight
    return {place: weight / sum(total.values()) for place, weight in total.items()}


def jaccard(one: Weights, other: Weights) -> float:
    places = set(one) | set(other)
    shared = sum(min(one.get(p, 0.0), other.get(p, 0.0)) for p in places)
    union = sum(max(one.get(p, 0.0), other.get(p, 0.0)) for p in places)
    return shared / union if union else 0.0


def without_zeros(made: Sides) -> Sides:
    kept = made.gallery.any(axis=1)
    gallery = made.gallery.copy()
    gallery[~kept] = np.eye(gallery.shape[1], dtype=np.float32)[0]
    return Sides(made.queries, gallery, made.own)


@settings(max_examples=150, deadline=None)
@given(
    made=sides(exact=False),
    k1=st.integers(1, 8),
    k2=st.integers(1, 5),
    weight=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_scores_are_those_of_loops(made: Sides, k1: int, k2: int, weight: float) -> None:
    made = without_zeros(made)
    loops = Loops(made, k1, k2)
    encoded = encode_gallery(made.gallery, k1, k2)
    for image, expected in loops.averaged.items():
        row = encoded.averaged[[image]].toarray()[0]
        np.testing.assert_allclose(row, [expected.get(g, 0.0) for g in range(len(row))], atol=1e-5)
    found = reciprocal_similarity(made.queries, encoded, weight, made.own)
    scores = found.scores(slice(0, found.num_queries))
    assert scores.dtype == np.float32
    for row in range(len(made.queries)):
        mine = loops.query(row)
        for g in range(len(made.gallery)):
            expected_score = (1 - weight) * jaccard(mine, loops.averaged[g]) + weight * made.cosines[row, g]
            assert abs(scores[row, g] - expected_score) < 1e-4


@settings(max_examples=60, deadline=None)
@given(made=sides(), k1=st.integers(1, 15), k2=st.integers(1, 8))
def test_zeros_and_duplicates(made: Sides, k1: int, k2: int) -> None:
    encoded = encode_gallery(made.gallery, k1, k2)
    sums = np.asarray(encoded.averaged.sum(axis=1)).ravel()
    np.testing.assert_allclose(sums, made.gallery.any(axis=1), atol=1e-9)
    scores = reciprocal_similarity(made.queries, encoded, 0.3, made.own)
    whole = scores.scores(slice(0, len(made.queries)))
    assert np.isfinite(whole).all()
    assert (whole[:, ~made.gallery.any(axis=1)] == 0).all()
    assert (whole[~made.queries.any(axis=1)] == 0).all()
    for row in range(len(made.queries)):
        np.testing.assert_array_equal(scores.scores(slice(row, row + 1))[0], whole[row])


def test_lambda_1_is_the_old_similarity() -> None:
    generator = np.random.default_rng(0)
    gallery = generator.normal(size=(30, 4)).astype(np.float32)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    nothing = (np.empty(0, np.int64),) * 3
    found = reciprocal_similarity(gallery[:3], encode_gallery(gallery, 5, 2), 1.0, nothing)
    np.testing.assert_array_equal(found.scores(slice(0, 3)), gallery[:3] @ gallery.T)


def test_one_sided_neighbours_are_put_behind() -> None:
    """The gallery's hub is nearest to the query, but has many that are nearer to it than the query is."""
    angles = np.deg2rad([0.0, 1, -1, 2, -2, 3, -3, 40, 42, 44])
    gallery = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    at = np.deg2rad(21.2)
    query = np.array([[np.cos(at), np.sin(at)]], np.float32)
    found = reciprocal_similarity(query, encode_gallery(gallery, 3, 1), 0.0, (np.empty(0, np.int64),))
    old, new = (gallery @ query[0]), found.scores(slice(0, 1))[0]
    assert old[5] > old[7]
    assert new[7] > new[5] == 0
