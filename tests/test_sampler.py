"""Batches follow from seed and step alone."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_retrieval.sampler import Sampler


@given(st.integers(2, 60), st.integers(1, 12), st.integers(0, 5))
def test_an_epoch_holds_every_image_at_most_once(num_images: int, batch_size: int, seed: int) -> None:
    batch_size = min(batch_size, num_images)
    sampler = Sampler(num_images, batch_size, seed)
    assert sampler.steps_per_epoch == num_images // batch_size
    for epoch in range(2):
        first = epoch * sampler.steps_per_epoch
        seen = torch.cat([sampler.batch(first + k) for k in range(sampler.steps_per_epoch)])
        assert len(seen.unique()) == len(seen) == sampler.steps_per_epoch * batch_size
        assert 0 <= int(seen.min()) <= int(seen.max()) < num_images


def test_any_step_can_be_asked_for_at_once() -> None:
    walked = Sampler(50, 8, 3)
    batches = [walked.batch(step) for step in range(30)]
    for step in (29, 0, 17):
        assert torch.equal(Sampler(50, 8, 3).batch(step), batches[step])


def test_epochs_and_seeds_differ() -> None:
    sampler = Sampler(100, 100, 0)
    assert not torch.equal(sampler.batch(0), sampler.batch(1))
    assert not torch.equal(sampler.batch(0), Sampler(100, 100, 1).batch(0))
