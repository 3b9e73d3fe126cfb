"""Pictures with many keypoints, each unlike the others."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def scene(seed: int, size: int = 160) -> Image.Image:
    """Overlapping shapes of random grey values and colours."""
    generator = np.random.default_rng(seed)
    image = Image.new("RGB", (size, size), "grey")
    draw = ImageDraw.Draw(image)
    for _ in range(60):
        left, top = generator.integers(0, size, 2).tolist()
        width, height = generator.integers(4, 40, 2).tolist()
        colour = tuple(generator.integers(0, 256, 3).tolist())
        shape = draw.ellipse if generator.random() < 0.5 else draw.rectangle
        shape((left, top, left + width, top + height), fill=colour)
    return image


def write_scenes(root: Path, count: int, first_seed: int = 0) -> Path:
    """Write ``root/<number>.png``."""
    root.mkdir(parents=True)
    for number in range(count):
        scene(first_seed + number).save(root / f"{number:03}.png")
    return root
