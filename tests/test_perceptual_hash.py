"""Hashes of pictures: against a direct transform, and on planted copies."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from ssl_retrieval import perceptual_hash
from ssl_retrieval.errors import UserError
from ssl_retrieval.perceptual_hash import (
    Hashes,
    code_of,
    distances,
    gather,
    hash_image,
    hash_images,
    low_frequencies,
    pairs_within,
)
from ssl_retrieval.types import ImageSet


def scene(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A picture with large shapes, as photos have."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def bits_between(one: Image.Image, other: Image.Image) -> int:
    codes = [hash_image(image) for image in (one, other)]
    assert codes[0] is not None
    assert codes[1] is not None
    return int(np.bitwise_count(codes[0][0] ^ codes[1][0]).sum())


def random_hashes(count: int, seed: int) -> Hashes:
    draw = np.random.default_rng(seed)
    # Few different bits, so that near codes are common.
    codes = [draw.choice(np.array([0, 1, 3, 255], np.uint8), (count, 8)) for _ in range(2)]
    return Hashes(codes[0], codes[1], draw.random(count) > 0.2)


def test_the_frequencies_are_those_of_the_cosine_transform() -> None:
    image = scene(0)
    grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), np.float64)
    place = np.arange(32)
    waves = np.sqrt(2 / 32) * np.cos(np.pi * np.outer(np.arange(9), 2 * place + 1) / 64)
    found = low_frequencies(image)
    assert found is not None
    np.testing.assert_allclose(found, (waves @ grey @ waves.T)[1:, 1:], atol=1e-9)
    assert np.unpackbits(code_of(found)).sum() == 32


def test_the_mirrored_code_is_that_of_the_mirrored_picture() -> None:
    for seed in range(20):
        image = scene(seed)
        ours, theirs = hash_image(image), hash_image(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
        assert ours is not None
        assert theirs is not None
        # Resizing rounds left and right a little differently.
        assert np.bitwise_count(ours[1] ^ theirs[0]).sum() <= 2


def test_copies_differ_in_few_bits_and_others_in_many() -> None:
    stream = io.BytesIO()
    scene(1).save(stream, "JPEG", quality=20)
    copies = [
        scene(1).resize((61, 47), Image.Resampling.BICUBIC),
        scene(1).resize((320, 240), Image.Resampling.NEAREST),
        Image.open(stream),
        scene(1).point(lambda value: value * 0.7),
        scene(1).filter(ImageFilter.GaussianBlur(2)),
    ]
    assert max(bits_between(scene(1), copy) for copy in copies) <= 4
    assert min(bits_between(scene(1), scene(seed)) for seed in range(2, 100)) > 10


def test_flat_pictures_have_no_hash() -> None:
    assert hash_image(Image.new("RGB", (50, 40), (9, 90, 200))) is None
    hashes = gather([None, hash_image(scene(1)), None])
    assert hashes.usable.tolist() == [False, True, False]
    left, right = pairs_within(hashes, hashes, 64)
    assert (left.tolist(), right.tolist()) == ([1], [1])


def test_unreadable_files_have_no_hash_and_boxes_count(tmp_path: Path) -> None:
    two = Image.new("RGB", (320, 120))
    two.paste(scene(3), (0, 0))
    two.paste(scene(4), (160, 0))
    two.save(tmp_path / "two.png")
    scene(4).save(tmp_path / "one.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    boxes = np.full((3, 4), np.nan, np.float32)
    boxes[0] = (160, 0, 320, 120)
    hashes = hash_images(ImageSet(tmp_path, ("two.png", "one.png", "broken.png"), boxes=boxes))
    assert hashes.usable.tolist() == [True, True, False]
    assert (hashes.codes[0] == hashes.codes[1]).all()


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 64), st.integers(0, 999))
def test_the_search_finds_what_a_double_loop_finds(num: int, others: int, limit: int, seed: int) -> None:
    first, second = random_hashes(num, seed), random_hashes(others, seed + 1)
    wanted = [
        (i, j)
        for i in range(num)
        for j in range(others)
        if first.usable[i]
        and second.usable[j]
        and min(
            sum(bin(int(a ^ b)).count("1") for a, b in zip(first.codes[i], code, strict=True))
            for code in (second.codes[j], second.mirrored[j])
        )
        <= limit
    ]
    left, right = pairs_within(first, second, limit)
    assert list(zip(left.tolist(), right.tolist(), strict=True)) == wanted
    bits, _ = distances(first, second, (left, right))
    assert (bits <= limit).all()


def test_blocks_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = random_hashes(50, 5), random_hashes(40, 6)
    whole = pairs_within(first, second, 12)
    monkeypatch.setattr(perceptual_hash, "_QUERY_BLOCK", 7)
    for once, again in zip(whole, pairs_within(first, second, 12), strict=True):
        np.testing.assert_array_equal(once, again)


def test_what_is_no_threshold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = random_hashes(20, 1)
    with pytest.raises(UserError, match="max_hamming=65"):
        pairs_within(hashes, hashes, 65)
    monkeypatch.setattr(perceptual_hash, "MAX_PAIRS", 10)
    with pytest.raises(UserError, match=r"more than 10 pairs pass max_hamming=64: .* be stricter"):
        pairs_within(hashes, hashes, 64)
