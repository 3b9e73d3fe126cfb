"""What is done to pictures to see whether a representation notices: kinds, each in several strengths."""

import zlib
from functools import partial

import numpy as np
from PIL import Image

from ssl_retrieval import copy_transformations
from ssl_retrieval.invariance import Alterations

STRENGTHS: dict[str, tuple[float, ...]] = {
    "crop": (0.8, 0.5, 0.25),
    "scale": (0.5, 0.25, 0.125),
    "rotate": (5, 20, 90),
    "flip": (1,),
    "blur": (0.5, 1, 3),
    "jpeg": (50, 20, 5),
    "brightness": (0.2, 0.4, 0.6),
    "color": (0.05, 0.15, 0.5),
    "gray": (0.5, 1),
    "text": (3, 10),
    "collage": (0.5, 0.25),
}
"""Name in `copy_transformations` -> strengths, from weak to strong."""


def altered(image: Image.Image, name: str, strength: float) -> Image.Image:
    """Alter a picture, always in the same way: what is random depends on its pixels alone."""
    generator = np.random.default_rng(zlib.crc32(image.tobytes()))
    return copy_transformations.apply(image, name, strength, generator)


ALTERATIONS: Alterations = {
    name: {f"{strength:g}": partial(altered, name=name, strength=strength) for strength in strengths}
    for name, strengths in STRENGTHS.items()
}
