"""Scores and gallery indices as integers whose order is the ranking's.

A float32 score and a gallery index are packed into one int64 key: higher scores first, equal scores by lower
gallery index. Sorting, selecting and counting keys therefore settles ties without any second look.
"""

import torch
from torch import Tensor

LOW_BITS = 2**32 - 1
NOTHING = torch.iinfo(torch.int64).min
"""The key of an item that does not count: below the key of every score."""


def keys_of(scores: Tensor, indices: Tensor) -> Tensor:
    """Pack float32 scores and the gallery indices that belong to them (broadcast) into int64 keys.

    >>> first, second, third = keys_of(torch.tensor([0.5, -0.5, 0.5]), torch.arange(3)).tolist()
    >>> first > third > second
    True
    """
    # Adding zero turns -0.0 into 0.0, which must tie. Below zero, IEEE 754 stores sign and magnitude:
    # flipping the magnitude bits makes the integer order the order of the floats.
    bits = (scores + 0.0).view(torch.int32)
    bits ^= (bits >> 31) & 0x7FFFFFFF
    keys = bits.to(torch.int64)
    keys <<= 32
    keys |= LOW_BITS - indices
    return keys


def score_bits(keys: Tensor) -> Tensor:
    """Take the int32 part of int64 keys that orders like the scores."""
    return (keys >> 32).to(torch.int32)


def scores_of(keys: Tensor) -> Tensor:
    """Take the float32 scores back out of int64 keys."""
    bits = score_bits(keys)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(torch.float32)


def indices_of(keys: Tensor) -> Tensor:
    """Take the gallery indices back out of int64 keys."""
    return LOW_BITS - (keys & LOW_BITS)


def sort_rows(keys: Tensor) -> Tensor:
    """Sort each row ascending, in place where that is faster."""
    if keys.device.type != "cpu":
        return keys.sort(dim=1).values
    # NumPy sorts integers with SIMD, several times faster than torch.sort, which also makes indices.
    keys.numpy().sort(axis=1)
    return keys
