"""Folders of small pictures in which each class has its own colours."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"apple": (200, 40, 40), "bear": (110, 70, 30), "cloud": (150, 180, 230), "door": (40, 120, 60)}


def photo(colour: tuple[int, int, int], seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A colour with strong noise: alike within a class, never the same."""
    generator = np.random.default_rng(seed)
    noise = generator.normal(0, 45, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8))


def write_photos(root: Path, per_class: int, classes: int = 4, suffix: str = "png") -> Path:
    """Write ``root/<class>/<number>.<suffix>``."""
    for number, (name, colour) in enumerate(list(COLOURS.items())[:classes]):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            photo(colour, seed=1000 * number + i).save(root / name / f"{i}.{suffix}")
    return root


def write_flat_photos(root: Path, count: int) -> Path:
    """Write ``root/<number>.png``: no classes."""
    root.mkdir(parents=True)
    for i in range(count):
        photo((120, 120, 120), seed=i).save(root / f"{i}.png")
    return root
