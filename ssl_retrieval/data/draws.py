"""A part of a large dataset, drawn by a seed: the same one every time, and named in the task."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ssl_retrieval.console import say
from ssl_retrieval.data.base import DataConfig
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import ImageSet

_BYTES_PER_PAIR = 32
"""A relevant item's index and its three ranks."""

_MUCH = 8e9
"""Bytes from which on the memory for them is told."""


@dataclass
class DrawConfig(DataConfig):
    """Options of loaders that can draw.

    Attributes:
        queries_per_class: Draw so many queries of each class; null = all.
        gallery_per_class: Draw so many gallery images of each class; null = all. Where queries and gallery
            are the same images, the queries are drawn from these.
        seed: Of both draws.
    """

    queries_per_class: int | None = None
    gallery_per_class: int | None = None
    seed: int = 0


def check_draws(cfg: DrawConfig) -> None:
    """Refuse numbers that mean nothing.

    Raises:
        UserError: A limit is below 1.
    """
    for key in ("queries_per_class", "gallery_per_class"):
        limit = getattr(cfg, key)
        if limit is not None and limit < 1:
            raise UserError(f"data.{key}={limit}: must be at least 1, or null for all images")


def draw(cfg: DrawConfig, queries: ImageSet, gallery: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Draw queries and gallery as the options say; tell how much memory very many relevant items take.

    Args:
        cfg: The options, checked.
        queries: Labelled images; ``gallery`` itself = leave one out.
        gallery: Labelled images.
    """
    drawn = some_per_class(gallery, cfg.gallery_per_class, cfg.seed)
    candidates = drawn if queries is gallery else queries
    searching = some_per_class(candidates, cfg.queries_per_class, cfg.seed + 1)
    needed = memory_for(searching, drawn)
    if needed > _MUCH:
        most = needed // (_BYTES_PER_PAIR * len(searching))
        say(
            f"{len(searching)} queries with up to {most} relevant images "
            f"take {needed / 1e9:.0f} GB of memory: data.queries_per_class=… draws fewer"
        )
    return searching, drawn


def memory_for(queries: ImageSet, gallery: ImageSet) -> int:
    """Estimate the bytes that the lists of relevant items and their ranks take: queries times largest class.

    >>> from pathlib import Path
    >>> from ssl_retrieval.data.tasks import labelled
    >>> memory_for(*[labelled(Path(), ["1", "2", "3"], ["a", "b", "a"])] * 2)
    192
    """
    assert gallery.labels is not None
    return _BYTES_PER_PAIR * len(queries) * int(np.bincount(gallery.labels).max(initial=0))


def some_per_class(images: ImageSet, limit: int | None, seed: int) -> ImageSet:
    """Draw ``limit`` images of each class, which stay in their order; None keeps all.

    Args:
        images: With labels.
        limit: At most so many of each class.
        seed: Of the draw.
    """
    if limit is None:
        return images
    assert images.labels is not None
    drawn = np.random.default_rng(seed % 2**32).permutation(len(images))
    labels = images.labels[drawn]
    number_in_class = pd.Series(labels).groupby(labels).cumcount().to_numpy()
    return images.take(np.sort(drawn[number_in_class < limit]))


def in_name(cfg: DrawConfig) -> str:
    """Say it in a task's name.

    >>> in_name(DrawConfig(queries_per_class=5, seed=3)), in_name(DrawConfig())
    ('-5-queries-per-class-seed-3', '')
    """
    limits = {"queries": cfg.queries_per_class, "gallery": cfg.gallery_per_class}
    said = [f"-{limit}-{word}-per-class" for word, limit in limits.items() if limit is not None]
    return "".join([*said, f"-seed-{cfg.seed}"]) if said else ""
