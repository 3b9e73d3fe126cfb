"""How many copies a search for copies finds: known ones are made, and looked for."""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from PIL import Image

from ssl_retrieval import copy_transformations
from ssl_retrieval.errors import ImageError
from ssl_retrieval.images import load_image
from ssl_retrieval.perceptual_hash import distances, gather, hash_image
from ssl_retrieval.types import ImageSet, VectorArray

Embed = Callable[[list[Image.Image]], VectorArray]


COPIES: Mapping[str, Mapping[str, float]] = {
    "half the size": {"scale": 0.5},
    "JPEG quality 30": {"jpeg": 30},
    "mirrored": {"flip": 1},
    "mirrored, half the size, JPEG quality 30": {"flip": 1, "scale": 0.5, "jpeg": 30},
    "crop of 80 % of the area": {"crop": 0.8},
    "crop of 50 % of the area": {"crop": 0.5},
}
"""What it is called -> transformations (see `copy_transformations`), in this order, with their strengths."""


def copied(image: Image.Image, steps: Mapping[str, float], generator: np.random.Generator) -> Image.Image:
    """Make a copy."""
    for name, strength in steps.items():
        image = copy_transformations.apply(image, name, strength, generator)
    return image


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
        seed: Of the draw, and of what is random in the copies.

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
    for name, steps in COPIES.items():
        generator = np.random.default_rng(seed % 2**32)
        copies = [copied(image, steps, generator) for image in originals]
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
