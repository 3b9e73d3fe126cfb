"""Schedules as functions of one number: the share of the training that is done."""

import math


def cosine(progress: float, start: float, end: float) -> float:
    """Go from ``start`` to ``end`` along half a cosine.

    >>> [round(cosine(p, 0.996, 1.0), 4) for p in (0.0, 0.5, 1.0)]
    [0.996, 0.998, 1.0]
    """
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def linear(progress: float, start: float, end: float, until: float) -> float:
    """Go from ``start`` to ``end`` in a straight line over the share ``until``, then stay.

    >>> [round(linear(p, 0.04, 0.07, 0.3), 3) for p in (0.0, 0.15, 0.3, 1.0)]
    [0.04, 0.055, 0.07, 0.07]
    """
    return end if progress >= until else start + (end - start) * progress / until
