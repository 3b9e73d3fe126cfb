"""The pixels that a network sees are Pillow's but for rounding, and are normalised as torchvision does."""

import numpy as np
import pytest
import torch
from made_up_photos import photo
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from ssl_retrieval.network_input import InputSpec, Normalize

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
SIZES = [(320, 240), (240, 320), (90, 61), (40, 30), (1024, 768), (33, 500), (1, 1), (2, 3), (64, 64)]


def smooth(size: tuple[int, int], seed: int) -> Image.Image:
    """Shapes and shades as a photo has them: what is one pixel wide is faint."""
    image = photo((120, 110, 100), seed, (9, 7)).resize(size, Image.Resampling.BICUBIC)
    return Image.blend(image, photo((128, 128, 128), seed + 1, size), 0.15)


def by_pillow(spec: InputSpec, image: Image.Image) -> torch.Tensor:
    """Do the resize with Pillow, as timm does."""
    short = max(spec.size, int(spec.size / spec.crop))
    long_side = 4 * min(image.size)
    image = tvf.center_crop(image, [min(side, long_side) for side in image.size[::-1]])
    resized = tvf.resize(image, [short], InterpolationMode(spec.interpolation), antialias=True)
    pixels: torch.Tensor = tvf.pil_to_tensor(tvf.center_crop(resized, [spec.size, spec.size]))
    return pixels


def difference(spec: InputSpec, image: Image.Image) -> torch.Tensor:
    ours = spec.pixels(image)
    assert ours.dtype == torch.uint8
    return (ours.int() - by_pillow(spec, image).int()).abs()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop", [0.875, 1.0])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_are_pillows_but_for_rounding(size: tuple[int, int], crop: float, interpolation: str) -> None:
    spec = InputSpec(96, MEAN, STD, interpolation, crop)
    levels = difference(spec, smooth(size, seed=1))
    assert levels.shape == (3, 96, 96)
    # Values are rounded twice, once per direction, and bicubic weights enlarge the first error a little.
    assert levels.max() <= (1 if interpolation == "bilinear" else 2)
    assert (levels > 0).float().mean() < 0.03
    assert (levels > 1).float().mean() < 1e-4


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_even_black_and_white_noise_is_rounded_alike(interpolation: str) -> None:
    noise = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (61, 90, 3))
    levels = difference(InputSpec(96, MEAN, STD, interpolation, 0.875), Image.fromarray(noise))
    assert levels.max() <= 2
    assert (levels > 1).float().mean() < 0.001


def test_a_large_photo_is_as_pillows_too() -> None:
    assert difference(InputSpec(32, MEAN, STD), smooth((2400, 1800), seed=3)).max() <= 1


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_batches_are_normalised_as_torchvision_does(layout: torch.memory_format) -> None:
    batch = torch.randint(0, 256, (5, 3, 8, 6), dtype=torch.uint8).contiguous(memory_format=layout)
    got = Normalize(MEAN, STD)(batch)
    assert got.dtype == torch.float32
    assert got.is_contiguous(memory_format=layout)
    expected = tvf.normalize(tvf.to_dtype(batch, torch.float32, scale=True), list(MEAN), list(STD))
    torch.testing.assert_close(got, expected)


def test_what_is_normalised_already_is_left_alone() -> None:
    batch = torch.rand(2, 3, 4, 4)
    assert torch.equal(Normalize(MEAN, STD)(batch), batch)


def test_normalising_adds_nothing_to_a_networks_weights() -> None:
    assert Normalize(MEAN, STD).state_dict() == {}


def test_the_whole_input_is_the_normalised_pixels() -> None:
    spec = InputSpec(32, MEAN, STD)
    image = smooth((50, 40), seed=2)
    assert torch.equal(spec(image), Normalize(MEAN, STD)(spec.pixels(image)[None])[0])
