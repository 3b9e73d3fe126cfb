"""What people do to a photo before it is found again: named transformations with a strength each.

They act on PIL images, one at a time, with Pillow's operations. What is random is drawn from the generator
that is given, so that the same generator state makes the same copy.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

from ssl_retrieval.errors import UserError

_LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))


@dataclass(frozen=True)
class Transformation:
    """One transformation.

    Attributes:
        apply: Image, strength, generator -> the copy.
        default: The strength when none is given.
        low: Strengths must lie above it …
        high: … and not above this.
        meaning: What the strength is, with its unit.
    """

    apply: Callable[[Image.Image, float, np.random.Generator], Image.Image]
    default: float
    low: float
    high: float
    meaning: str


def apply(
    image: Image.Image, name: str, strength: float | None, generator: np.random.Generator
) -> Image.Image:
    """Make one altered copy.

    Args:
        image: RGB.
        name: One of `TRANSFORMATIONS`.
        strength: None = its default.
        generator: Decides places, directions and words.

    Returns:
        An RGB image.

    Raises:
        UserError: No transformation has this name, or the strength is outside its range.

    >>> apply(Image.new("RGB", (200, 100)), "crop", 0.25, np.random.default_rng(0)).size
    (100, 50)
    """
    check(name, strength)
    of_name = TRANSFORMATIONS[name]
    return of_name.apply(image, of_name.default if strength is None else strength, generator)


def check(name: str, strength: float | None) -> None:
    """Refuse unknown names, and strengths that mean nothing.

    Raises:
        UserError: Names the known ones, or the range.
    """
    if name not in TRANSFORMATIONS:
        raise UserError(f"unknown transformation {name!r}: one of {', '.join(TRANSFORMATIONS)}")
    of_name = TRANSFORMATIONS[name]
    if strength is not None and not of_name.low < strength <= of_name.high:
        raise UserError(
            f"transformation {name}:{strength:g}: the strength is {of_name.meaning}, "
            f"above {of_name.low:g} and at most {of_name.high:g}"
        )


def _crop(image: Image.Image, share: float, generator: np.random.Generator) -> Image.Image:
    width, height = (max(1, round(side * share**0.5)) for side in image.size)
    left = int(generator.integers(image.width - width + 1))
    top = int(generator.integers(image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def _scale(image: Image.Image, share: float, generator: np.random.Generator) -> Image.Image:
    width, height = (max(1, round(side * share)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _rotate(image: Image.Image, degrees: float, generator: np.random.Generator) -> Image.Image:
    turn = degrees if generator.random() < 0.5 else -degrees
    return image.rotate(turn, Image.Resampling.BICUBIC)


def _jpeg(image: Image.Image, quality: float, generator: np.random.Generator) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=round(quality))
    return Image.open(file, formats=["JPEG"]).convert("RGB")


def _blur(image: Image.Image, percent: float, generator: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(min(image.size) * percent / 100))


def _text(image: Image.Image, words: float, generator: np.random.Generator) -> Image.Image:
    image = image.copy()
    draw = ImageDraw.Draw(image)
    for _ in range(round(words)):
        word = "".join(generator.choice(_LETTERS, generator.integers(4, 10)))
        font = ImageFont.load_default(max(6.0, min(image.size) * generator.uniform(0.08, 0.2)))
        place = generator.uniform(-0.1, 0.9) * image.width, generator.uniform(0, 0.9) * image.height
        red, green, blue = generator.integers(256, size=3).tolist()
        draw.text(place, word, (red, green, blue), font)
    return image


def _flip(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _collage(image: Image.Image, share: float, generator: np.random.Generator) -> Image.Image:
    """Stand for `collage` where there is no other photo: the rest of the canvas is noise."""
    noise = Image.fromarray(generator.integers(256, size=(8, 8, 3), dtype=np.uint8))
    return collage(image, noise.resize(image.size, Image.Resampling.BICUBIC), share, generator)


def collage(
    image: Image.Image, background: Image.Image, share: float, generator: np.random.Generator
) -> Image.Image:
    """Paste a photo, made smaller, into another one.

    Args:
        image: RGB.
        background: RGB; it is brought to the size of ``image``.
        share: The part of the area that ``image`` takes.
        generator: Decides the place.
    """
    canvas = background.resize(image.size, Image.Resampling.BICUBIC)
    small = _scale(image, share**0.5, generator)
    left = int(generator.integers(image.width - small.width + 1))
    top = int(generator.integers(image.height - small.height + 1))
    canvas.paste(small, (left, top))
    return canvas


def _gray(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
    return ImageEnhance.Color(image).enhance(1 - strength)


def _color(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    shift = round(strength * 255) if generator.random() < 0.5 else -round(strength * 255)
    turned = hue.point([(level + shift) % 256 for level in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


def _brightness(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(
        1 - strength if generator.random() < 0.5 else 1 / (1 - strength)
    )


TRANSFORMATIONS: dict[str, Transformation] = {
    "crop": Transformation(_crop, 0.3, 0, 1, "the share of the area that is kept"),
    "scale": Transformation(_scale, 0.25, 0, 1, "the share of each side that is kept"),
    "rotate": Transformation(_rotate, 20, 0, 180, "an angle in degrees, to either side"),
    "jpeg": Transformation(_jpeg, 5, 0, 100, "the JPEG quality"),
    "blur": Transformation(_blur, 3, 0, 50, "the Gaussian's standard deviation in % of the short side"),
    "text": Transformation(_text, 10, 0, 1000, "the number of words written over it"),
    "flip": Transformation(_flip, 1, 0, 1, "1 (it is mirrored left to right)"),
    "collage": Transformation(_collage, 0.25, 0, 1, "the share of another photo that it covers"),
    "gray": Transformation(_gray, 1, 0, 1, "how far the colours go towards grey"),
    "color": Transformation(_color, 0.1, 0, 0.5, "the share of the colour circle by which hues turn"),
    "brightness": Transformation(_brightness, 0.5, 0, 0.95, "the share of the light that goes or comes"),
}
"""Name -> what it does. The default strengths are hard for features and easy for a person."""
