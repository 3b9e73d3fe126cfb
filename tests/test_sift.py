"""RootSIFT: keypoints, descriptors, odd images."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from local_pictures import scene
from PIL import Image

from ssl_retrieval.sift import ByteArray, root_sift, sift


@given(hnp.arrays(np.uint8, st.tuples(st.integers(0, 4), st.just(128))))
def test_root_sift_against_its_definition(descriptors: ByteArray) -> None:
    rooted = root_sift(descriptors)
    assert rooted.dtype == np.float32
    assert rooted.shape == descriptors.shape
    for before, after in zip(descriptors.astype(np.float64), rooted, strict=True):
        expected = np.sqrt(before / before.sum()) if before.any() else before
        np.testing.assert_allclose(after, expected, rtol=1e-5)


def test_dot_products_of_root_sift_are_hellinger_kernels() -> None:
    first, second = sift(scene(0))[:2].astype(np.float64)
    kernel = np.sqrt(first / first.sum() * second / second.sum()).sum()
    rooted = root_sift(sift(scene(0))[:2])
    assert rooted[0] @ rooted[1] == pytest.approx(kernel, rel=1e-5)
    np.testing.assert_allclose(np.linalg.norm(rooted, axis=1), 1, rtol=1e-6)


def test_descriptors_are_opencvs_strongest_first() -> None:
    image = scene(1)
    keypoints, descriptors = cv2.SIFT.create().detectAndCompute(np.asarray(image.convert("L")), None)
    order = sorted(
        range(len(keypoints)),
        key=lambda i: (-keypoints[i].response, keypoints[i].pt[::-1], keypoints[i].size, keypoints[i].angle),
    )
    assert len(keypoints) > 60
    np.testing.assert_array_equal(sift(image), descriptors[order])
    few = sift(image, max_keypoints=20)
    assert few.shape == (20, 128)
    np.testing.assert_array_equal(few, descriptors[order[:20]])


def test_equally_strong_keypoints_do_not_exceed_the_limit() -> None:
    # Two copies of one picture: each keypoint has a twin of the same strength.
    half = np.asarray(scene(2, size=128).convert("L"))
    twins = Image.fromarray(np.concatenate([half, np.full((128, 128), 128, np.uint8), half], axis=1))
    for limit in (1, 3, 7, 31):
        assert len(sift(twins, max_keypoints=limit)) == limit


@pytest.mark.parametrize(
    "size", [(1, 1), (2, 3), (1, 300), (300, 1), (20000, 20), (20, 20000), (7, 9), (400, 30)]
)
@pytest.mark.parametrize("colour", ["black", "white", "grey"])
def test_images_without_a_keypoint(size: tuple[int, int], colour: str) -> None:
    descriptors = sift(Image.new("RGB", size, colour))
    assert descriptors.shape == (0, 128)
    assert descriptors.dtype == np.uint8
    assert root_sift(descriptors).shape == (0, 128)


def test_small_images_are_enlarged() -> None:
    small = scene(3).resize((32, 32))
    as_it_is, enlarged = sift(small, min_side=1), sift(small)
    assert len(enlarged) > 2 * len(as_it_is)
    np.testing.assert_array_equal(
        enlarged, sift(small.convert("L").resize((128, 128), Image.Resampling.BICUBIC))
    )


def test_large_images_are_reduced_and_the_long_side_goes_before() -> None:
    image = scene(4, size=256)
    reduced = image.convert("L").resize((100, 100), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(sift(image, min_side=1, max_side=100), sift(reduced, min_side=1))
    strip = image.convert("L").crop((0, 0, 256, 20))
    expected = sift(strip.resize((512, 40), Image.Resampling.BICUBIC), min_side=1)
    np.testing.assert_array_equal(sift(strip, min_side=128, max_side=512), expected)


def test_colour_does_not_matter_and_light_hardly() -> None:
    image = scene(5)
    np.testing.assert_array_equal(sift(image), sift(image.convert("L")))
    brighter = image.point(lambda value: round(20 + 0.8 * value))
    first, second = root_sift(sift(image)), root_sift(sift(brighter))
    nearest = (first @ second.T).max(axis=1)
    assert np.median(nearest) > 0.98
