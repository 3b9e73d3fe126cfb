"""The best of a block against a stable sort."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_retrieval.score_keys import NOTHING, indices_of, scores_of
from ssl_retrieval.selecting import MARGIN, highest_keys


@given(
    seed=st.integers(0, 10**6),
    num=st.integers(1, 4 * MARGIN),
    k=st.integers(1, 3 * MARGIN),
    num_values=st.integers(1, 40),
)
def test_the_best_are_those_of_a_stable_sort(seed: int, num: int, k: int, num_values: int) -> None:
    rng = np.random.default_rng(seed)
    pool = np.r_[-np.inf, 0.0, -0.0, rng.standard_normal(num_values)].astype(np.float32)
    scores = rng.choice(pool, (5, num))
    keys = highest_keys(torch.from_numpy(scores), start=7, k=k)
    assert keys.shape == (5, min(k, num))
    for row, found in zip(scores, keys, strict=True):
        order = [column for column in np.argsort(-row, kind="stable") if row[column] > -np.inf][:k]
        kept = found[found != NOTHING]
        assert indices_of(kept).tolist() == [7 + column for column in order]
        assert (scores_of(kept).numpy() == row[order]).all()


def test_ties_beyond_the_margin_are_settled_by_index() -> None:
    scores = torch.zeros(2, 1000)
    scores[1, 900] = 1
    assert indices_of(highest_keys(scores, 0, 3)).tolist() == [[0, 1, 2], [900, 0, 1]]


def test_what_does_not_count_stays_out() -> None:
    scores = torch.full((1, 100), -torch.inf)
    scores[0, 60] = 0.5
    keys = highest_keys(scores, 0, 2)
    assert indices_of(keys[0, :1]).tolist() == [60]
    assert keys[0, 1] == NOTHING
