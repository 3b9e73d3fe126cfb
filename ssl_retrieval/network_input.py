"""How an image becomes a network's input: resized and cut one by one, normalised in batches."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

VERSION = 2
"""Of the pixels that `InputSpec.pixels` makes; vectors of another version are not reused."""

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
        """Make the whole input: RGB image -> float32 [3, size, size], normalised."""
        normalized: Tensor = Normalize(self.mean, self.std)(self.pixels(image)[None])[0]
        return normalized

    def pixels(self, image: Image.Image) -> Tensor:
        """Resize and cut: RGB image -> uint8 [3, size, size], the channels of a pixel side by side in memory.

        Pillow's own resize gives the same but for rounding, at three times the cost.
        """
        width, height = image.size
        long_side = MAX_ASPECT * min(width, height)
        if max(width, height) > long_side:
            image = tvf.center_crop(image, [min(height, long_side), min(width, long_side)])
        short = max(self.size, int(self.size / self.crop))
        pixels = tvf.pil_to_tensor(image)
        pixels = tvf.resize(pixels, [short], InterpolationMode(self.interpolation), antialias=True)
        cut: Tensor = tvf.center_crop(pixels, [self.size, self.size])
        return cut


class Normalize(nn.Module):
    """uint8 [B, 3, H, W] -> float32, minus mean, divided by std; what is float already is given back.

    One multiply-add per value, on the network's device: a batch travels there as bytes. Nothing of it is
    in the ``state_dict``.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        """Prepare the two constants per channel.

        Args:
            mean: Of values in [0, 1].
            std: Of values in [0, 1].
        """
        super().__init__()
        of_channel = torch.tensor([mean, std], dtype=torch.float64).view(2, 1, 3, 1, 1)
        self.register_buffer("scale", (1 / (255 * of_channel[1])).float(), persistent=False)
        self.register_buffer("shift", (-of_channel[0] / of_channel[1]).float(), persistent=False)

    def forward(self, batch: Tensor) -> Tensor:
        """Normalise; the memory format stays."""
        if batch.dtype != torch.uint8:
            return batch
        values = batch.float()
        return torch.addcmul(
            self._of_row(self.shift, batch), values, self._of_row(self.scale, batch), out=values
        )

    def _of_row(self, of_channel: Tensor, batch: Tensor) -> Tensor:
        """Repeat a constant along a row of ``channels_last`` pixels: loops over three values are slow."""
        return of_channel.expand(1, 3, 1, batch.shape[3]).contiguous(memory_format=torch.channels_last)
