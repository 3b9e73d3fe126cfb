"""Gaussian blur of a batch, with a σ of its own for every image."""

import torch
from torch import Tensor
from torch.nn import functional as nnf

from ssl_retrieval import compiling


def gaussian_blur(images: Tensor, sigma: Tensor, kernel_size: int, compiled: bool = False) -> Tensor:
    """Blur each image with its own σ, borders reflected; equals torchvision's for the same kernel.

    Args:
        images: float [B, C, H, W], H and W above half the kernel.
        sigma: float [B], in pixels; 0 leaves an image as it is.
        kernel_size: Odd side of the kernel in pixels.
        compiled: Let torch.compile make the two passes: half the time of a grouped convolution on a CPU.
    """
    half = kernel_size // 2
    kernel = _kernels(sigma, half).to(images.dtype)
    if compiled:
        # In two steps: within one kernel every tap of one pass would compute all taps of the other.
        down = _compiled_down(nnf.pad(images, [0, 0, half, half], mode="reflect"), kernel)
        return _compiled_across(nnf.pad(down, [half, half, 0, 0], mode="reflect"), kernel)
    batch, channels, height, width = images.shape
    groups = batch * channels
    kernel = kernel.repeat_interleave(channels, 0)
    flat = nnf.pad(images, [half, half, half, half], mode="reflect").reshape(
        1, groups, height + 2 * half, width + 2 * half
    )
    flat = nnf.conv2d(flat, kernel[:, None, :, None], groups=groups)
    flat = nnf.conv2d(flat, kernel[:, None, None, :], groups=groups)
    return flat.reshape(batch, channels, height, width)


def _kernels(sigma: Tensor, half: int) -> Tensor:
    offsets = torch.arange(-half, half + 1, device=sigma.device, dtype=torch.float32)
    # A σ next to 0 gives a single 1, where 0 itself would divide by zero.
    kernel = torch.exp(-0.5 * (offsets / sigma.to(torch.float32).clamp(min=1e-3)[:, None]) ** 2)
    return kernel / kernel.sum(1, keepdim=True)


def _down(padded: Tensor, kernel: Tensor) -> Tensor:
    taps, height = kernel.shape[1], padded.shape[2] - kernel.shape[1] + 1
    total = kernel[:, 0, None, None, None] * padded[:, :, :height]
    for tap in range(1, taps):
        total = total + kernel[:, tap, None, None, None] * padded[:, :, tap : tap + height]
    return total


def _across(padded: Tensor, kernel: Tensor) -> Tensor:
    taps, width = kernel.shape[1], padded.shape[3] - kernel.shape[1] + 1
    total = kernel[:, 0, None, None, None] * padded[..., :width]
    for tap in range(1, taps):
        total = total + kernel[:, tap, None, None, None] * padded[..., tap : tap + width]
    return total


_compiled_down, _compiled_across = compiling.compiled(_down), compiling.compiled(_across)
