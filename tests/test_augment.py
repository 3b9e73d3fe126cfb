"""Every operation against torchvision's for the same parameters, and the parameters against its draws."""

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch
from lightly.transforms.gaussian_blur import GaussianBlur
from pictures import CHANCE, pictures
from PIL import Image
from scipy import stats
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import ColorJitter
from torchvision.transforms.v2 import functional as tvf

from ssl_retrieval import augment, blur, compiling, view_plan
from ssl_retrieval.augment import Augment, Noise, Output, View, finish_views, make_views
from ssl_retrieval.counter_random import uniform
from ssl_retrieval.crops import NUM_DRAWS as NUM_CROP_DRAWS
from ssl_retrieval.crops import crop_boxes, crop_by_box
from ssl_retrieval.errors import UserError

PLAIN = Augment(crop_min=1.0, flip=0.0, jitter=0.0, grayscale=0.0)
EVERYTHING = Augment(blur=0.5, solarize=0.5)


def view_of(images: Tensor, cfg: Augment, size: int = 32, step: int = 0, first: int = 0) -> Tensor:
    samples = torch.arange(first, first + len(images))
    return make_views(images, [View(cfg, size)], seed=0, step=step, samples=samples, output=Output())[0]


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


def test_jitter_draws_factors_and_orders_as_torchvision() -> None:
    cfg = Augment(jitter=0.8, brightness=0.4, contrast=1.5, saturation=0.8, hue=0.2)
    draws = augment.draw(0, 0, torch.arange(10_000), 0)[:, NUM_CROP_DRAWS:]
    plan = view_plan.make(cfg.ranges(), draws)
    torch.manual_seed(0)
    theirs = ColorJitter(cfg.brightness, cfg.contrast, cfg.saturation, cfg.hue)
    params = [theirs.make_params([]) for _ in range(4_000)]
    keys = ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")
    for ours, key in zip(plan.factors.T, keys, strict=True):
        assert stats.ks_2samp(ours.numpy(), [float(p[key]) for p in params]).pvalue > CHANCE, key
    assert stats.binomtest(int(plan.jittered.sum()), 10_000, 0.8).pvalue > CHANCE
    orders = [tuple(order) for order in plan.order.tolist()]
    counts = [orders.count(order) for order in permutations(range(4))]
    assert sum(counts) == 10_000
    assert stats.chisquare(counts).pvalue > CHANCE


def test_blur_and_the_rest_are_drawn_as_in_lightly() -> None:
    cfg = Augment(blur=0.5, solarize=0.2)
    plan = view_plan.make(cfg.ranges(), augment.draw(3, 1, torch.arange(10_000), 1)[:, NUM_CROP_DRAWS:])
    for chosen, share in ((plan.grey, 0.2), (plan.blurred, 0.5), (plan.solarized, 0.2)):
        assert stats.binomtest(int(chosen.sum()), 10_000, share).pvalue > CHANCE
    theirs = GaussianBlur(sigmas=(cfg.blur_sigma_min, cfg.blur_sigma_max), prob=1.0)
    torch.manual_seed(0)
    sigmas = [blurred_by(theirs) for _ in range(2_000)]
    assert stats.ks_2samp(plan.sigma.numpy(), sigmas).pvalue > CHANCE


def blurred_by(transform: GaussianBlur) -> float:
    """The σ that a transform of lightly's gives to Pillow's filter."""

    class Spy(Image.Image):
        sigma = 0.0

        def filter(self, filter: Any) -> Image.Image:
            self.sigma = float(filter.radius)
            return self

    spy = Spy()
    transform(spy)
    return spy.sigma


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
    output = Output(mean=(0.5,) * 3, std=(0.25,) * 3)
    arguments: dict[str, Any] = {"seed": 0, "samples": torch.arange(4), "output": output}
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
    views = [View(PLAIN, 32)]
    (got,) = make_views(
        images, views, seed=0, step=0, samples=torch.arange(3), output=Output(mean=mean, std=std)
    )
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


def test_views_that_are_moved_without_asking_whose_turn_it_is_are_the_same() -> None:
    images = pictures(12)
    cfg = replace(PLAIN, affine=0.5)
    plan = view_plan.make(cfg.ranges(), augment.draw(0, 0, torch.arange(12), 0)[:, NUM_CROP_DRAWS:])
    assert 0 < int(plan.moved.sum()) < 12
    assert torch.equal(augment._move_all(images, plan), augment._move(images.clone(), plan))


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


@pytest.mark.parametrize("size", [24, 64])
def test_fused_views_are_those_made_one_by_one(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # What the compiler is given, without the half minute that compiling it takes (see the slow test).
    for name in ("_compiled_color", "_compiled_normalise"):
        monkeypatch.setattr(augment, name, getattr(augment, name).__wrapped__)
    for name in ("_compiled_down", "_compiled_across"):
        monkeypatch.setattr(blur, name, getattr(blur, name).__wrapped__)
    images, samples = pictures(40, 72, 72), torch.arange(40)
    for cfg in (Augment(), EVERYTHING, replace(EVERYTHING, affine=0.5, hue=0.0), replace(PLAIN, flip=0.5)):
        one, other = (
            make_views(
                images, [View(cfg, size)], seed=1, step=2, samples=samples, output=Output(compiled=fused)
            )[0]
            for fused in (False, True)
        )
        torch.testing.assert_close(other, one, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_compiled_views_are_those_made_one_by_one() -> None:
    images, samples = pictures(40, 72, 72), torch.arange(40)
    for cfg in (Augment(), EVERYTHING):
        one, other = (
            make_views(
                images, [View(cfg, 64)], seed=1, step=2, samples=samples, output=Output(compiled=fused)
            )[0]
            for fused in (False, True)
        )
        torch.testing.assert_close(other, one, atol=1e-4, rtol=0)
    assert compiling.works()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_views_in_half_precision_are_the_same_rounded(dtype: torch.dtype) -> None:
    images = pictures(8)
    arguments: dict[str, Any] = {"seed": 0, "step": 0, "samples": torch.arange(8)}
    (full,) = make_views(images, [View(EVERYTHING, 32)], output=Output(), **arguments)
    (half,) = make_views(images, [View(EVERYTHING, 32)], output=Output(dtype=dtype), **arguments)
    assert half.dtype == dtype
    assert torch.equal(half, full.to(dtype))


def test_the_memory_format_changes_the_layout_alone() -> None:
    images = pictures(8)
    arguments: dict[str, Any] = {"seed": 0, "step": 0, "samples": torch.arange(8)}
    (plain,) = make_views(images, [View(EVERYTHING, 32)], output=Output(), **arguments)
    last = Output(memory_format=torch.channels_last)
    (other,) = make_views(images, [View(EVERYTHING, 32)], output=last, **arguments)
    assert other.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, other)


def test_large_batches_are_worked_off_in_parts_that_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(20)
    whole = view_of(images, EVERYTHING)
    monkeypatch.setattr(augment, "_CACHED", 3 * 32 * 32)
    torch.testing.assert_close(view_of(images, EVERYTHING), whole, atol=1e-6, rtol=0)


def test_views_of_crops_cut_elsewhere_are_the_same() -> None:
    images, samples = pictures(6, 80, 60), torch.arange(6) + 5
    large, small = View(EVERYTHING, 64), View(replace(EVERYTHING, interpolation="bicubic"), 24)
    views: list[View | Noise] = [large, Noise(7), small]
    arguments: dict[str, Any] = {"seed": 3, "step": 4, "samples": samples, "output": Output()}
    crops = []
    for number, view in ((0, large), (2, small)):
        draws = augment.draw(3, 4, samples, number)
        cfg = view.augment
        boxes = crop_boxes(draws[:, :NUM_CROP_DRAWS], 80, 60, (cfg.crop_min, cfg.crop_max))
        nobody = torch.zeros(6, dtype=torch.bool)
        crops.append(crop_by_box(images, boxes, view.size, nobody, cfg.interpolation))
    expected = make_views(images, views, **arguments)
    for got, wanted in zip(finish_views(crops, views, **arguments), expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)


def test_a_batch_of_which_no_image_is_moved_is_left_as_it_is() -> None:
    images = pictures(2)
    assert torch.equal(view_of(images, replace(PLAIN, affine=1e-9)), view_of(images, PLAIN))
