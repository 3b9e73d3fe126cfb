"""Decoding is checked against the pixels that were written, format by format."""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from ssl_retrieval import images as images_module
from ssl_retrieval.errors import ImageError, UserError
from ssl_retrieval.images import (
    content_digests,
    header_size,
    header_sizes,
    list_images,
    load_image,
    report_skipped,
    shrink,
)
from ssl_retrieval.types import ImageSet

# Corners of four colours, 24 x 16: tells every flip and rotation apart.
CORNERS = np.zeros((16, 24, 3), np.uint8)
CORNERS[:8, :12] = (200, 30, 40)
CORNERS[:8, 12:] = (20, 180, 60)
CORNERS[8:, :12] = (30, 50, 210)
CORNERS[8:, 12:] = (240, 220, 20)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(images_module, "say", lines.append)
    return lines


def pixels(path: Path) -> np.ndarray:
    image = load_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def write(path: Path, array: np.ndarray = CORNERS, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("a.png", {}, 0),
        ("a.bmp", {}, 0),
        ("a.ppm", {}, 0),
        ("a.tiff", {"compression": "tiff_lzw"}, 0),
        ("a.gif", {}, 0),
        ("a.webp", {"lossless": True}, 0),
        ("a.jpg", {"quality": 95, "subsampling": 0}, 6),
        ("a.jp2", {}, 0),
        ("a.avif", {"quality": 95, "subsampling": "4:4:4"}, 6),
    ],
)
def test_every_format_gives_its_pixels_back(
    tmp_path: Path, name: str, options: dict[str, Any], tolerance: int
) -> None:
    needs = {"a.webp": "webp", "a.jp2": "jpg_2000", "a.avif": "avif"}.get(name)
    if needs and not features.check(needs):
        pytest.skip(f"this Pillow is built without {needs}")
    decoded = pixels(write(tmp_path / name, **options)).astype(int)
    assert np.abs(decoded - CORNERS).max() <= tolerance


def test_content_decides_the_format_not_the_suffix(tmp_path: Path) -> None:
    Image.fromarray(CORNERS).save(tmp_path / "a.jpg", format="PNG")
    assert (pixels(tmp_path / "a.jpg") == CORNERS).all()


@pytest.mark.parametrize("name", ["a.jpg", "a.tiff"])
def test_cmyk(tmp_path: Path, name: str) -> None:
    image = Image.fromarray(CORNERS).convert("CMYK")
    image.save(tmp_path / name, quality=95)
    # For a JPEG, Pillow writes the Adobe marker with inverted inks, as Photoshop does.
    assert np.abs(pixels(tmp_path / name).astype(int) - CORNERS).max() <= 10


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.pgm"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, name: str) -> None:
    grey = np.linspace(0, 65535, 24 * 16).astype(np.uint16).reshape(16, 24)
    decoded = pixels(write(tmp_path / name, grey))
    assert np.abs(decoded[..., 0] - grey / 257).max() <= 0.5
    assert (decoded == decoded[..., :1]).all()


@pytest.mark.parametrize(
    ("grey", "expected"),
    [
        (np.array([[0, 65535, 257]], np.int32), [0, 255, 1]),
        (np.array([[-1000, 0, 1000]], np.int32), [0, 128, 255]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 100.0, 255.0]], np.float32), [0, 100, 255]),
        (np.array([[-3.0, 1.0, 7.0]], np.float32), [0, 102, 255]),
        (np.array([[np.nan, 1.0, np.inf]], np.float32), [0, 255, 0]),
        (np.array([[-5.0, -5.0, -5.0]], np.float32), [0, 0, 0]),
    ],
)
def test_grey_of_other_ranges(tmp_path: Path, grey: np.ndarray, expected: list[int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixels(write(tmp_path / "a.tiff", grey))[0, :, 0].tolist() == expected


def test_palette_without_transparency(tmp_path: Path) -> None:
    Image.fromarray(CORNERS).quantize(4).save(tmp_path / "a.png")
    assert (pixels(tmp_path / "a.png") == CORNERS).all()


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_transparent_palette_entry_becomes_white(tmp_path: Path, suffix: str) -> None:
    image = Image.fromarray(CORNERS).quantize(4)
    top_left = image.getpixel((0, 0))
    image.save(tmp_path / f"a.{suffix}", transparency=top_left)
    decoded = pixels(tmp_path / f"a.{suffix}")
    assert (decoded[:8, :12] == 255).all()
    assert (decoded[8:] == CORNERS[8:]).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_on_white(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (3, 1))
    for x, alpha in enumerate((0, 128, 255)):
        image.putpixel((x, 0), (0,) * (len(mode) - 1) + (alpha,))
    image.save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png")[0, :, 0].tolist() == [255, 127, 0]


def test_transparent_colour_of_an_rgb_png_becomes_white(tmp_path: Path) -> None:
    write(tmp_path / "a.png", transparency=tuple(int(value) for value in CORNERS[0, 0]))
    assert pixels(tmp_path / "a.png")[0, 0].tolist() == [255, 255, 255]
    assert pixels(tmp_path / "a.png")[0, -1].tolist() == CORNERS[0, -1].tolist()


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    # What a camera stores, so that the viewer's turn gives CORNERS back.
    stored = {
        1: CORNERS,
        2: CORNERS[:, ::-1],
        3: CORNERS[::-1, ::-1],
        4: CORNERS[::-1],
        5: CORNERS.transpose(1, 0, 2),
        6: np.rot90(CORNERS, 1),
        7: np.rot90(CORNERS, 2).transpose(1, 0, 2),
        8: np.rot90(CORNERS, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    write(tmp_path / f"a.{suffix}", np.ascontiguousarray(stored), exif=exif, **options)
    assert (pixels(tmp_path / f"a.{suffix}") == CORNERS).all()


def test_broken_exif_leaves_the_pixels_readable(tmp_path: Path) -> None:
    write(tmp_path / "a.png", exif=b"Exif\x00\x00not a TIFF header at all")
    assert (pixels(tmp_path / "a.png") == CORNERS).all()


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.fromarray(CORNERS), Image.fromarray(255 - CORNERS)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (pixels(tmp_path / "a.gif") == CORNERS).all()


@pytest.mark.parametrize("size", [(1, 1), (20000, 20), (20, 20000)])
def test_extreme_sizes_are_valid(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (1, 2, 3)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").size == size


def _reason(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert str(path.parent) not in str(caught.value)
    return str(caught.value)


def test_reasons_of_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("this is not an image\n")
    (tmp_path / "script.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (tmp_path / "folder.png").mkdir()
    assert _reason(tmp_path / "empty.png") == "empty file (0 bytes)"
    assert _reason(tmp_path / "text.png") == "not an image"
    assert _reason(tmp_path / "script.eps") == "not an image"
    assert _reason(tmp_path / "folder.png") == "is a folder"
    assert _reason(tmp_path / "nowhere.png") == "file does not exist"


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "tiff", "webp"])
def test_half_a_file_is_refused(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = write(tmp_path / f"whole.{suffix}", noise).read_bytes()
    (tmp_path / f"half.{suffix}").write_bytes(whole[: len(whole) // 2])
    reason = _reason(tmp_path / f"half.{suffix}")
    assert "\n" not in reason
    if suffix in ("jpg", "png", "bmp"):
        assert reason.startswith("truncated: ")


def test_permission_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    path = write(tmp_path / "a.png")
    monkeypatch.setattr(Path, "open", refuse)
    assert _reason(path) == "permission denied"


def test_too_large_is_refused_before_decoding_and_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("1", (20000, 5000)).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(tmp_path / "a.png").size == (20000, 5000)
        monkeypatch.setattr(images_module, "MAX_PIXELS", 99_999_999)
        assert _reason(tmp_path / "a.png").startswith("too large: 20000x5000 pixels")


def test_headers_are_read_without_decoding(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    whole = write(tmp_path / "whole.jpg", noise).read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no image")
    names = ("half.jpg", "empty.jpg", "text.jpg", "gone.jpg", "whole.jpg")
    assert header_size(tmp_path / "half.jpg") == (48, 64)
    assert header_sizes(ImageSet(tmp_path, names)) == [
        (48, 64),
        "empty file (0 bytes)",
        "not an image",
        "file does not exist",
        (48, 64),
    ]


def test_shrink_averages_instead_of_picking() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    reduced = np.asarray(shrink(Image.fromarray(stripes), 8))[2:-2, 2:-2]
    assert reduced.shape == (4, 4, 3)
    assert np.abs(reduced.astype(int) - 127).max() <= 3


def test_shrink_keeps_small_images_and_long_ones() -> None:
    image = Image.new("RGB", (20000, 20))
    assert shrink(image, 10).size == (10000, 10)
    assert shrink(image, 20) is image
    assert shrink(image, None) is image


def test_list_images_is_natural_and_skips_what_is_hidden(tmp_path: Path) -> None:
    for name in ("b/10.jpg", "b/2.JPG", "a.png", "b/.hidden.jpg", ".git/x.png", "__MACOSX/b/2.jpg", "n.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list_images(tmp_path) == ["a.png", "b/2.JPG", "b/10.jpg"]


def test_list_images_stays_inside_the_root(tmp_path: Path, said: list[str]) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    write(outside / "secret.png")
    write(root / "a.png")
    (root / "inside.png").symlink_to(root / "a.png")
    (root / "leaves.png").symlink_to(outside / "secret.png")
    (root / "folder").symlink_to(outside)
    (root / "loop").symlink_to(root)
    assert list_images(root) == ["a.png", "inside.png"]
    assert len(said) == 1
    assert "3 links not followed" in said[0]


def test_list_images_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        list_images(tmp_path / "nowhere")
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match="it has no files"):
        list_images(tmp_path / "b")
    (tmp_path / "b" / "1.heic").touch()
    (tmp_path / "b" / "2.heic").touch()
    with pytest.raises(UserError, match=r"suffixes seen: 2 \.heic"):
        list_images(tmp_path / "b")
    with pytest.raises(UserError, match="is a file"):
        list_images(tmp_path / "b" / "1.heic")


def test_content_digests_follow_the_bytes(tmp_path: Path) -> None:
    for name, text in (("a", "one"), ("b", "two"), ("c", "one")):
        (tmp_path / name).write_text(text)
    first, second, third, gone = content_digests(ImageSet(tmp_path, ("a", "b", "c", "d")))
    assert first == third != second
    assert len(first) == 32
    assert gone == "missing"


def test_report_skipped_names_ten(said: list[str]) -> None:
    report_skipped((), "the gallery")
    assert said == []
    report_skipped([(f"{i}.jpg", "not an image") for i in range(13)], "the gallery")
    assert said[0] == "13 unreadable images left out of the gallery:"
    assert said[1] == "  0.jpg: not an image"
    assert len(said) == 12
    assert said[-1] == "  … and 3 more"


def test_file_names_that_are_not_utf8_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "good.png")
    try:
        os.link(os.fsencode(tmp_path / "good.png"), os.fsencode(tmp_path) + b"/caf\xe9.png")
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    assert list_images(tmp_path) == ["good.png"]
    assert "1 files left out: names not in UTF-8" in capsys.readouterr().err
