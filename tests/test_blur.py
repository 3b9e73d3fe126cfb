"""Blur against torchvision's, image by image."""

import pytest
import torch
from pictures import one_by_one, pictures
from torchvision.transforms.v2 import functional as tvf

from ssl_retrieval import blur
from ssl_retrieval.blur import gaussian_blur


@pytest.fixture(params=[False, True], ids=["convolution", "shifts"])
def shifts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Which way to blur; the compiler is left out, for it changes nothing but the time."""
    for name in ("_compiled_down", "_compiled_across"):
        monkeypatch.setattr(blur, name, getattr(blur, name).__wrapped__)
    return bool(request.param)


@pytest.mark.parametrize("kernel_size", [3, 9, 23])
def test_blur_is_torchvisions(kernel_size: int, shifts: bool) -> None:
    images = pictures(5, 40, 28).float() / 255
    sigma = torch.tensor([0.1, 0.5, 1.0, 1.5, 2.0])
    theirs = one_by_one(lambda image, s: tvf.gaussian_blur(image, [kernel_size] * 2, [s, s]), images, sigma)
    torch.testing.assert_close(gaussian_blur(images, sigma, kernel_size, shifts), theirs, atol=1e-5, rtol=0)


def test_sigma_0_leaves_an_image_as_it_is(shifts: bool) -> None:
    images = pictures(2, 40, 28).float() / 255
    blurred = gaussian_blur(images, torch.tensor([0.0, 2.0]), 9, shifts)
    assert torch.equal(blurred[0], images[0])
    assert not torch.allclose(blurred[1], images[1], atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_blur_in_half_precision_is_off_by_its_rounding(dtype: torch.dtype, shifts: bool) -> None:
    images, sigma = pictures(3, 40, 28).float() / 255, torch.tensor([0.5, 1.0, 2.0])
    half = gaussian_blur(images.to(dtype), sigma, 9, shifts)
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), gaussian_blur(images, sigma, 9), atol=6 * 2**-8, rtol=0)
