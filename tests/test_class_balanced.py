"""Batches hold so many images of so many classes, however uneven the classes; seed and step decide."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_retrieval.class_balanced import ClassBalancedSampler
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import IntArray

SIZES = st.lists(st.integers(1, 30), min_size=2, max_size=12)


def labels_of(sizes: list[int], seed: int = 0) -> IntArray:
    labels = np.repeat(np.arange(len(sizes)) * 3, sizes)
    return np.random.default_rng(seed).permutation(labels).astype(np.int64)


@given(SIZES, st.integers(2, 4), st.integers(1, 5), st.integers(-1, 5))
def test_a_batch_has_so_many_images_of_so_many_classes(
    sizes: list[int], count: int, classes: int, seed: int
) -> None:
    large = [size for size in sizes if size >= count]
    labels = labels_of(sizes)
    if len(large) < classes:
        with pytest.raises(UserError, match=f"there are {len(large)}"):
            ClassBalancedSampler(labels, classes * count, count, seed)
        return
    sampler = ClassBalancedSampler(labels, classes * count, count, seed)
    assert sampler.num_left_out == len(sizes) - len(large)
    assert sampler.steps_per_epoch == max(1, sum(large) // (classes * count))
    for step in range(7):
        batch = sampler.batch(step)
        assert batch.dtype == torch.int64
        assert len(batch.unique()) == len(batch) == classes * count
        found = labels[batch.numpy()].reshape(classes, count)
        assert (found == found[:, :1]).all(), "images of a class stand together"
        assert len(np.unique(found)) == classes


@given(SIZES, st.integers(0, 5))
def test_classes_turn_up_equally_often_and_images_too(sizes: list[int], seed: int) -> None:
    sizes = [size + 2 for size in sizes]
    labels = labels_of(sizes)
    sampler = ClassBalancedSampler(labels, 2 * len(sizes), 2, seed)
    num_turns = 2 * max(sizes)
    seen = torch.cat([sampler.batch(step) for step in range(num_turns)]).numpy()
    assert (np.bincount(labels[seen])[::3] == 2 * num_turns).all()
    for label, size in zip(np.unique(labels), sizes, strict=True):
        turns = seen[labels[seen] == label]
        whole = size // 2 * 2
        for shuffle in range(len(turns) // whole):
            once = turns[shuffle * whole : (shuffle + 1) * whole]
            assert len(np.unique(once)) == whole, "no image twice before the others"


def test_any_step_can_be_asked_for_at_once() -> None:
    labels = labels_of([5, 9, 20, 4, 7])
    walked = ClassBalancedSampler(labels, 8, 4, 3)
    batches = [walked.batch(step) for step in range(30)]
    for step in (29, 0, 17):
        assert torch.equal(ClassBalancedSampler(labels, 8, 4, 3).batch(step), batches[step])
    assert not torch.equal(ClassBalancedSampler(labels, 8, 4, 4).batch(0), batches[0])


@pytest.mark.parametrize(
    ("batch_size", "count", "words"),
    [
        (
            96,
            4,
            "needs 24 classes of at least 4 images, and there are 3: lower batch_size to 12",
        ),
        (10, 4, "batch_size=10 is no multiple of images_per_class=4: set batch_size=8"),
        (3, 4, "set batch_size=4"),
        (100, 50, "are 0: lower images_per_class"),
    ],
)
def test_more_than_the_data_hold_is_one_line(batch_size: int, count: int, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        ClassBalancedSampler(labels_of([5, 9, 20, 3]), batch_size, count, 0)
    assert "\n" not in str(caught.value)
