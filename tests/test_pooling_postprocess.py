"""Pooling and normalisation against loops that spell out the formulas."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ssl_retrieval import pooling
from ssl_retrieval.errors import UserError
from ssl_retrieval.postprocess import l2_normalize

MAPS = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))

matrices = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


def values_at(maps: torch.Tensor, image: int, channel: int) -> list[float]:
    return [float(value) for row in maps[image, channel] for value in row]


def test_avg_is_the_mean_over_positions() -> None:
    for image in range(2):
        for channel in range(3):
            values = values_at(MAPS, image, channel)
            assert pooling.avg(MAPS)[image, channel].item() == pytest.approx(sum(values) / 20, abs=1e-6)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, 4.5])
def test_gem_is_the_generalised_mean_over_positions(p: float) -> None:
    for image in range(2):
        for channel in range(3):
            values = [max(value, 1e-6) for value in values_at(MAPS, image, channel)]
            expected = (sum(value**p for value in values) / 20) ** (1 / p)
            assert pooling.gem(MAPS, p=p)[image, channel].item() == pytest.approx(expected, rel=1e-5)


def test_gem_with_p_1_is_the_average_of_the_cut_activations() -> None:
    torch.testing.assert_close(pooling.gem(MAPS, p=1.0), pooling.avg(MAPS.clamp(min=1e-6)))


def test_gem_grows_with_p_towards_the_maximum() -> None:
    maps = MAPS.abs() + 0.1
    largest = maps.amax(dim=(2, 3))
    pooled = [pooling.gem(maps, p=p) for p in (1.0, 3.0, 10.0, 60.0)]
    for lower, higher in zip(pooled, [*pooled[1:], largest], strict=True):
        assert (lower <= higher + 1e-5).all()
    torch.testing.assert_close(pooled[-1], largest, rtol=0.06, atol=0)


def test_gem_of_nothing_active_is_tiny_and_has_a_finite_gradient() -> None:
    maps = torch.full((1, 2, 3, 3), -5.0, requires_grad=True)
    pooled = pooling.gem(maps)
    pooled.sum().backward()
    assert maps.grad is not None
    assert torch.isfinite(maps.grad).all()
    torch.testing.assert_close(pooled, torch.full((1, 2), 1e-6))


def test_pooling_does_not_depend_on_where_things_are() -> None:
    turned = MAPS.flip(2).transpose(2, 3)
    torch.testing.assert_close(pooling.gem(turned), pooling.gem(MAPS))
    torch.testing.assert_close(pooling.avg(turned), pooling.avg(MAPS))


def test_poolings_by_name() -> None:
    assert pooling.get("gem") is pooling.gem
    with pytest.raises(UserError, match=r"model\.pool='gme': use one of model, avg, gem"):
        pooling.get("gme")


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
