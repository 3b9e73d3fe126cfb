"""Hard negatives against a loop over the sorted gallery, and the rules that hold for all of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_retrieval import hard_negatives as module
from ssl_retrieval.errors import UserError
from ssl_retrieval.hard_negatives import hard_negatives
from ssl_retrieval.types import IntArray, VectorArray


def photos(count: int, seed: int) -> VectorArray:
    drawn = np.random.default_rng(seed).standard_normal((count, 6)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def naive(
    vectors: VectorArray,
    query: int,
    clusters: IntArray,
    count: int,
    pool: IntArray,
    spared: IntArray,
) -> list[int]:
    """Walk down the list, as the paper says it."""
    scores = vectors[pool] @ vectors[query]
    chosen: list[int] = []
    for place in np.argsort(-scores, kind="stable"):
        image = int(pool[place])
        taken = {clusters[query], *clusters[chosen]}
        if clusters[image] not in taken and image not in spared:
            chosen.append(image)
    return chosen[:count]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_negatives_are_the_nearest_of_other_clusters(data: st.DataObject) -> None:
    size = data.draw(st.integers(4, 40))
    seed = data.draw(st.integers(0, 99))
    draw = np.random.default_rng(seed)
    vectors = photos(size, seed)
    clusters = draw.integers(0, data.draw(st.integers(2, 12)), size)
    queries = np.sort(draw.permutation(size)[: data.draw(st.integers(1, size))])
    pool = np.sort(draw.permutation(size)[: data.draw(st.integers(1, size))])
    width = data.draw(st.integers(0, 4))
    # An image is spared once at most; "nothing" may stand anywhere.
    spared = np.stack([draw.permutation(size)[:width] for _ in queries]).reshape(len(queries), width)
    spared[draw.random(spared.shape) < 0.2] = -1
    count = data.draw(st.integers(1, 5))
    wanted = [
        naive(vectors, query, clusters, count, pool, row) for query, row in zip(queries, spared, strict=True)
    ]
    if any(len(row) < count for row in wanted):
        with pytest.raises(UserError, match=rf"method\.negatives={count}: an image has only"):
            hard_negatives(vectors, queries, clusters, count, pool=pool, spared=spared)
        return
    found = hard_negatives(vectors, queries, clusters, count, pool=pool, spared=spared)
    assert found.dtype == np.int64
    assert found.tolist() == wanted
    for query, row in zip(queries, found, strict=True):
        assert clusters[query] not in clusters[row]
        assert len(set(clusters[row])) == count


def test_one_large_cluster_is_passed_over_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = photos(400, 0)
    clusters = np.where(np.arange(400) < 380, 0, np.arange(400))
    queries = np.arange(0, 400, 7)
    whole = hard_negatives(vectors, queries, clusters, 5)
    none = np.empty(0, np.int64)
    for query, row in zip(queries, whole, strict=True):
        assert row.tolist() == naive(vectors, int(query), clusters, 5, np.arange(400), none)
    monkeypatch.setattr(module, "_ROWS", 3)
    assert (hard_negatives(vectors, queries, clusters, 5) == whole).all()
