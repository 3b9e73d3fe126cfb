"""Each named transformation against Pillow or NumPy by hand, and what holds for all of them."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from ssl_retrieval.copy_transformations import TRANSFORMATIONS, apply, check, collage
from ssl_retrieval.errors import UserError


def photo(seed: int = 0, width: int = 120, height: int = 80) -> Image.Image:
    """Draw smooth noise."""
    noise = np.random.default_rng(seed).integers(256, size=(8, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def pixels(image: Image.Image) -> np.ndarray:
    """Give int64 [H, W, 3]."""
    return np.asarray(image).astype(np.int64)


def rng(seed: int = 0) -> np.random.Generator:
    """Give a generator in a known state."""
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_a_copy_is_rgb_differs_and_depends_on_the_generator_alone(name: str) -> None:
    image = photo()
    before = pixels(image)
    copy = apply(image, name, None, rng(3))
    assert copy.mode == "RGB"
    assert copy.size != image.size or (pixels(copy) != before).any()
    assert (pixels(image) == before).all()
    assert (pixels(apply(image, name, None, rng(3))) == pixels(copy)).all()


@pytest.mark.parametrize("name", TRANSFORMATIONS)
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (7, 3)])
def test_the_smallest_images_survive_every_strength(name: str, size: tuple[int, int]) -> None:
    of_name = TRANSFORMATIONS[name]
    for strength in (of_name.low + (of_name.high - of_name.low) / 1000, of_name.high):
        assert min(apply(photo(0, *size), name, strength, rng()).size) >= 1


def test_crop_keeps_a_window_of_the_wanted_area() -> None:
    image = photo()
    copy = apply(image, "crop", 0.25, rng(1))
    assert copy.size == (60, 40)
    windows = np.lib.stride_tricks.sliding_window_view(pixels(image), (40, 60, 3))[:, :, 0]
    assert (windows == pixels(copy)).all(axis=(2, 3, 4)).any()


def test_flip_gray_scale_blur_and_jpeg_are_pillows() -> None:
    image = photo()
    assert (pixels(apply(image, "flip", None, rng())) == pixels(ImageOps.mirror(image))).all()
    gray = pixels(apply(image, "gray", None, rng()))
    assert (gray == pixels(image.convert("L").convert("RGB"))).all()
    assert apply(image, "scale", 0.5, rng()).size == (60, 40)
    blurred = image.filter(ImageFilter.GaussianBlur(4))
    assert (pixels(apply(image, "blur", 5, rng())) == pixels(blurred)).all()
    file = io.BytesIO()
    image.save(file, "JPEG", quality=10)
    assert (pixels(apply(image, "jpeg", 10, rng())) == pixels(Image.open(file))).all()


def test_rotation_goes_to_either_side() -> None:
    image = photo()
    turned = {sign: pixels(image.rotate(sign * 30, Image.Resampling.BICUBIC)) for sign in (-1, 1)}
    copies = [pixels(apply(image, "rotate", 30, rng(seed))) for seed in range(20)]
    seen = {sign for copy in copies for sign, expected in turned.items() if (copy == expected).all()}
    assert seen == {-1, 1}


def test_brightness_goes_up_and_down_and_colour_keeps_the_light() -> None:
    image = photo()
    light = [pixels(apply(image, "brightness", 0.4, rng(seed))).mean() for seed in range(20)]
    assert min(light) < pixels(image).mean() < max(light)
    turned = apply(image, "color", 0.2, rng())
    value, before = (np.asarray(x.convert("HSV"))[..., 2].astype(int) for x in (turned, image))
    assert abs(value - before).max() <= 1


def test_text_is_written_over_some_of_it() -> None:
    changed = (pixels(apply(photo(), "text", 3, rng())) != pixels(photo())).any(axis=2).mean()
    assert 0.005 < changed < 0.7


def test_a_collage_shows_the_photo_small_on_the_other() -> None:
    image, other = photo(0), photo(1, 50, 90)
    made = pixels(collage(image, other, 0.25, rng(5)))
    small = pixels(image.resize((60, 40), Image.Resampling.BICUBIC))
    background = pixels(other.resize(image.size, Image.Resampling.BICUBIC))
    windows = np.lib.stride_tricks.sliding_window_view(made, (40, 60, 3))[:, :, 0]
    (top,), (left,) = np.nonzero((windows == small).all(axis=(2, 3, 4)))
    outside = np.ones((80, 120), bool)
    outside[top : top + 40, left : left + 60] = False
    assert (made[outside] == background[outside]).all()


@pytest.mark.parametrize(
    ("name", "strength", "words"),
    [
        ("corp", None, "one of crop"),
        ("crop", 0.0, "above 0 and at most 1"),
        ("crop", 1.5, "at most 1"),
        ("jpeg", 101, "JPEG quality"),
        ("rotate", float("nan"), "degrees"),
    ],
)
def test_users_mistakes_are_named(name: str, strength: float | None, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check(name, strength)
