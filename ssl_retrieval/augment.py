"""Batched views on the training device: uint8 images in, normalised float views out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as nnf

from ssl_retrieval import color, compiling, view_plan
from ssl_retrieval.blur import gaussian_blur
from ssl_retrieval.counter_random import uniform
from ssl_retrieval.crops import NUM_DRAWS as NUM_CROP_DRAWS
from ssl_retrieval.crops import crop, crop_boxes
from ssl_retrieval.errors import UserError
from ssl_retrieval.view_plan import Plan

NUM_DRAWS = NUM_CROP_DRAWS + view_plan.NUM_DRAWS
"""Random numbers per image and view."""

_CACHED, _HELD = 1 << 18, 1 << 22
"""Pixels that a CPU works on together: operation by operation within its caches (three channels of float32
fill 3 MiB), compiled within what memory there may be for what stands between two passes (48 MiB)."""


@dataclass
class Augment:
    """How one view is made; the defaults are SimCLR's for CIFAR (jitter strength 0.5, no blur).

    Attributes:
        crop_min: Least share of the image's area that a crop keeps.
        crop_max: Largest share.
        flip: Probability of a horizontal flip.
        jitter: Probability of colour jitter (its four operations in random order).
        brightness: Factor drawn from [max(0, 1 − b), 1 + b].
        contrast: As brightness.
        saturation: As brightness.
        hue: Shift drawn from [−h, h], in turns of the colour circle, at most 0.5.
        grayscale: Probability of grey.
        blur: Probability of Gaussian blur; the kernel is about a tenth of the view's side.
        blur_sigma_min: Least σ in pixels.
        blur_sigma_max: Largest σ in pixels.
        solarize: Probability of inverting the pixels above one half.
        affine: Probability of moving the view on a plain ground of random colour: turned, shrunk,
            shifted. No part of SimCLR; for things that turn up at any angle on any background.
        rotate: Largest turn in degrees, either way.
        shrink: Least scale of the moved view; 1 = none.
        interpolation: ``bilinear`` or ``bicubic``, antialiased.
    """

    crop_min: float = 0.08
    crop_max: float = 1.0
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    grayscale: float = 0.2
    blur: float = 0.0
    blur_sigma_min: float = 0.1
    blur_sigma_max: float = 2.0
    solarize: float = 0.0
    affine: float = 0.0
    rotate: float = 30.0
    shrink: float = 0.5
    interpolation: str = "bilinear"

    def ranges(self) -> view_plan.Ranges:
        """Give what the draws are scaled by."""
        return view_plan.Ranges(
            jitter=self.jitter,
            widths=(self.brightness, self.contrast, self.saturation),
            hue=self.hue,
            grayscale=self.grayscale,
            blur=self.blur,
            sigma=(self.blur_sigma_min, self.blur_sigma_max),
            solarize=self.solarize,
            affine=self.affine,
            rotate=self.rotate,
            shrink=self.shrink,
        )

    def check(self) -> None:
        """Refuse values outside their ranges."""
        for name in ("flip", "jitter", "grayscale", "blur", "solarize", "affine"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augment.{name}={getattr(self, name)}: a probability in [0, 1] is needed")
        for name in ("brightness", "contrast", "saturation"):
            if getattr(self, name) < 0:
                raise UserError(f"augment.{name}={getattr(self, name)}: must not be negative")
        if not 0 < self.crop_min <= self.crop_max <= 1:
            raise UserError(
                f"augment.crop_min={self.crop_min}, crop_max={self.crop_max}: 0 < crop_min <= crop_max <= 1"
            )
        if not 0 <= self.hue <= 0.5:
            raise UserError(f"augment.hue={self.hue}: must be in [0, 0.5]")
        if not 0 <= self.rotate <= 180 or not 0 < self.shrink <= 1:
            raise UserError(
                f"augment.rotate={self.rotate}, shrink={self.shrink}: 0 <= rotate <= 180, 0 < shrink <= 1"
            )
        if not 0 < self.blur_sigma_min <= self.blur_sigma_max:
            raise UserError("augment.blur_sigma_min must be positive and at most blur_sigma_max")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise UserError(f"augment.interpolation={self.interpolation!r}: one of bilinear, bicubic")


@dataclass(frozen=True)
class View:
    """One view.

    Attributes:
        augment: How it is made.
        size: Its side in pixels.
        twin: Number of the view whose random numbers it shares: with the same augmentation it shows the same
            at another size. None = numbers of its own.
    """

    augment: Augment
    size: int
    twin: int | None = None

    def drawn_as(self, number: int) -> int:
        """Give the number that its random numbers follow from, for the view at place ``number``."""
        return number if self.twin is None else self.twin


@dataclass(frozen=True)
class Noise:
    """Uniform random numbers per image instead of a view, for objectives that mask at random."""

    num: int


@dataclass(frozen=True)
class Output:
    """What views are like as tensors.

    Attributes:
        mean: Per channel, subtracted from values in [0, 1].
        std: Per channel, divided by.
        dtype: float32, or a half type; the work is done in float32.
        memory_format: ``torch.contiguous_format`` or ``torch.channels_last``.
        compiled: Let torch.compile fuse the operations; worth its half minute in long runs.
    """

    mean: Sequence[float] = (0.0, 0.0, 0.0)
    std: Sequence[float] = (1.0, 1.0, 1.0)
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format
    compiled: bool = False


def make_views(
    images: Tensor,
    views: Sequence[View | Noise],
    *,
    seed: int,
    step: int,
    samples: Tensor,
    output: Output,
) -> list[Tensor]:
    """Make every view of a batch.

    Args:
        images: uint8 [B, 3, H, W].
        views: What to make.
        seed: The run's seed.
        step: The training step.
        samples: int64 [B], which images these are (their random numbers depend on it), on the images' device.
        output: What the views are like.

    Returns:
        One [B, 3, size, size] per `View`, one float32 [B, num] in [0, 1) per `Noise`.
    """

    def cut(view: View, draws: Tensor) -> Tensor:
        cfg = view.augment
        height, width = images.shape[2:]
        boxes = crop_boxes(draws[:, :NUM_CROP_DRAWS], height, width, (cfg.crop_min, cfg.crop_max))
        return crop(images, boxes, view.size, _flips(cfg, draws), cfg.interpolation)

    return [_make(view, number, cut, seed, step, samples, output) for number, view in enumerate(views)]


def finish_views(
    crops: Sequence[Tensor],
    views: Sequence[View | Noise],
    *,
    seed: int,
    step: int,
    samples: Tensor,
    output: Output,
) -> list[Tensor]:
    """Do what `make_views` does after cropping; arguments as there.

    Args:
        crops: One uint8 [B, 3, size, size] per `View`, cut by the boxes of the same draws, not mirrored.
        views: What to make.
        seed: The run's seed.
        step: The training step.
        samples: int64 [B].
        output: What the views are like.
    """
    left = iter(crops)

    def make(number: int, view: View | Noise) -> Tensor:
        cropped = None if isinstance(view, Noise) else next(left)

        def cut(view: View, draws: Tensor) -> Tensor:
            assert cropped is not None
            pixels = cropped.contiguous()
            return torch.where(_flips(view.augment, draws)[:, None, None, None], pixels.flip(3), pixels)

        return _make(view, number, cut, seed, step, samples, output)

    return [make(number, view) for number, view in enumerate(views)]


def _make(
    view: View | Noise,
    number: int,
    cut: Callable[[View, Tensor], Tensor],
    seed: int,
    step: int,
    samples: Tensor,
    output: Output,
) -> Tensor:
    if isinstance(view, Noise):
        return uniform(seed, step, samples, number, view.num)
    draws = draw(seed, step, samples, view.drawn_as(number))
    made = torch.empty(
        (len(samples), 3, view.size, view.size),
        dtype=output.dtype,
        device=samples.device,
        memory_format=output.memory_format,
    )
    pixels = cut(view, draws)
    plan = view_plan.make(view.augment.ranges(), draws[:, NUM_CROP_DRAWS:])
    count, on_cpu = len(samples), samples.device.type == "cpu"
    if view.augment.affine > 0:
        pixels = _move(pixels, plan) if on_cpu else _move_all(pixels, plan)
    compiled = output.compiled and compiling.works()
    pixels_together = _HELD if compiled else _CACHED
    parts = -(-count * view.size**2 // pixels_together) if on_cpu else 1
    bounds = [count * part // parts for part in range(parts + 1)]
    channels = _channels(tuple(output.mean), tuple(output.std), samples.device)
    slices = [slice(*ends) for ends in pairwise(bounds)]
    if compiled or not on_cpu:
        _change_fused(pixels, view.augment, plan, channels, slices, made, compiled)
    else:
        _change(pixels, view.augment, plan, channels, slices, made)
    return made


def draw(seed: int, step: int, samples: Tensor, number: int) -> Tensor:
    """Draw all random numbers of one view: float32 [B, NUM_DRAWS] in [0, 1).

    Args:
        seed: The run's seed.
        step: The training step.
        samples: int64 [B], which images.
        number: Which of the views.
    """
    return uniform(seed, step, samples, number, NUM_DRAWS)


def move(images: Tensor, angle: Tensor, scale: Tensor, shift: Tensor, ground: Tensor) -> Tensor:
    """Turn, shrink and shift each image on a plain ground (bilinear).

    Args:
        images: float [B, 3, H, W] of square images.
        angle: float [B], degrees, counter-clockwise.
        scale: float [B], positive.
        shift: float [B, 2], of the centre to the right and down, in half sides of the image.
        ground: float [B, 3], the colour around it.
    """
    turn = torch.deg2rad(angle)
    cos, sin = torch.cos(turn) / scale, torch.sin(turn) / scale
    # grid_sample asks where each output pixel comes from: the inverse of the movement.
    rows = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    theta = torch.cat([rows, -(rows @ shift[:, :, None])], dim=2)
    grid = nnf.affine_grid(theta, list(images.shape), align_corners=False)
    ground = ground[:, :, None, None]
    # Outside the image grid_sample gives 0, which is the ground once that has been taken off.
    return nnf.grid_sample(images - ground, grid, mode="bilinear", align_corners=False) + ground


@lru_cache(maxsize=8)
def _channels(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> Tensor:
    """Give mean and std as float32 [2, 3, 1, 1]; made once, for a copy to a GPU waits for it."""
    return torch.tensor([mean, std], device=device)[:, :, None, None]


def _flips(cfg: Augment, draws: Tensor) -> Tensor:
    return draws[:, NUM_CROP_DRAWS] < cfg.flip


def _change(
    pixels: Tensor, cfg: Augment, plan: Plan, channels: Tensor, parts: Sequence[slice], made: Tensor
) -> None:
    """Do what comes after crop and flip, operation by operation on the images whose turn it is.

    Args:
        pixels: uint8 [B, 3, S, S].
        cfg: Says which operations there are at all.
        plan: What happens to each image.
        channels: float32 [2, 3, 1, 1], mean and std.
        parts: Rows to do together.
        made: Takes the result, [B, 3, S, S].
    """
    active = (cfg.brightness > 0, cfg.contrast > 0, cfg.saturation > 0, cfg.hue > 0)
    for rows in parts:
        part = plan.rows(rows)
        views = pixels[rows].to(torch.float32) * (1 / 255)
        if cfg.jitter > 0:
            views = color.jitter(views, part.factors, part.order, part.jittered, active)
        if cfg.grayscale > 0:
            chosen = part.grey.nonzero()[:, 0]
            views[chosen] = color.grayscale(views[chosen]).expand(-1, 3, -1, -1)
        if cfg.blur > 0:
            views = _blur(views, part, compiled=False)
        made[rows] = _normalise(views, part.solarized, channels)


def _change_fused(
    pixels: Tensor,
    cfg: Augment,
    plan: Plan,
    channels: Tensor,
    parts: Sequence[slice],
    made: Tensor,
    compiled: bool,
) -> None:
    """Do what `_change` does, in as few passes over the pixels as there can be.

    Without a compiler that is more work, but no device is asked whose turn it is: a GPU would stop for each
    of those questions.
    """
    recolour, normalise = (_compiled_color, _compiled_normalise) if compiled else (color.fused, _normalise)
    slots = color.slots(plan.factors, plan.order, plan.jittered, plan.grey, turns=cfg.hue > 0)
    for rows in parts:
        part, todo = plan.rows(rows), color.Slots(*(values[rows] for values in slots))
        if cfg.jitter > 0 or cfg.grayscale > 0:
            views = recolour(pixels[rows], todo)
        else:
            views = pixels[rows].to(torch.float32) * (1 / 255)
        if cfg.blur > 0:
            views = _blur(views, part, compiled)
        made[rows] = normalise(views, part.solarized, channels)


def _normalise(views: Tensor, solarized: Tensor, channels: Tensor) -> Tensor:
    return (color.solarize(views, solarized) - channels[0]) / channels[1]


_compiled_color, _compiled_normalise = compiling.compiled(color.fused), compiling.compiled(_normalise)


def _blur(views: Tensor, plan: Plan, compiled: bool) -> Tensor:
    # SimCLR: a tenth of the side; the middle pixel makes it odd.
    kernel_size = max(3, int(0.1 * views.shape[-1]) // 2 * 2 + 1)
    if views.device.type != "cpu":
        # Blurring all images, some by nothing, is cheaper than asking the device which ones it must be.
        return gaussian_blur(views, torch.where(plan.blurred, plan.sigma, 0.0), kernel_size, compiled)
    numbers = plan.blurred.nonzero()[:, 0]
    if len(numbers) == 1:
        # A batch of one would be compiled once more.
        numbers = numbers.repeat(2)
    # A convolution refuses zero groups, and in a small batch it may be that nobody is chosen.
    if len(numbers):
        views[numbers] = gaussian_blur(views[numbers], plan.sigma[numbers], kernel_size, compiled)
    return views


def _move(pixels: Tensor, plan: Plan) -> Tensor:
    """Move those whose turn it is, uint8 [B, 3, S, S]; in place."""
    chosen = plan.moved.nonzero()[:, 0]
    # grid_sample refuses zero images, and in a small batch it may be that nobody is chosen.
    if len(chosen):
        pixels[chosen] = _moved(pixels[chosen], plan, chosen)
    return pixels


def _move_all(pixels: Tensor, plan: Plan) -> Tensor:
    """Do as `_move` without asking the device whose turn it is."""
    moved = _moved(pixels, plan, slice(None))
    return torch.where(plan.moved[:, None, None, None], moved, pixels)


def _moved(pixels: Tensor, plan: Plan, rows: Tensor | slice) -> Tensor:
    values, ground = pixels.to(torch.float32), 255 * plan.ground[rows]
    moved = move(values, plan.angle[rows], plan.scale[rows], plan.shift[rows], ground)
    return moved.add_(0.5).to(torch.uint8)
