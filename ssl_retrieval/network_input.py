"""How an image becomes a network's input: resize, centre crop, normalise."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

MAX_ASPECT = 4
"""Longer images are cut to this ratio around the centre first: the crop would drop the ends anyway,
and a 20,000 × 20 panorama must not become 220,000 px wide on its way there."""


@dataclass(frozen=True)
class InputSpec:
    """What a network expects.

    Attributes:
        size: Side of the square input in pixels.
        mean: Per channel, of values in [0, 1].
        std: Per channel.
        interpolation: ``bilinear`` or ``bicubic``.
        crop: Share of the resized short side that the centre crop keeps; 1 = all of it.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    crop: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for json."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "InputSpec":
        """Read what `to_dict` gave."""
        return cls(**values | {"mean": tuple(values["mean"]), "std": tuple(values["std"])})

    def __call__(self, image: Image.Image) -> Tensor:
        """Make the input: RGB image -> float32 [3, size, size], normalised."""
        width, height = image.size
        long_side = MAX_ASPECT * min(width, height)
        if max(width, height) > long_side:
            image = tvf.center_crop(image, [min(height, long_side), min(width, long_side)])
        short = max(self.size, int(self.size / self.crop))
        image = tvf.resize(image, [short], InterpolationMode(self.interpolation), antialias=True)
        pixels = tvf.pil_to_tensor(tvf.center_crop(image, [self.size, self.size]))
        return tvf.normalize(tvf.to_dtype(pixels, torch.float32, scale=True), list(self.mean), list(self.std))
