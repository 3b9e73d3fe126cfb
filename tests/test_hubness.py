"""Hubness against plain loops and formulas."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ssl_retrieval.hubness import hubness, hubness_table, k_occurrences
from ssl_retrieval.postprocess import l2_normalize
from ssl_retrieval.search import top_k
from ssl_retrieval.types import Ranking


def searched(
    num_queries: int, num_gallery: int, dim: int, k: int, seed: int = 0, offset: float = 0
) -> Ranking:
    draw = np.random.default_rng(seed)
    queries, gallery = (
        l2_normalize((draw.normal(size=(n, dim)) + offset).astype(np.float32))
        for n in (num_queries, num_gallery)
    )
    return top_k(queries, gallery, k)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 15), st.integers(0, 99))
def test_occurrences_are_those_of_a_double_loop(queries: int, gallery: int, k: int, seed: int) -> None:
    ranking = searched(queries, gallery, 3, k, seed)
    counts = [0] * gallery
    for row in ranking.indices.tolist():
        for item in row:
            if item >= 0:
                counts[item] += 1
    assert k_occurrences(ranking, gallery).tolist() == counts


def test_measures_are_those_of_their_formulas() -> None:
    counts = np.random.default_rng(0).poisson(3, 500) * np.array([1, 1, 1, 6, 0] * 100)
    found = hubness(counts, k=5)
    mean = sum(counts.tolist()) / 500
    hubs = [c for c in counts.tolist() if c > 2 * mean]
    assert found.skewness == pytest.approx(stats.skew(counts))
    centred = counts - counts.mean()
    assert found.skewness == pytest.approx((centred**3).mean() / (centred**2).mean() ** 1.5)
    assert found.antihubs == sum(c == 0 for c in counts.tolist()) / 500
    assert (found.hubs, found.taken_by_hubs) == (len(hubs) / 500, sum(hubs) / counts.sum())
    surplus = sum(max(0.0, c - mean) for c in counts.tolist())
    assert found.robin_hood == pytest.approx(surplus / counts.sum())
    assert found.largest == counts.max()


def test_an_even_gallery_has_no_hubs() -> None:
    found = hubness(np.full(9, 4), k=4)
    assert (found.antihubs, found.hubs, found.taken_by_hubs, found.robin_hood) == (0, 0, 0, 0)
    assert np.isnan(found.skewness)


def test_a_common_direction_makes_hubs() -> None:
    # Whoever lies nearest to it is near to all; centring takes it away.
    rankings = {str(offset): searched(500, 500, 50, 10, offset=offset) for offset in (0.0, 0.5, 2.0)}
    table = hubness_table(rankings, 500)
    assert table["representation"].tolist() == ["0.0", "0.5", "2.0"]
    for measure in ("skewness", "antihubs", "robin_hood", "largest"):
        assert table[measure].is_monotonic_increasing
    assert table["k"].tolist() == [10, 10, 10]
