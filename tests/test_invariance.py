"""Audits of made-up representations whose invariances are known, and the alterations themselves."""

from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image
from test_perceptual_hash import scene

from ssl_retrieval.alterations import ALTERATIONS, altered
from ssl_retrieval.invariance import audit
from ssl_retrieval.postprocess import l2_normalize
from ssl_retrieval.types import VectorArray

SCENES = [scene(seed, (64, 48)) for seed in range(12)]


def columns_mean(images: Sequence[Image.Image]) -> VectorArray:
    """Forget left and right: the mean colour of each row."""
    rows = [np.asarray(image.resize((64, 48)), np.float32).mean(axis=1).ravel() for image in images]
    return l2_normalize(np.array(rows) - 128)


def layout(images: Sequence[Image.Image]) -> VectorArray:
    """Keep where everything is."""
    grids = [np.asarray(image.resize((8, 6)), np.float32).ravel() for image in images]
    return l2_normalize(np.array(grids) - 128)


def mirrored(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


TWO = {"none": {"as it is": lambda image: image}, "flip": {"left-right": mirrored}}


def test_an_invariant_representation_notices_nothing() -> None:
    rows = np.arange(12)
    table = audit(columns_mean, SCENES, rows, columns_mean(SCENES), TWO)
    assert table["alteration"].tolist() == ["none", "flip"]
    np.testing.assert_allclose(table[["cosine", "kept", "hit_rate@1"]], 1, atol=1e-5)
    assert table["median_rank"].tolist() == [1, 1]


def test_a_representation_that_keeps_the_layout_is_broken_by_a_flip() -> None:
    table = audit(layout, SCENES, np.arange(12), layout(SCENES), TWO).set_index("alteration").to_dict()
    assert table["hit_rate@1"]["none"] == 1
    assert table["hit_rate@1"]["flip"] < 0.5
    assert abs(table["kept"]["flip"]) < 0.3
    assert table["low"]["flip"] <= table["hit_rate@1"]["flip"] <= table["high"]["flip"]


def test_numbers_are_those_of_plain_loops() -> None:
    rows, gallery = np.array([5, 0, 9]), layout(SCENES)
    chosen = [SCENES[row] for row in rows]
    table = audit(layout, chosen, rows, gallery, {"flip": {"left-right": mirrored}})
    altered = layout([mirrored(image) for image in chosen])
    own = [float(altered[i] @ gallery[row]) for i, row in enumerate(rows)]
    strangers = [float(gallery[a] @ gallery[b]) for a in rows for b in rows if a != b]
    ranks = [1 + int((gallery @ altered[i] > own[i]).sum()) for i in range(3)]
    assert table["cosine"][0] == pytest.approx(np.mean(own), abs=1e-6)
    stranger = np.mean(strangers)
    assert table["kept"][0] == pytest.approx((np.mean(own) - stranger) / (1 - stranger), abs=1e-5)
    assert table["hit_rate@1"][0] == np.mean([rank == 1 for rank in ranks])
    assert table["median_rank"][0] == np.median(ranks)


def test_a_representation_that_says_nothing_finds_nothing() -> None:
    def nothing(images: Sequence[Image.Image]) -> VectorArray:
        return np.zeros((len(images), 3), np.float32)

    table = audit(nothing, SCENES, np.arange(12), nothing(SCENES), TWO)
    assert table["hit_rate@1"].tolist() == [0, 0]
    assert table["median_rank"].tolist() == [12, 12]


def test_every_alteration_gives_a_picture_and_always_the_same() -> None:
    photo = scene(0, (320, 240))
    for name, strengths in ALTERATIONS.items():
        for strength, alter in strengths.items():
            once, again = alter(photo), alter(photo)
            assert once.mode == "RGB", (name, strength)
            assert once.tobytes() == again.tobytes(), (name, strength)
            assert once.tobytes() != photo.tobytes(), (name, strength)


def test_stronger_alterations_are_farther_from_the_original() -> None:
    vectors = layout(SCENES)
    for name in ("crop", "rotate", "jpeg", "brightness", "gray", "collage"):
        table = audit(layout, SCENES, np.arange(12), vectors, {name: ALTERATIONS[name]})
        assert table["cosine"].is_monotonic_decreasing, name


def test_what_is_random_depends_on_the_picture() -> None:
    np.testing.assert_array_equal(np.asarray(altered(SCENES[0], "flip", 1)), np.asarray(SCENES[0])[:, ::-1])
    # Where a crop lies: in a picture of gradients its mean colour tells.
    ramp = np.tile(np.arange(256, dtype=np.uint8), (40, 1))
    pictures = [
        Image.merge("RGB", [Image.fromarray(np.roll(ramp, i, axis=0) ^ np.uint8(i))] * 3) for i in range(8)
    ]
    means = {round(float(np.asarray(altered(picture, "crop", 0.25)).mean())) for picture in pictures}
    assert len(means) > 3
