"""What is done to pictures to see whether a representation notices: kinds, each in several strengths."""

from functools import partial

from PIL import Image, ImageFilter
from torchvision.transforms.v2 import InterpolationMode, functional

from ssl_retrieval.invariance import Alterations
from ssl_retrieval.planted_copies import centre, jpeg, mirrored

_GREY = [124, 116, 104]


def rotated(image: Image.Image, degrees: float) -> Image.Image:
    """Turn anticlockwise within the frame; the corners become grey."""
    turned: Image.Image = functional.rotate(
        image, degrees, interpolation=InterpolationMode.BILINEAR, fill=_GREY
    )
    return turned


def blurred(image: Image.Image, share: float) -> Image.Image:
    """Blur with a Gaussian whose standard deviation is a share of the short side."""
    return image.filter(ImageFilter.GaussianBlur(share * min(image.size)))


def smaller(image: Image.Image, factor: int) -> Image.Image:
    """Divide both sides by a whole number."""
    size = max(1, image.width // factor), max(1, image.height // factor)
    return image.resize(size, Image.Resampling.BICUBIC)


def upside_down(image: Image.Image) -> Image.Image:
    """Exchange top and bottom."""
    return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)


def without_colour(image: Image.Image) -> Image.Image:
    """Keep the brightness only."""
    return image.convert("L").convert("RGB")


ALTERATIONS: Alterations = {
    "crop": {f"{share:.0%} of each side": partial(centre, share=share) for share in (0.9, 0.7, 0.5)},
    "rotate": {f"{degrees}°": partial(rotated, degrees=degrees) for degrees in (5, 20, 90)},
    "flip": {"left-right": mirrored, "upside down": upside_down},
    "blur": {f"{share:.1%} of side": partial(blurred, share=share) for share in (0.005, 0.01, 0.03)},
    "JPEG": {f"quality {quality}": partial(jpeg, quality=quality) for quality in (50, 20, 5)},
    "scale": {f"1/{factor}": partial(smaller, factor=factor) for factor in (2, 4, 8)},
    "brightness": {
        f"× {by}": partial(functional.adjust_brightness, brightness_factor=by) for by in (0.7, 1.5, 0.4)
    },
    "contrast": {f"× {by}": partial(functional.adjust_contrast, contrast_factor=by) for by in (0.7, 0.4)},
    "saturation": {
        f"× {by}": partial(functional.adjust_saturation, saturation_factor=by) for by in (0.5, 2.0)
    },
    "hue": {f"by {by:.0%}": partial(functional.adjust_hue, hue_factor=by) for by in (0.05, 0.15, 0.5)},
    "greyscale": {"full": without_colour},
}
"""Within a kind from weak to strong; hue is turned by a share of the colour circle."""
