"""Colour operations on batches, each image with its own parameters; as torchvision's, one by one or fused.

The four operations of colour jitter come in a random order per image. Without a compiler they are applied
to the images whose turn it is. With one, every image goes through the same chain of slots in one kernel:
brightness and saturation are both ``clamp(f · x + k · grey(x))``, slots that an image does not need leave
it as it is, and only contrast, which needs the mean of what stands before it, cuts the chain in two.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Planes = tuple[Tensor, Tensor, Tensor]
"""Red, green and blue, float [B, H, W] each, in [0, 1]."""

_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Scale the values: float [B, 3, H, W] in [0, 1], factor [B]."""
    return (images * factor.to(images.dtype)[:, None, None, None]).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's mean grey: float [B, 3, H, W] in [0, 1], factor [B]."""
    # In half precision a mean over thousands of pixels would lose digits; the sum is kept in float32.
    grey = grayscale(images).mean(dim=(2, 3), keepdim=True, dtype=torch.float32).to(images.dtype)
    factor = factor.to(images.dtype)[:, None, None, None]
    return torch.lerp(grey.expand_as(images), images, factor).clamp_(0, 1)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image: float [B, 3, H, W] in [0, 1], factor [B]."""
    grey = grayscale(images).expand_as(images)
    return torch.lerp(grey, images, factor.to(images.dtype)[:, None, None, None]).clamp_(0, 1)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the colour circle: float [B, 3, H, W] in [0, 1], shift [B] in turns (-0.5 to 0.5)."""
    return torch.stack(_turn(_planes(images), shift.to(images.dtype)[:, None, None]), dim=1)


def grayscale(images: Tensor) -> Tensor:
    """Weigh the channels as ITU-R 601 does: float [B, 3, H, W] -> [B, 1, H, W]."""
    return _grey(_planes(images)).unsqueeze(1)


def jitter(
    images: Tensor, factors: Tensor, order: Tensor, chosen: Tensor, active: Sequence[bool] = (True,) * 4
) -> Tensor:
    """Apply the four operations to the ``chosen`` images, each image in its own order.

    Args:
        images: float [B, 3, H, W] in [0, 1]; changed in place.
        factors: float [B, 4]: brightness, contrast, saturation, hue.
        order: int64 [B, 4], the operation at each position.
        chosen: bool [B].
        active: Which of the four operations there are at all.
    """
    operations = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
    for position in range(4):
        for number, operation in enumerate(operations):
            if not active[number]:
                continue
            members = (chosen & (order[:, position] == number)).nonzero()[:, 0]
            if len(members):
                images[members] = operation(images[members], factors[members, number])
    return images


class Slots(NamedTuple):
    """What each image does in the fused chain.

    Attributes:
        linear: float [B, 8, 2]: factor and grey part of the slots: two before and two after the hue,
            first those before contrast, then those after it.
        contrast: float [B].
        hue: float [B], the shift in turns.
        hue_on: bool [B, 2], whether the hue is turned before contrast, and whether after it.
        grey: bool [B], whether only grey is left in the end.
    """

    linear: Tensor
    contrast: Tensor
    hue: Tensor
    hue_on: Tensor
    grey: Tensor


def slots(factors: Tensor, order: Tensor, chosen: Tensor, grey: Tensor, turns: bool = True) -> Slots:
    """Say what the chain does to each image; arguments as for `jitter`.

    Args:
        factors: float32 [B, 4].
        order: int64 [B, 4].
        chosen: bool [B].
        grey: bool [B], whether only grey is left in the end.
        turns: Whether the hue is turned at all; factors of 1 need no such word, for they change nothing.
    """
    batch = len(factors)
    place = order.argsort(dim=1)
    linear = torch.zeros(batch, 8, 2, device=factors.device)
    linear[..., 0] = 1
    for this, other in ((_BRIGHTNESS, _SATURATION), (_SATURATION, _BRIGHTNESS)):
        after_contrast = place[:, this] > place[:, _CONTRAST]
        after_hue = place[:, this] > place[:, _HUE]
        slot = 4 * after_contrast.long() + 2 * after_hue.long() + (place[:, this] > place[:, other]).long()
        factor = torch.where(chosen, factors[:, this], 1.0)
        grey_part = 1 - factor if this == _SATURATION else torch.zeros_like(factor)
        values = torch.stack([factor, grey_part], dim=1)[:, None]
        linear.scatter_(1, slot[:, None, None].expand(-1, 1, 2), values)
    before = place[:, _HUE] < place[:, _CONTRAST]
    hue = chosen if turns else torch.zeros_like(chosen)
    return Slots(
        linear=linear,
        contrast=torch.where(chosen, factors[:, _CONTRAST], 1.0),
        hue=factors[:, _HUE],
        hue_on=torch.stack([hue & before, hue & ~before], dim=1),
        grey=grey,
    )


def fused(pixels: Tensor, todo: Slots) -> Tensor:
    """Do what `jitter` and grey do, in a form that a compiler turns into two passes over the pixels.

    Args:
        pixels: uint8 [B, 3, H, W].
        todo: From `slots`.

    Returns:
        float32 [B, 3, H, W] in [0, 1].
    """
    planes = _planes(pixels.to(torch.float32) * (1 / 255))
    planes = _half_chain(planes, todo, 0)
    factor = todo.contrast[:, None, None]
    # Axis by axis: over both at once the compiler makes one kernel for small images and one for large.
    rest = (1 - factor) * _grey(planes).mean(dim=2, keepdim=True).mean(dim=1, keepdim=True)
    planes = _each(planes, lambda plane: (factor * plane + rest).clamp(0, 1))
    planes = _half_chain(planes, todo, 1)
    grey = _grey(planes)
    return torch.stack(_each(planes, lambda plane: torch.where(todo.grey[:, None, None], grey, plane)), dim=1)


def solarize(images: Tensor, chosen: Tensor) -> Tensor:
    """Invert what is one half or more in the ``chosen`` (bool [B]) images: float [B, 3, H, W] in [0, 1]."""
    return torch.where(chosen[:, None, None, None] & (images >= 0.5), 1 - images, images)


def _half_chain(planes: Planes, todo: Slots, half: int) -> Planes:
    def linear(planes: Planes, slot: int) -> Planes:
        factor, grey_part = todo.linear[:, 4 * half + slot, :, None, None].unbind(1)
        grey = grey_part * _grey(planes)
        return _each(planes, lambda plane: (factor * plane + grey).clamp(0, 1))

    planes = linear(linear(planes, 0), 1)
    (red, green, blue), turned = planes, _turn(planes, todo.hue[:, None, None])
    on = todo.hue_on[:, half, None, None]
    planes = (
        torch.where(on, turned[0], red),
        torch.where(on, turned[1], green),
        torch.where(on, turned[2], blue),
    )
    return linear(linear(planes, 2), 3)


def _turn(planes: Planes, shift: Tensor) -> Planes:
    red, green, blue = planes
    high = torch.maximum(torch.maximum(red, green), blue)
    chroma = high - torch.minimum(torch.minimum(red, green), blue)
    divisor = 1 / torch.where(chroma > 0, chroma, 1.0)
    sixths = torch.where(
        high == red,
        (green - blue) * divisor,
        torch.where(high == green, 2.0 + (blue - red) * divisor, 4.0 + (red - green) * divisor),
    )
    sixths = sixths + 6.0 * shift

    def channel(offset: float) -> Tensor:
        # The value minus chroma times a trapezoid of the hue, shifted by a third of a turn.
        place = sixths + offset
        place = place - 6.0 * torch.floor(place * (1 / 6))
        return (high - chroma * torch.minimum(place, 4.0 - place).clamp(0, 1)).clamp(0, 1)

    return channel(5.0), channel(3.0), channel(1.0)


def _grey(planes: Planes) -> Tensor:
    red, green, blue = planes
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def _planes(images: Tensor) -> Planes:
    red, green, blue = images.unbind(1)
    return red, green, blue


def _each(planes: Planes, change: Callable[[Tensor], Tensor]) -> Planes:
    red, green, blue = planes
    return change(red), change(green), change(blue)
