"""How many copies a search for copies finds: known ones are made, and looked for."""

import io
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from PIL import Image

from ssl_retrieval.errors import ImageError
from ssl_retrieval.images import load_image
from ssl_retrieval.perceptual_hash import distances, gather, hash_image
from ssl_retrieval.types import ImageSet, VectorArray

Embed = Callable[[list[Image.Image]], VectorArray]


def half_size(image: Image.Image) -> Image.Image:
    """Shrink both sides to a half."""
    return image.resize((max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Compress and decode again."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def mirrored(image: Image.Image) -> Image.Image:
    """Exchange left and right."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def centre(image: Image.Image, share: float) -> Image.Image:
    """Keep the middle of an image.

    Args:
        image: The image.
        share: Of each side that is kept, above 0 and at most 1.
    """
    width, height = max(1, round(image.width * share)), max(1, round(image.height * share))
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


COPIES: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "half the size": half_size,
    "JPEG quality 30": lambda image: jpeg(image, 30),
    "mirrored": mirrored,
    "mirrored, half the size, JPEG quality 30": lambda image: jpeg(half_size(mirrored(image)), 30),
    "middle 90 % of each side": lambda image: centre(image, 0.9),
    "middle 70 % of each side": lambda image: centre(image, 0.7),
}


def found_shares(
    images: ImageSet,
    count: int,
    max_hamming: int,
    min_cosine: float,
    embed: Embed | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Make copies of some images and see which would be recognised.

    Args:
        images: From these ``count`` are drawn; those that cannot be read are left out.
        count: At most so many.
        max_hamming: As in `near_duplicates.find_pairs`.
        min_cosine: Likewise.
        embed: Gives float32 [N, D] of length 1 or 0; None = only the hash is tried.
        seed: Of the draw.

    Returns:
        One row per kind of copy: ``copy``, ``num_images``, and the shares found by ``hash``, by
        ``embedding`` (NaN without) and by ``either``; ``median_hamming`` and ``median_cosine`` show what
        thresholds would have to be.
    """
    chosen = np.sort(np.random.default_rng(seed % 2**32).permutation(len(images))[:count])
    originals = []
    for index in chosen.tolist():
        try:
            originals.append(load_image(images.file(index)))
        except ImageError:
            continue
    rows = np.arange(len(originals))
    codes = gather([hash_image(image) for image in originals])
    vectors = None if embed is None else embed(originals)
    table = []
    for name, change in COPIES.items():
        copies = [change(image) for image in originals]
        hamming, _ = distances(codes, gather([hash_image(image) for image in copies]), (rows, rows))
        cosines = np.full(len(rows), np.nan)
        if embed is not None and vectors is not None:
            cosines = (vectors * embed(copies)).sum(axis=1)
        by_hash, by_embedding = hamming <= max_hamming, cosines >= min_cosine
        table.append(
            {
                "copy": name,
                "num_images": len(rows),
                "hash": _share(by_hash),
                "embedding": np.nan if embed is None else _share(by_embedding),
                "either": _share(by_hash | by_embedding),
                "median_hamming": _median(hamming),
                "median_cosine": _median(cosines),
            }
        )
    return pd.DataFrame(table)


def _share(found: np.ndarray) -> float:
    return float(found.mean()) if len(found) else float("nan")


def _median(values: np.ndarray) -> float:
    return float("nan") if np.isnan(values).all() else float(np.nanmedian(values))
