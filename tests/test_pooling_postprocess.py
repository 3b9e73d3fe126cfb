"""Normalisation against loops that spell out the formulas."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ssl_retrieval.postprocess import l2_normalize

matrices = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


@given(matrices)
def test_rows_get_length_1_and_keep_their_direction(vectors: np.ndarray) -> None:
    normalised = l2_normalize(vectors)
    assert normalised.dtype == np.float32
    for before, after in zip(vectors.astype(np.float64), normalised.astype(np.float64), strict=True):
        length = np.sqrt((before**2).sum())
        expected = np.zeros_like(before) if length == 0 else before / length
        np.testing.assert_allclose(after, expected, rtol=1e-6, atol=1e-7)


@given(matrices)
def test_normalising_twice_changes_nothing(vectors: np.ndarray) -> None:
    once = l2_normalize(vectors)
    np.testing.assert_allclose(l2_normalize(once), once, atol=2e-7)


@given(matrices, st.integers(-20, 20))
def test_length_does_not_matter(vectors: np.ndarray, exponent: int) -> None:
    # By powers of two, which round nothing, as long as no element leaves float32's normal range.
    vectors = np.where(np.abs(vectors) < 1e-25, np.float32(0), vectors)
    np.testing.assert_array_equal(l2_normalize(np.ldexp(vectors, exponent)), l2_normalize(vectors))


def test_zero_rows_stay_zero() -> None:
    assert l2_normalize(np.zeros((2, 3), np.float32)).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_huge_and_tiny_values_neither_overflow_nor_vanish() -> None:
    vectors = np.array([[3e38, 3e38], [1e-44, 0], [3e38, 1e-44]], np.float32)
    np.testing.assert_allclose(l2_normalize(vectors), [[0.5**0.5, 0.5**0.5], [1, 0], [1, 0]], rtol=1e-6)


def test_no_rows() -> None:
    assert l2_normalize(np.empty((0, 4), np.float32)).shape == (0, 4)
