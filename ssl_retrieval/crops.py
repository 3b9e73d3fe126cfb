"""Random resized crops of a whole batch: which part of each image, and how it becomes a view."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ATTEMPTS = 10
"""How often torchvision draws an area and an aspect ratio before it takes the middle."""

NUM_DRAWS = 3 * ATTEMPTS

_LOG_RATIO = float(torch.tensor(3 / 4).log())
_LOG_SPAN = float(torch.tensor(4 / 3).log() - torch.tensor(3 / 4).log())
"""Of the aspect ratio, in the steps of float32."""

_MATRIX_SIDE = 48
"""Up to this side one matrix product for all images is faster on a CPU than a call per image."""

_RESIZE = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa,
}
"""What torchvision's antialiased ``resize`` calls after a good deal of looking at its arguments, which takes
longer than a small image."""


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
    area, aspect, place = draws.reshape(batch, 3, ATTEMPTS).unbind(1)
    target = height * width * (scale[0] + area * (scale[1] - scale[0]))
    ratio = torch.exp(_LOG_RATIO + aspect * _LOG_SPAN)
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
    down = place.gather(1, (first + 1) % ATTEMPTS)[:, 0]
    left = (across * (width - w + 1)).long()
    top = (down * (height - h + 1)).long()
    left = torch.where(found, left, (width - w) // 2)
    top = torch.where(found, top, (height - h) // 2)
    return torch.stack([top, left, h, w], dim=1)


def crop(images: Tensor, boxes: Tensor, size: int, flips: Tensor, interpolation: str) -> Tensor:
    """Cut, resize (antialiased) and mirror, by whichever way is fastest here.

    Args:
        images: uint8 [B, 3, H, W]; channels last in memory is fastest for large images on a CPU.
        boxes: int64 [B, 4] from `crop_boxes`.
        size: Side of the views in pixels.
        flips: bool [B], which are mirrored.
        interpolation: ``bilinear`` or ``bicubic``.

    Returns:
        uint8 [B, 3, size, size], contiguous.
    """
    if images.device.type != "cpu" or max(*images.shape[2:], size) <= _MATRIX_SIDE:
        return crop_by_matrix(images, boxes, size, flips, interpolation)
    return crop_by_box(images, boxes, size, flips, interpolation)


def crop_by_matrix(images: Tensor, boxes: Tensor, size: int, flips: Tensor, interpolation: str) -> Tensor:
    """Cut and resize all images by two batched matrix products, without waiting for the device.

    Args:
        images: uint8 [B, 3, H, W].
        boxes: int64 [B, 4], on the images' device.
        size: Side of the views.
        flips: bool [B].
        interpolation: ``bilinear`` or ``bicubic``.

    Returns:
        uint8 [B, 3, size, size], within a step of what torchvision gives, which rounds after each pass.
    """
    batch, channels, height, width = images.shape
    down = resize_matrix(boxes[:, 0], boxes[:, 2], height, size, interpolation)
    across = resize_matrix(boxes[:, 1], boxes[:, 3], width, size, interpolation)
    across = torch.where(flips[:, None, None], across.flip(1), across)
    rows = images.to(torch.float32, memory_format=torch.contiguous_format)
    rows = torch.bmm(rows.reshape(batch, channels * height, width), across.transpose(1, 2))
    if interpolation == "bicubic":
        # Its weights are negative in places and shoot over; in 8 bits both passes are cut off.
        rows = rows.clamp_(0, 255)
    views = torch.matmul(down[:, None], rows.reshape(batch, channels, height, size))
    # Half a step up and cut off: rounded.
    return views.add_(0.5).clamp_(0, 255.5).to(torch.uint8)


def resize_matrix(start: Tensor, length: Tensor, before: int, after: int, interpolation: str) -> Tensor:
    """Weigh input pixels for output pixels along one axis, antialiased as torch's and Pillow's resize.

    Args:
        start: int64 [B], the first pixel of the part that is kept.
        length: int64 [B], its length.
        before: Length of the input.
        after: Length of the output.
        interpolation: ``bilinear``, or ``bicubic`` with a = −0.5.

    Returns:
        float32 [B, after, before]; every row sums to 1 and is 0 outside the part.
    """
    scale = (length.to(torch.float32) / after)[:, None, None]
    stretch = scale.clamp(min=1)
    outputs = torch.arange(after, device=start.device, dtype=torch.float32)[None, :, None]
    inputs = torch.arange(before, device=start.device)[None, None, :] - start[:, None, None]
    distance = ((inputs + 0.5 - scale * (outputs + 0.5)) / stretch).abs()
    if interpolation == "bilinear":
        weights = (1 - distance).clamp(min=0)
    else:
        near = (1.5 * distance - 2.5) * distance * distance + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    inside = (inputs >= 0) & (inputs < length[:, None, None])
    weights = torch.where(inside, weights, 0.0)
    return weights / weights.sum(dim=2, keepdim=True)


def crop_by_box(images: Tensor, boxes: Tensor, size: int, flips: Tensor, interpolation: str) -> Tensor:
    """Cut and resize image by image on the CPU, in 8 bits, shared out among torch's threads.

    Args:
        images: uint8 [B, 3, H, W].
        boxes: int64 [B, 4].
        size: Side of the views.
        flips: bool [B].
        interpolation: ``bilinear`` or ``bicubic``.

    Returns:
        uint8 [B, 3, size, size], the same as torchvision's ``resized_crop`` gives.
    """
    views = torch.empty(len(images), 3, size, size, dtype=torch.uint8)
    todo = list(zip(images, boxes.tolist(), flips.tolist(), views.numpy(), strict=True))

    def work(part: Iterable[tuple[Tensor, list[int], bool, NDArray[np.uint8]]]) -> None:
        for image, (top, left, height, width), mirrored, view in part:
            piece = image[None, :, top : top + height, left : left + width]
            resized = _RESIZE[interpolation](piece, [size, size], False)[0].numpy()
            # numpy copies in this thread; torch would wake its own threads once more in each of these.
            np.copyto(view, resized[:, :, ::-1] if mirrored else resized)

    threads = torch.get_num_threads()
    if threads == 1 or len(images) < 2 * threads:
        work(todo)
    else:
        list(_pool(threads).map(work, [todo[first::threads] for first in range(threads)]))
    return views


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)
