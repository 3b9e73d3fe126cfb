"""Against SplitMix64 in Python integers, and against what randomness has to look like."""

import numpy as np
import pytest
import torch
from scipy import stats

from ssl_retrieval.counter_random import uniform

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
CHANCE = 1e-4
"""Some thirty p-values are looked at below: one under this is no accident."""


def splitmix64(state: int) -> int:
    """The finalizer of Steele, Lea & Flood, in integers that cannot overflow."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & MASK
    return state ^ (state >> 31)


def draws(seed: int, step: int, num_samples: int, view: int, num: int) -> np.ndarray:
    return uniform(seed, step, torch.arange(num_samples), view, num).numpy()


def test_the_oracle_is_splitmix64() -> None:
    # The first outputs for state 0, as published with the reference implementation.
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [splitmix64(GOLDEN * i & MASK) for i in (1, 2, 3)] == published


@pytest.mark.parametrize(
    ("seed", "step", "view"), [(0, 0, 0), (1, 7, 1), (2**63 + 5, 10**9, 9), (-3, 2**40, 2)]
)
def test_it_equals_arithmetic_that_cannot_overflow(seed: int, step: int, view: int) -> None:
    samples = [0, 1, 12345, 2**31, 2**62, 2**63 - 1]
    base = 0
    for counter in (seed, step, view):
        base = splitmix64((base + GOLDEN + counter) & MASK)
    states = [splitmix64((sample + base) & MASK) for sample in samples]
    expected = [[(splitmix64((s + GOLDEN * k) & MASK) >> 40) / 2**24 for k in (1, 2, 3)] for s in states]
    got = uniform(seed, step, torch.tensor(samples), view, 3)
    assert got.dtype == torch.float32
    assert got.tolist() == expected


def test_an_image_draws_the_same_in_every_batch() -> None:
    whole = uniform(3, 11, torch.arange(64), 1, 5)
    some = torch.tensor([63, 0, 17, 17])
    assert torch.equal(uniform(3, 11, some, 1, 5), whole[some])
    assert torch.equal(uniform(3, 11, some.to(torch.int32), 1, 5), whole[some])
    assert torch.equal(uniform(3, 11, some, 1, 2), whole[some, :2])


@pytest.mark.parametrize("axis", ["sample", "step", "view", "seed", "position"])
def test_values_are_uniform_and_neighbours_unrelated_along(axis: str) -> None:
    n = 5_000
    if axis == "sample":
        line = draws(0, 0, n, 0, 1)[:, 0]
    elif axis == "position":
        line = draws(0, 0, 1, 0, n)[0]
    else:
        origin = {"seed": 0, "step": 0, "view": 0}
        line = np.array([draws(**origin | {axis: i}, num_samples=1, num=1)[0, 0] for i in range(n)])
    assert (line >= 0).all()
    assert (line < 1).all()
    assert stats.kstest(line, "uniform").pvalue > CHANCE
    for lag in (1, 2, 3):
        assert stats.pearsonr(line[:-lag], line[lag:]).pvalue > CHANCE, lag
    pairs, _, _ = np.histogram2d(line[:-1:2], line[1::2], bins=10)
    assert stats.chisquare(pairs.ravel()).pvalue > CHANCE


def test_counters_do_not_stand_in_for_one_another() -> None:
    numbers = [
        draws(seed, step, 4, view, 4).ravel() for seed in range(4) for step in range(4) for view in range(4)
    ]
    flat = np.concatenate(numbers)
    # 1,024 draws of 24 bits: one chance pair in thirty such tests, and a swapped counter would give hundreds.
    assert len(np.unique(flat)) >= len(flat) - 1
