"""Batches of whole tuples: each as often as any other, in its own order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_retrieval.errors import UserError
from ssl_retrieval.tuple_sampler import TupleSampler


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 8), st.integers(0, 5), st.integers(1, 30))
def test_at_any_time_all_tuples_were_shown_equally_often(
    count: int, length: int, per_step: int, seed: int, steps: int
) -> None:
    per_step = min(per_step, count)
    tuples = torch.arange(count * length).reshape(count, length)
    sampler = TupleSampler(tuples, per_step * length, seed)
    assert sampler.steps_per_epoch == count // per_step
    rows = torch.cat([sampler.batch(step) for step in range(steps)]).reshape(-1, length)
    assert torch.equal(rows, tuples[rows[:, 0] // length])
    shown = torch.bincount(rows[:, 0] // length, minlength=count)
    assert int(shown.sum()) == steps * per_step
    assert int(shown.max() - shown.min()) <= (steps * per_step % count > 0)


def test_each_pass_has_an_order_of_its_own_that_follows_the_seed() -> None:
    tuples = torch.arange(60).reshape(20, 3)
    first, again, other = (TupleSampler(tuples, 30, seed) for seed in (0, 0, 1))
    passes = [torch.cat([first.batch(2 * turn), first.batch(2 * turn + 1)]) for turn in range(2)]
    assert not torch.equal(passes[0], passes[1])
    assert torch.equal(first.batch(3), again.batch(3))
    assert not torch.equal(first.batch(3), other.batch(3))


def test_too_few_tuples_are_one_line() -> None:
    words = "batch_size=9 needs 3 tuples of 3 images, and there are 2: lower batch_size to 6 or below"
    with pytest.raises(UserError, match=words):
        TupleSampler(torch.zeros((2, 3), dtype=torch.int64), 9, 0)
