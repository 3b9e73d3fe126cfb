"""Crops against torchvision's: where they lie, and what becomes of the pixels."""

import numpy as np
import pytest
import torch
from pictures import CHANCE, pictures
from scipy import stats
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2 import functional as tvf

from ssl_retrieval.counter_random import uniform
from ssl_retrieval.crops import crop, crop_boxes, crop_by_box, crop_by_matrix, resize_matrix


def boxes_in(count: int, height: int, width: int) -> Tensor:
    return crop_boxes(uniform(0, 3, torch.arange(count), 0, 30), height, width, (0.2, 0.9))


def theirs(images: Tensor, boxes: Tensor, size: int, flips: Tensor, interpolation: str) -> Tensor:
    mode = InterpolationMode(interpolation)
    crops = [
        tvf.resized_crop(image, *box, [size, size], interpolation=mode, antialias=True)
        for image, box in zip(images, boxes.tolist(), strict=True)
    ]
    flipped = [c.flip(2) if flip else c for c, flip in zip(crops, flips.tolist(), strict=True)]
    return torch.stack(flipped)


SIZES = pytest.mark.parametrize(
    ("height", "width", "size"), [(32, 32, 24), (20, 50, 24), (50, 20, 8), (90, 70, 64)]
)
INTERPOLATIONS = pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
FLIPS = torch.tensor([False, True, True, False, False, True])


@INTERPOLATIONS
@SIZES
def test_crops_image_by_image_are_torchvisions_bit_by_bit(
    height: int, width: int, size: int, interpolation: str
) -> None:
    images, boxes = pictures(6, height, width), boxes_in(6, height, width)
    got = crop_by_box(images, boxes, size, FLIPS, interpolation)
    assert torch.equal(got, theirs(images, boxes, size, FLIPS, interpolation))
    last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(crop_by_box(last, boxes, size, FLIPS, interpolation), got)


@SIZES
def test_crops_by_matrix_are_torchvisions_of_float_images_rounded(height: int, width: int, size: int) -> None:
    images, boxes = pictures(6, height, width), boxes_in(6, height, width)
    got = crop_by_matrix(images, boxes, size, FLIPS, "bilinear")
    expected = theirs(images.float(), boxes, size, FLIPS, "bilinear")
    torch.testing.assert_close(got.float(), expected, atol=0.502, rtol=0)


@INTERPOLATIONS
@SIZES
def test_crops_by_matrix_are_within_rounding_of_8_bits(
    height: int, width: int, size: int, interpolation: str
) -> None:
    # 8 bits are rounded after each of the two passes; bicubic weights of up to 1.14 pass the first on.
    images, boxes = pictures(6, height, width), boxes_in(6, height, width)
    got = crop_by_matrix(images, boxes, size, FLIPS, interpolation).float()
    expected = theirs(images, boxes, size, FLIPS, interpolation).float()
    torch.testing.assert_close(got, expected, atol=2.0 if interpolation == "bicubic" else 1.0, rtol=0)


@INTERPOLATIONS
def test_weights_sum_to_1_and_stay_inside_the_box(interpolation: str) -> None:
    start, length = torch.tensor([0, 3, 10]), torch.tensor([40, 7, 1])
    weights = resize_matrix(start, length, 40, 16, interpolation)
    torch.testing.assert_close(weights.sum(2), torch.ones(3, 16))
    assert weights[1, :, :3].eq(0).all()
    assert weights[1, :, 10:].eq(0).all()
    assert weights[2, :, 10].eq(1).all()


@pytest.mark.parametrize("side", [16, 64])
def test_small_and_large_images_go_their_own_ways_to_the_same_crop(side: int) -> None:
    images, boxes = pictures(6, side, side), boxes_in(6, side, side)
    got = crop(images, boxes, side, FLIPS, "bilinear")
    assert got.dtype == torch.uint8
    assert got.is_contiguous()
    expected = theirs(images, boxes, side, FLIPS, "bilinear").float()
    torch.testing.assert_close(got.float(), expected, atol=1.1, rtol=0)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_nothing(threads: int) -> None:
    images, boxes = pictures(15, 80, 60), boxes_in(15, 80, 60)
    flips = torch.arange(15) % 2 == 0
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = crop_by_box(images, boxes, 64, flips, "bilinear")
    finally:
        torch.set_num_threads(before)
    assert torch.equal(got, theirs(images, boxes, 64, flips, "bilinear"))


def their_boxes(count: int, height: int, width: int, scale: tuple[float, float]) -> np.ndarray:
    torch.manual_seed(0)
    transform = RandomResizedCrop(8, scale=scale)
    image = torch.empty(3, height, width)
    found = [transform.make_params([image]) for _ in range(count)]
    return np.array([[box[key] for key in ("top", "left", "height", "width")] for box in found])


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [(128, 128, (0.08, 1.0)), (128, 128, (0.2, 1.0)), (100, 180, (0.05, 0.4)), (180, 100, (0.5, 1.0))],
)
def test_crop_boxes_are_distributed_as_torchvisions(
    height: int, width: int, scale: tuple[float, float]
) -> None:
    ours = crop_boxes(uniform(0, 0, torch.arange(20_000), 0, 30), height, width, scale).numpy()
    theirs = their_boxes(4_000, height, width, scale)
    assert (ours >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    for column, name in enumerate(("top", "left", "height", "width")):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > CHANCE, name
    area, their_area = (boxes[:, 2] * boxes[:, 3] for boxes in (ours, theirs))
    assert stats.ks_2samp(area, their_area).pvalue > CHANCE
    ratio, their_ratio = (boxes[:, 3] / boxes[:, 2] for boxes in (ours, theirs))
    assert stats.ks_2samp(ratio, their_ratio).pvalue > CHANCE


def test_the_place_of_a_crop_is_independent_of_its_size_and_across_of_down() -> None:
    top, left, h, w = crop_boxes(uniform(1, 0, torch.arange(20_000), 0, 30), 200, 200, (0.08, 0.5)).T.numpy()
    across, down = left / (200 - w), top / (200 - h)
    for one, other in ((across, down), (across, h), (down, w), (across, w), (down, h)):
        assert stats.spearmanr(one, other).pvalue > CHANCE


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(10, 100, [0, 43, 10, 13]), (100, 10, [43, 0, 13, 10]), (30, 40, [0, 0, 30, 40])],
)
def test_an_image_in_which_no_crop_fits_gives_its_centre(height: int, width: int, box: list[int]) -> None:
    # The whole area at an aspect ratio that a long image does not have.
    draws = torch.ones(1, 30) * (1 - 2**-24)
    draws[:, 10:20] = 0.0
    got = crop_boxes(draws, height, width, (1.0, 1.0))
    assert got.tolist() == [box]
    assert box == their_boxes(1, height, width, (1.0, 1.0))[0].tolist()


@pytest.mark.parametrize("side", [8, 31, 32, 33, 224, 1000, 4097])
@pytest.mark.parametrize("value", [0.0, 1 - 2**-24])
def test_the_least_and_the_largest_draw_stay_inside(side: int, value: float) -> None:
    top, left, h, w = crop_boxes(torch.full((1, 30), value), side, side, (0.08, 0.3))[0].tolist()
    assert min(top, left) >= 0
    assert max(top + h, left + w) <= side
