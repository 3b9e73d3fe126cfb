"""Small pictures for the tests of views, and torchvision applied to them one by one."""

from collections.abc import Callable

import torch
from torch import Tensor

CHANCE = 1e-4
"""Some twenty p-values are looked at: one under this is no accident."""


def pictures(count: int, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    """Smooth in places and hard in others, with pure grey, black and white among them."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)
    images[:, :, : height // 4] = images[:, :1, : height // 4]
    images[:, :, -2:] = 255
    images[:, :, :2] = 0
    return images


def one_by_one(operation: Callable[[Tensor, float], Tensor], images: Tensor, values: Tensor) -> Tensor:
    return torch.stack([operation(image, float(value)) for image, value in zip(images, values, strict=True)])
