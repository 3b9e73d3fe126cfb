"""Random numbers that depend on nothing but (seed, step, sample, view).

A generator with a state would tie an image's augmentation to the batch it came in, to the number of
workers and to everything drawn before. A hash of the counters does not: a resumed run, another chunk
size or another device draws the same numbers.
"""

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def uniform(seed: int, step: int, samples: Tensor, view: int, num: int) -> Tensor:
    """Draw ``num`` uniform numbers per sample by SplitMix64 (Steele, Lea & Flood, 2014).

    Args:
        seed: The run's seed.
        step: The training step.
        samples: int64 [B], which images.
        view: Which view of them.
        num: Numbers per image.

    Returns:
        float32 [B, num] in [0, 1), on the device of ``samples``.

    >>> a = uniform(0, 5, torch.tensor([3, 7]), 0, 2)
    >>> torch.equal(a[1], uniform(0, 5, torch.tensor([7]), 0, 2)[0])
    True
    """
    base = 0
    for counter in (seed, step, view):
        base = _mix_int((base + _GOLDEN + counter) & _MASK)
    state = _mix(samples.to(torch.int64) + _signed(base))
    positions = torch.arange(1, num + 1, device=samples.device) * _signed(_GOLDEN)
    bits = _mix(state[:, None] + positions[None, :])
    return _shift_right(bits, 40).to(torch.float32) / (1 << 24)


def _mix_int(value: int) -> int:
    value = ((value ^ (value >> 30)) * _MULTIPLIERS[0]) & _MASK
    value = ((value ^ (value >> 27)) * _MULTIPLIERS[1]) & _MASK
    return value ^ (value >> 31)


def _mix(values: Tensor) -> Tensor:
    values = (values ^ _shift_right(values, 30)) * _signed(_MULTIPLIERS[0])
    values = (values ^ _shift_right(values, 27)) * _signed(_MULTIPLIERS[1])
    return values ^ _shift_right(values, 31)


def _shift_right(values: Tensor, bits: int) -> Tensor:
    # torch shifts int64 arithmetically; the mask drops the copies of the sign bit.
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
