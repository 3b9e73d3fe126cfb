"""Every operation against torchvision's for the same parameters, and the parameters against its draws."""

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import ColorJitter, RandomResizedCrop
from torchvision.transforms.v2 import functional as tvf

from ssl_retrieval import augment
from ssl_retrieval.augment import Augment, View, crop_boxes, make_views
from ssl_retrieval.counter_random import uniform
from ssl_retrieval.errors import UserError

PLAIN = Augment(crop_min=1.0, flip=0.0, jitter=0.0, grayscale=0.0)
EVERYTHING = Augment(blur=0.5, solarize=0.5)
CHANCE = 1e-4
"""Some twenty p-values are looked at below: one under this is no accident."""


def pictures(count: int, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    """Smooth in places and hard in others, with pure grey, black and white among them."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)
    images[:, :, : height // 4] = images[:, :1, : height // 4]
    images[:, :, -2:] = 255
    images[:, :, :2] = 0
    return images


def view_of(images: Tensor, cfg: Augment, size: int = 32, step: int = 0, first: int = 0) -> Tensor:
    samples = torch.arange(first, first + len(images))
    return make_views(
        images, [View(cfg, size)], seed=0, step=step, samples=samples, mean=(0, 0, 0), std=(1, 1, 1)
    )[0]


def one_by_one(operation: Callable[[Tensor, float], Tensor], images: Tensor, values: Tensor) -> Tensor:
    return torch.stack([operation(image, float(value)) for image, value in zip(images, values, strict=True)])


@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high"),
    [
        (augment.adjust_brightness, tvf.adjust_brightness, 0.0, 2.0),
        (augment.adjust_contrast, tvf.adjust_contrast, 0.0, 2.0),
        (augment.adjust_saturation, tvf.adjust_saturation, 0.0, 2.0),
        (augment.adjust_hue, tvf.adjust_hue, -0.5, 0.5),
    ],
)
def test_colour_operations_are_torchvisions(
    ours: Callable[[Tensor, Tensor], Tensor],
    theirs: Callable[[Tensor, float], Tensor],
    low: float,
    high: float,
) -> None:
    images = pictures(9).float() / 255
    values = torch.linspace(low, high, 9)
    # The tolerance is that of float32 over a dozen operations; one step of 8 bits would be 4e-3.
    torch.testing.assert_close(ours(images, values), one_by_one(theirs, images, values), atol=1e-5, rtol=0)


def test_grayscale_is_torchvisions() -> None:
    images = pictures(4).float() / 255
    torch.testing.assert_close(augment.grayscale(images), tvf.rgb_to_grayscale(images), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kernel_size", [3, 9, 23])
def test_blur_is_torchvisions(kernel_size: int) -> None:
    images = pictures(5, 40, 28).float() / 255
    sigma = torch.tensor([0.1, 0.5, 1.0, 1.5, 2.0])
    theirs = one_by_one(lambda image, s: tvf.gaussian_blur(image, [kernel_size] * 2, [s, s]), images, sigma)
    torch.testing.assert_close(augment.gaussian_blur(images, sigma, kernel_size), theirs, atol=1e-5, rtol=0)


def test_solarize_is_torchvisions() -> None:
    images = pictures(4)
    images[0, 0, 0, :3] = torch.tensor([127, 128, 129], dtype=torch.uint8)
    scaled = images.float() / 255
    torch.testing.assert_close(
        view_of(images, replace(PLAIN, solarize=1.0)), tvf.solarize(scaled, 0.5), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(("size", "side"), [(32, 3), (96, 9), (224, 23)])
def test_the_blur_of_a_view_is_about_a_tenth_wide(size: int, side: int) -> None:
    cfg = replace(PLAIN, blur=1.0, blur_sigma_min=2.0, blur_sigma_max=2.0)
    images = pictures(2, size, size)
    expected = tvf.gaussian_blur(images.float() / 255, [side, side], [2.0, 2.0])
    torch.testing.assert_close(view_of(images, cfg, size), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 50), (50, 20)])
def test_crops_are_torchvisions_resized_crops(height: int, width: int, interpolation: str) -> None:
    images = pictures(6, height, width)
    cfg = replace(PLAIN, crop_min=0.2, crop_max=0.9, interpolation=interpolation)
    draws = uniform(0, 3, torch.arange(6), 0, 30)
    boxes = crop_boxes(draws, height, width, (0.2, 0.9)).tolist()
    mode = InterpolationMode(interpolation)
    expected = torch.stack(
        [
            tvf.resized_crop(image, *box, [24, 24], interpolation=mode, antialias=True)
            for image, box in zip(images, boxes, strict=True)
        ]
    )
    got = view_of(images, cfg, 24, step=3)
    assert torch.equal(got, expected.float() / 255)


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


def captured_jitter(monkeypatch: pytest.MonkeyPatch, cfg: Augment, count: int) -> dict[str, dict[int, tuple]]:
    """Run a jitter and note for each operation: image -> (turn, factor)."""
    calls: dict[str, dict[int, tuple]] = {}
    turn = 0
    for name in ("adjust_brightness", "adjust_contrast", "adjust_saturation", "adjust_hue"):
        calls[name] = {}

        def note(images: Tensor, values: Tensor, name: str = name) -> Tensor:
            nonlocal turn
            for image, value in zip(images[:, 0, 0, 0].tolist(), values.tolist(), strict=True):
                calls[name][round(image)] = (turn, value)
            turn += 1
            return images

        monkeypatch.setattr(augment, name, note)
    # The pixels carry the image's number through: every operation above leaves them alone.
    numbers = torch.arange(count, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(-1, 3, 1, 1).clone()
    rest = uniform(0, 0, torch.arange(count), 0, 46)[:, 30:]
    augment._jitter(numbers, cfg, chosen=rest[:, 1] < cfg.jitter, factors=rest[:, 2:6], order=rest[:, 6:10])
    return calls


def test_jitter_draws_factors_and_orders_as_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = Augment(jitter=0.8, brightness=0.4, contrast=1.5, saturation=0.8, hue=0.2)
    calls = captured_jitter(monkeypatch, cfg, 10_000)
    torch.manual_seed(0)
    theirs = ColorJitter(cfg.brightness, cfg.contrast, cfg.saturation, cfg.hue)
    params = [theirs.make_params([]) for _ in range(4_000)]
    keys = ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")
    for ours, key in zip(calls.values(), keys, strict=True):
        drawn = [value for _, value in ours.values()]
        assert stats.ks_2samp(drawn, [float(p[key]) for p in params]).pvalue > CHANCE, key
    chosen = [set(of_image) for of_image in calls.values()]
    assert all(images == chosen[0] for images in chosen), "an image gets all four operations or none"
    assert stats.binomtest(len(chosen[0]), 10_000, 0.8).pvalue > CHANCE
    orders = [tuple(np.argsort([of[image][0] for of in calls.values()])) for image in chosen[0]]
    counts = [orders.count(order) for order in permutations(range(4))]
    assert sum(counts) == len(chosen[0])
    assert stats.chisquare(counts).pvalue > CHANCE


def test_jitter_applies_what_it_drew() -> None:
    images = pictures(16)
    cfg = replace(PLAIN, jitter=1.0, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    rest = uniform(0, 0, torch.arange(16), 0, 46)[:, 30:]
    operations = (tvf.adjust_brightness, tvf.adjust_contrast, tvf.adjust_saturation, tvf.adjust_hue)
    expected = []
    for image, numbers in zip(images.float() / 255, rest, strict=True):
        factors = [0.6 + 0.8 * float(numbers[2 + i]) for i in range(3)] + [0.2 * float(numbers[5]) - 0.1]
        for number in numbers[6:10].argsort().tolist():
            image = operations[number](image, factors[number])
        expected.append(image)
    torch.testing.assert_close(view_of(images, cfg), torch.stack(expected), atol=1e-4, rtol=0)


def test_the_batch_an_image_comes_in_makes_no_difference() -> None:
    images = pictures(8)
    whole = view_of(images, EVERYTHING)
    halves = torch.cat([view_of(images[:4], EVERYTHING), view_of(images[4:], EVERYTHING, first=4)])
    alone = torch.cat([view_of(images[i : i + 1], EVERYTHING, first=i) for i in range(8)])
    torch.testing.assert_close(halves, whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(alone, whole, atol=1e-6, rtol=0)


def test_views_and_steps_differ_and_repeat() -> None:
    images = pictures(4)
    arguments: dict[str, Any] = {
        "seed": 0,
        "samples": torch.arange(4),
        "mean": (0.5,) * 3,
        "std": (0.25,) * 3,
    }
    first, second = make_views(images, [View(EVERYTHING, 16)] * 2, step=0, **arguments)
    again, _ = make_views(images, [View(EVERYTHING, 16)] * 2, step=0, **arguments)
    later, _ = make_views(images, [View(EVERYTHING, 16)] * 2, step=1, **arguments)
    assert first.shape == (4, 3, 16, 16)
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, later)


def test_the_images_themselves_are_left_alone() -> None:
    images = pictures(4)
    before = images.clone()
    view_of(images, EVERYTHING)
    assert torch.equal(images, before)


def test_values_are_normalised_last() -> None:
    images = pictures(3)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    got = make_views(images, [View(PLAIN, 32)], seed=0, step=0, samples=torch.arange(3), mean=mean, std=std)[
        0
    ]
    expected = tvf.normalize(images.float() / 255, list(mean), list(std))
    torch.testing.assert_close(got, expected)


def test_probability_0_leaves_the_image_as_it_is() -> None:
    images = pictures(16)
    # With all of its area, a square is all that fits into a square.
    torch.testing.assert_close(view_of(images, PLAIN), images.float() / 255)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"flip": 1.0}, lambda x: x.flip(3)),
        ({"grayscale": 1.0}, lambda x: tvf.rgb_to_grayscale(x, 3)),
        ({"jitter": 1.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}, lambda x: x),
    ],
)
def test_probability_1_takes_every_image(
    change: dict[str, Any], expected: Callable[[Tensor], Tensor]
) -> None:
    images = pictures(64)
    cfg = replace(PLAIN, **change)
    torch.testing.assert_close(view_of(images, cfg), expected(images.float() / 255), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["flip", "jitter", "grayscale", "blur", "solarize"])
def test_a_probability_is_the_share_of_images_changed(name: str) -> None:
    images = pictures(2_000, 8, 8)
    change: dict[str, Any] = {name: 0.3}
    got = view_of(images, replace(PLAIN, blur_sigma_min=1.0, **change), size=8)
    changed = ((got - images.float() / 255).abs() > 1e-6).flatten(1).any(1)
    assert stats.binomtest(int(changed.sum()), 2_000, 0.3).pvalue > CHANCE


def test_a_rare_blur_in_a_small_batch_may_choose_nobody() -> None:
    images = pictures(2)
    torch.testing.assert_close(view_of(images, replace(PLAIN, blur=1e-6)), images.float() / 255)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"flip": 1.5}, "augment.flip=1.5"),
        ({"jitter": -0.1}, "augment.jitter=-0.1"),
        ({"grayscale": float("nan")}, "augment.grayscale=nan"),
        ({"blur": 2.0}, "augment.blur=2.0"),
        ({"solarize": 2.0}, "augment.solarize=2.0"),
        ({"brightness": -1.0}, "augment.brightness=-1.0"),
        ({"contrast": -1.0}, "augment.contrast=-1.0"),
        ({"saturation": -1.0}, "augment.saturation=-1.0"),
        ({"hue": 0.6}, "augment.hue=0.6"),
        ({"crop_min": 0.0}, "augment.crop_min=0.0"),
        ({"crop_min": 0.5, "crop_max": 0.4}, "crop_max=0.4"),
        ({"crop_max": 1.1}, "crop_max=1.1"),
        ({"blur_sigma_min": 0.0}, "augment.blur_sigma_min"),
        ({"blur_sigma_min": 3.0}, "augment.blur_sigma_min"),
        ({"interpolation": "nearest"}, "augment.interpolation='nearest'"),
    ],
)
def test_mistakes_are_named(change: dict, names: str) -> None:
    with pytest.raises(UserError) as caught:
        Augment(**change).check()
    assert names in str(caught.value)


def test_the_defaults_are_allowed() -> None:
    Augment().check()
    assert Augment().crop_max == 1.0


def test_move_equals_torchvision_affine_inside_the_picture() -> None:
    images = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    angle, scale = torch.tensor([25.0, -40.0, 0.0]), torch.tensor([0.7, 0.5, 1.0])
    shift = torch.tensor([[0.2, -0.1], [0.0, 0.4], [0.0, 0.0]])
    ground = torch.tensor([[0.3, 0.5, 0.9], [0.0, 1.0, 0.2], [0.1, 0.1, 0.1]])
    moved = augment.move(images, angle, scale, shift, ground)
    assert torch.allclose(moved[2], images[2], atol=1e-5)
    for number in range(2):
        expected = tvf.affine(
            images[number],
            angle=-float(angle[number]),
            translate=[20 * float(shift[number, 0]), 20 * float(shift[number, 1])],
            scale=float(scale[number]),
            shear=[0.0, 0.0],
            interpolation=InterpolationMode.BILINEAR,
            fill=ground[number].tolist(),
        )
        off = ((moved[number] - expected).abs() > 1e-4).any(0)
        # The two blend the picture's outermost half pixel with the ground in different ways.
        edge_length = 4 * 40 * float(scale[number])
        assert off.sum() < 3 * edge_length
        assert torch.allclose(moved[number, :, 0, 0], ground[number], atol=1e-6)


def test_moved_views_stay_in_the_frame_and_show_random_grounds() -> None:
    images = torch.full((64, 3, 32, 32), 255, dtype=torch.uint8)
    cfg = replace(PLAIN, affine=1.0, rotate=0.0, shrink=0.5)
    views = view_of(images, cfg)
    white = (views > 0.999).all(dim=1)
    # An unturned square of scale s covers s squared of the frame, s drawn from 0.5 to 1.
    share = white.float().mean((1, 2))
    assert (share > 0.19).all()
    assert share.min() < 0.4
    assert share.max() > 0.7
    corners = views[:, :, 0, 0]
    assert len(corners.unique(dim=0)) > 32
