"""Which choices are not beaten in every respect by another one."""

import numpy as np
from numpy.typing import NDArray

from ssl_retrieval.types import FloatArray


def pareto_front(costs: FloatArray) -> NDArray[np.bool_]:
    """Mark the choices that no other beats.

    One beats another when it costs no more in any respect and less in at least one; equal choices do not
    beat each other.

    Args:
        costs: float64 [N, C], lower is better, no NaN; turn the sign of what should be high.

    Returns:
        bool [N].

    >>> pareto_front(np.array([[1.0, 3.0], [2.0, 2.0], [2.0, 3.0]])).tolist()
    [True, True, False]
    """
    assert costs.ndim == 2
    assert not np.isnan(costs).any()
    no_worse = (costs[:, None] <= costs[None]).all(axis=2)
    better = (costs[:, None] < costs[None]).any(axis=2)
    beaten: NDArray[np.int64] = (no_worse & better).sum(axis=0)
    return beaten == 0
