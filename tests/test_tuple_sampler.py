"""Batches of whole tuples: each as often as any other, in its own order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_retrieval.errors import UserError
from ssl_retrieval.tuple_sampler import TupleSampler


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 8), st.integers(0, 5))
def test_an_epoch_shows_whole_tuples_once(count: int, length: int, per_batch: int, seed: int) -> None:
    per_batch = min(per_batch, count)
    tuples = torch.arange(count * length).reshape(count, length)
    sampler = TupleSampler(tuples, per_batch * length, seed)
    assert sampler.steps_per_epoch == count // per_batch
    for epoch in range(2):
        steps = range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch)
        rows = torch.cat([sampler.batch(step) for step in steps]).reshape(-1, length)
        firsts = rows[:, 0].tolist()
        assert len(set(firsts)) == len(firsts) == sampler.steps_per_epoch * per_batch
        assert torch.equal(rows, tuples[rows[:, 0] // length])


@pytest.mark.parametrize(
    ("shape", "batch_size", "words"),
    [
        ((9, 3), 8, "batch_size=8 is no multiple of 3, the images that belong together: set batch_size=6"),
        (
            (2, 3),
            9,
            "batch_size=9 needs 3 tuples of 3 images, and there are 2: lower batch_size to 6 or below",
        ),
    ],
)
def test_a_mistake_is_one_line(shape: tuple[int, int], batch_size: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        TupleSampler(torch.zeros(shape, dtype=torch.int64), batch_size, 0)
