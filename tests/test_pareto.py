"""The Pareto front against two loops."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from ssl_retrieval.pareto import pareto_front
from ssl_retrieval.types import FloatArray


def beats(one: list[float], other: list[float]) -> bool:
    no_worse = all(mine <= its for mine, its in zip(one, other, strict=True))
    return no_worse and any(mine < its for mine, its in zip(one, other, strict=True))


@given(
    arrays(
        np.float64, array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.integers(0, 4).map(float)
    )
)
def test_nobody_on_the_front_is_beaten_and_all_others_are(costs: FloatArray) -> None:
    rows = costs.tolist()
    wanted = [not any(beats(other, row) for other in rows) for row in rows]
    assert pareto_front(costs).tolist() == wanted
    assert any(wanted)


def test_equal_choices_stay_together() -> None:
    assert pareto_front(np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 3.0]])).tolist() == [True, True, False]


def test_no_choice_at_all() -> None:
    assert pareto_front(np.empty((0, 3))).tolist() == []
