"""A photo much larger than needed is decoded at a fraction of its size, to nearly the same pixels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_retrieval.images import load_image, load_reduced


def smooth(width: int, height: int) -> Image.Image:
    """A picture like a photo: soft shapes, edges and a little noise."""
    draw = np.random.default_rng(0)
    shapes = Image.fromarray(draw.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    soft = np.asarray(shapes.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    soft[height // 3 :, width // 4 : width // 2] += 60
    return Image.fromarray(np.clip(soft + draw.normal(0, 6, soft.shape), 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "a.jpg"
    smooth(1201, 902).save(path, quality=90)
    return path


@pytest.mark.parametrize(
    ("at_least", "size"),
    [(8, (150, 113)), (56, (150, 113)), (57, (300, 226)), (225, (600, 451)), (226, (1201, 902))],
)
def test_a_large_jpeg_is_decoded_no_finer_than_needed(
    large: Path, at_least: int, size: tuple[int, int]
) -> None:
    reduced = load_image(large, at_least)
    assert reduced.size == size
    assert min(reduced.size) >= 2 * at_least


def test_a_small_jpeg_is_decoded_as_stored(large: Path) -> None:
    for at_least in (226, 451, 902, 5000):
        assert (np.asarray(load_image(large, at_least)) == np.asarray(load_image(large))).all()


@pytest.mark.parametrize("at_least", [50, 100, 200])
def test_a_reduced_decode_resizes_to_nearly_the_same_pixels(large: Path, at_least: int) -> None:
    size = (at_least * 4 // 3, at_least)
    both = [load_image(large, least).resize(size, Image.Resampling.BICUBIC) for least in (None, at_least)]
    full, reduced = (np.asarray(image).astype(int) for image in both)
    assert np.abs(full - reduced).mean() < 1.0
    assert np.abs(full - reduced).max() < 10


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_decode_is_turned_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth(480, 320).save(tmp_path / "a.jpg", exif=exif, quality=95)
    full = load_image(tmp_path / "a.jpg")
    asked: list[tuple[int, int]] = []

    def factor(width: int, height: int) -> int:
        asked.append((width, height))
        return 5

    reduced, size = load_reduced(tmp_path / "a.jpg", factor)
    assert [size] == asked == [full.size] == [(480, 320) if orientation < 5 else (320, 480)]
    assert reduced.size == (full.width // 4, full.height // 4)
    expected = np.asarray(full.resize(reduced.size, Image.Resampling.BOX)).astype(int)
    assert np.abs(np.asarray(reduced) - expected).mean() < 2.0


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_jpegs_are_reduced_too(tmp_path: Path, mode: str) -> None:
    smooth(480, 320).convert(mode).save(tmp_path / "a.jpg", quality=95)
    reduced = load_image(tmp_path / "a.jpg", 40)
    assert reduced.mode == "RGB"
    assert reduced.size == (120, 80)
    expected = np.asarray(load_image(tmp_path / "a.jpg").resize((120, 80), Image.Resampling.BOX)).astype(int)
    assert np.abs(np.asarray(reduced) - expected).mean() < 2.0


def test_only_jpegs_are_reduced(tmp_path: Path) -> None:
    for name, rotated in (("a.png", False), ("b.png", True)):
        exif = Image.Exif()
        exif[0x0112] = 6 if rotated else 1
        Image.new("RGB", (24, 16)).save(tmp_path / name, exif=exif)
        image, full = load_reduced(tmp_path / name, lambda *_: 8)
        assert image.size == full == ((16, 24) if rotated else (24, 16))
