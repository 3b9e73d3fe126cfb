"""Batched views on the training device: uint8 images in, normalised float views out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as nnf
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from ssl_retrieval.counter_random import uniform
from ssl_retrieval.errors import UserError

_CROP_ATTEMPTS = 10
_DRAWS = 3 * _CROP_ATTEMPTS + 24


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
    """One view: its augmentation and its side in pixels."""

    augment: Augment
    size: int


@dataclass(frozen=True)
class Noise:
    """Uniform random numbers per image instead of a view, for objectives that mask at random."""

    num: int


def make_views(
    images: Tensor,
    views: Sequence[View | Noise],
    *,
    seed: int,
    step: int,
    samples: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
) -> list[Tensor]:
    """Make every view of a batch.

    Args:
        images: uint8 [B, 3, H, W].
        views: What to make.
        seed: The run's seed.
        step: The training step.
        samples: int64 [B], which images these are (their random numbers depend on it).
        mean: Per channel, subtracted from values in [0, 1].
        std: Per channel, divided by.

    Returns:
        One float32 [B, 3, size, size] per `View`, one float32 [B, num] in [0, 1) per `Noise`.
    """
    made = []
    for number, view in enumerate(views):
        if isinstance(view, Noise):
            made.append(uniform(seed, step, samples, number, view.num))
            continue
        draws = uniform(seed, step, samples, number, _DRAWS)
        pixels = _augment(images, view, draws)
        made.append(tvf.normalize(pixels, list(mean), list(std), inplace=True))
    return made


def crop_boxes(draws: Tensor, height: int, width: int, scale: tuple[float, float]) -> Tensor:
    """Choose crop boxes as torchvision's ``RandomResizedCrop`` does (aspect ratio 3/4 to 4/3).

    Args:
        draws: float [B, 30] uniform in [0, 1): area, aspect ratio and a spare for ten attempts; the
            place comes from the numbers of the attempt that fits.
        height: Image height in pixels.
        width: Image width.
        scale: Least and largest share of the area.

    Returns:
        int64 [B, 4]: top, left, height, width. Where no attempt fits, the central crop.
    """
    batch = len(draws)
    area, aspect, place = draws.reshape(batch, 3, _CROP_ATTEMPTS).unbind(1)
    target = height * width * (scale[0] + area * (scale[1] - scale[0]))
    log_ratio = torch.log(torch.tensor([3 / 4, 4 / 3]))
    ratio = torch.exp(log_ratio[0].item() + aspect * (log_ratio[1] - log_ratio[0]).item())
    w = torch.sqrt(target * ratio).round().long()
    h = torch.sqrt(target / ratio).round().long()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    found = fits.any(dim=1)
    # The fallback keeps the whole image when its own aspect ratio is allowed, else the central part.
    fallback_w = min(width, round(height * 4 / 3))
    fallback_h = min(height, round(width * 4 / 3))
    w = torch.where(found, w.gather(1, first)[:, 0], fallback_w)
    h = torch.where(found, h.gather(1, first)[:, 0], fallback_h)
    # Two independent places from one 24-bit number would be coarse; the next attempt's is unused.
    across = place.gather(1, first)[:, 0]
    down = place.gather(1, (first + 1) % _CROP_ATTEMPTS)[:, 0]
    left = (across * (width - w + 1)).long()
    top = (down * (height - h + 1)).long()
    left = torch.where(found, left, (width - w) // 2)
    top = torch.where(found, top, (height - h) // 2)
    return torch.stack([top, left, h, w], dim=1)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Scale the values: float [B, 3, H, W] in [0, 1], factor [B]."""
    return (images * factor[:, None, None, None]).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's mean grey: float [B, 3, H, W] in [0, 1], factor [B]."""
    grey = grayscale(images).mean(dim=(2, 3), keepdim=True)
    return torch.lerp(grey.expand_as(images), images, factor[:, None, None, None]).clamp_(0, 1)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image: float [B, 3, H, W] in [0, 1], factor [B]."""
    grey = grayscale(images).expand_as(images)
    return torch.lerp(grey, images, factor[:, None, None, None]).clamp_(0, 1)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the colour circle: float [B, 3, H, W] in [0, 1], shift [B] in turns (-0.5 to 0.5)."""
    red, green, blue = images.unbind(1)
    high, low = images.amax(1), images.amin(1)
    chroma = high - low
    divisor = torch.where(chroma > 0, chroma, 1.0)
    hue = torch.where(
        high == red,
        (green - blue) / divisor,
        torch.where(high == green, 2.0 + (blue - red) / divisor, 4.0 + (red - green) / divisor),
    )
    hue = hue / 6.0 + shift[:, None, None]
    # Each channel is the value minus chroma times a trapezoid of the hue, shifted by a third of a turn.
    channels = []
    for offset in (5.0, 3.0, 1.0):
        k = torch.remainder(offset + hue * 6.0, 6.0)
        channels.append(high - chroma * torch.minimum(k, 4.0 - k).clamp_(0, 1))
    return torch.stack(channels, dim=1).clamp_(0, 1)


def grayscale(images: Tensor) -> Tensor:
    """Weigh the channels as ITU-R 601 does: float [B, 3, H, W] -> [B, 1, H, W]."""
    red, green, blue = images.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def gaussian_blur(images: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """Blur each image with its own σ, borders reflected.

    Args:
        images: float [B, C, H, W].
        sigma: float [B], in pixels.
        kernel_size: Odd side of the kernel in pixels.
    """
    batch, channels, height, width = images.shape
    half = kernel_size // 2
    offsets = torch.arange(-half, half + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets[None, :] / sigma[:, None].to(images.dtype)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    flat = images.reshape(1, batch * channels, height, width)
    flat = nnf.pad(flat, [half, half, half, half], mode="reflect")
    groups = batch * channels
    flat = nnf.conv2d(flat, kernel[:, None, None, :], groups=groups)
    flat = nnf.conv2d(flat, kernel[:, None, :, None], groups=groups)
    return flat.reshape(batch, channels, height, width)


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


def _augment(images: Tensor, view: View, draws: Tensor) -> Tensor:
    cfg = view.augment
    crops, rest = draws[:, : 3 * _CROP_ATTEMPTS], draws[:, 3 * _CROP_ATTEMPTS :]
    pixels = _crop(images, crops, view)
    flips = rest[:, 0] < cfg.flip
    pixels = torch.where(flips[:, None, None, None], pixels.flip(3), pixels)
    pixels = pixels.to(torch.float32).div_(255)
    if cfg.affine > 0:
        chosen = (rest[:, 14] < cfg.affine).nonzero()[:, 0]
        where = rest[chosen]
        scale = cfg.shrink + where[:, 16] * (1 - cfg.shrink)
        # The shift keeps the (unturned) image inside the frame.
        shift = (2 * where[:, 17:19] - 1) * (1 - scale)[:, None]
        angle = (2 * where[:, 15] - 1) * cfg.rotate
        pixels[chosen] = move(pixels[chosen], angle, scale, shift, where[:, 19:22])
    if cfg.jitter > 0:
        pixels = _jitter(
            pixels, cfg, chosen=rest[:, 1] < cfg.jitter, factors=rest[:, 2:6], order=rest[:, 6:10]
        )
    if cfg.grayscale > 0:
        chosen = (rest[:, 10] < cfg.grayscale).nonzero()[:, 0]
        pixels[chosen] = grayscale(pixels[chosen]).expand(-1, 3, -1, -1)
    if cfg.blur > 0:
        chosen = (rest[:, 11] < cfg.blur).nonzero()[:, 0]
        sigma = cfg.blur_sigma_min + rest[chosen, 12] * (cfg.blur_sigma_max - cfg.blur_sigma_min)
        # SimCLR: a tenth of the side; torchvision and conv2d need an odd one.
        kernel_size = max(3, int(0.1 * view.size) // 2 * 2 + 1)
        # conv2d refuses zero groups, and in a small batch it may be that nobody is chosen.
        if len(chosen):
            pixels[chosen] = gaussian_blur(pixels[chosen], sigma, kernel_size)
    if cfg.solarize > 0:
        chosen = (rest[:, 13] < cfg.solarize).nonzero()[:, 0]
        part = pixels[chosen]
        pixels[chosen] = torch.where(part >= 0.5, 1 - part, part)
    return pixels


def _crop(images: Tensor, draws: Tensor, view: View) -> Tensor:
    height, width = images.shape[2:]
    boxes = crop_boxes(draws, height, width, (view.augment.crop_min, view.augment.crop_max)).tolist()
    mode = InterpolationMode(view.augment.interpolation)
    side = [view.size, view.size]
    crops = [
        tvf.resized_crop(image, top, left, h, w, side, interpolation=mode, antialias=True)
        for image, (top, left, h, w) in zip(images, boxes, strict=True)
    ]
    return torch.stack(crops)


def _jitter(pixels: Tensor, cfg: Augment, *, chosen: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Apply the four operations to the ``chosen`` images, each image in its own random order."""
    widths = torch.tensor([cfg.brightness, cfg.contrast, cfg.saturation], device=pixels.device)
    low = (1 - widths).clamp(min=0)
    blend = low + factors[:, :3] * (1 + widths - low)
    values = torch.cat([blend, (2 * factors[:, 3:] - 1) * cfg.hue], dim=1)
    operations = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
    active = (cfg.brightness, cfg.contrast, cfg.saturation, cfg.hue)
    turn = order.argsort(dim=1)
    for position in range(4):
        for number, operation in enumerate(operations):
            if active[number] == 0:
                continue
            members = (chosen & (turn[:, position] == number)).nonzero()[:, 0]
            if len(members):
                pixels[members] = operation(pixels[members], values[members, number])
    return pixels
