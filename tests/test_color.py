"""Colour operations against torchvision's for the same parameters, and the fused chain against them."""

from collections.abc import Callable
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import one_by_one, pictures
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from ssl_retrieval import color

OPERATIONS = (tvf.adjust_brightness, tvf.adjust_contrast, tvf.adjust_saturation, tvf.adjust_hue)


@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high"),
    [
        (color.adjust_brightness, tvf.adjust_brightness, 0.0, 2.0),
        (color.adjust_contrast, tvf.adjust_contrast, 0.0, 2.0),
        (color.adjust_saturation, tvf.adjust_saturation, 0.0, 2.0),
        (color.adjust_hue, tvf.adjust_hue, -0.5, 0.5),
    ],
)
def test_colour_operations_are_torchvisions(
    ours: Callable[[Tensor, Tensor], Tensor],
    theirs: Callable[[Tensor, float], Tensor],
    low: float,
    high: float,
) -> None:
    images = pictures(9).float() / 255
    values = torch.linspace(low, high, 9)
    # The tolerance is that of float32 over a dozen operations; one step of 8 bits would be 4e-3.
    torch.testing.assert_close(ours(images, values), one_by_one(theirs, images, values), atol=1e-5, rtol=0)


def test_grayscale_is_torchvisions() -> None:
    images = pictures(4).float() / 255
    torch.testing.assert_close(color.grayscale(images), tvf.rgb_to_grayscale(images), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("operation", "value"),
    [
        (color.adjust_brightness, 1.3),
        (color.adjust_contrast, 0.7),
        (color.adjust_saturation, 1.4),
        (color.adjust_hue, 0.1),
    ],
)
def test_colour_operations_in_half_precision_are_off_by_its_rounding(
    operation: Callable[[Tensor, Tensor], Tensor], value: float, dtype: torch.dtype
) -> None:
    images, values = pictures(4).float() / 255, torch.full((4,), value)
    half = operation(images.to(dtype), values)
    assert half.dtype == dtype
    # bfloat16 keeps 8 bits; a handful of roundings add up, and hue divides by small differences.
    close = torch.isclose(half.float(), operation(images, values), atol=8 * 2**-8, rtol=0)
    assert close.float().mean() > 0.99


def test_the_fused_chain_equals_the_operations_in_every_order() -> None:
    orders = torch.tensor(list(permutations(range(4))))
    images = pictures(24)
    generator = torch.Generator().manual_seed(0)
    factors = 0.2 + 1.6 * torch.rand(24, 4, generator=generator)
    factors[:, 3] = torch.rand(24, generator=generator) - 0.5
    everyone, nobody = torch.ones(24, dtype=torch.bool), torch.zeros(24, dtype=torch.bool)
    expected = []
    for image, values, order in zip(images.float() / 255, factors.tolist(), orders.tolist(), strict=True):
        for number in order:
            image = OPERATIONS[number](image, values[number])
        expected.append(image)
    fused = color.fused(images, color.slots(factors, orders, everyone, nobody))
    torch.testing.assert_close(fused, torch.stack(expected), atol=1e-4, rtol=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_the_fused_chain_equals_jitter_and_grey_for_any_draw(seed: int, turns: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (12, 3, 9, 7), generator=generator, dtype=torch.uint8)
    factors = 2 * torch.rand(12, 4, generator=generator)
    factors[:, 3] = (torch.rand(12, generator=generator) - 0.5) * turns
    order = torch.rand(12, 4, generator=generator).argsort(dim=1)
    chosen, grey = torch.rand(2, 12, generator=generator) < 0.5
    expected = color.jitter(images.float() / 255, factors, order, chosen, (True, True, True, turns))
    expected[grey] = color.grayscale(expected[grey]).expand(-1, 3, -1, -1)
    fused = color.fused(images, color.slots(factors, order, chosen, grey, turns))
    torch.testing.assert_close(fused, expected, atol=2e-4, rtol=0)


def test_an_image_that_is_not_chosen_keeps_its_values() -> None:
    images = pictures(5)
    nobody = torch.zeros(5, dtype=torch.bool)
    factors, order = torch.full((5, 4), 0.3), torch.arange(4).expand(5, -1)
    fused = color.fused(images, color.slots(factors, order, nobody, nobody))
    torch.testing.assert_close(fused, images.float() / 255)


def test_solarize_inverts_the_bright_half_of_the_chosen_images() -> None:
    images = pictures(4).float() / 255
    chosen = torch.tensor([True, False, True, False])
    expected = torch.where(chosen[:, None, None, None], tvf.solarize(images, 0.5), images)
    assert torch.equal(color.solarize(images, chosen), expected)
