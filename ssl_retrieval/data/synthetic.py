"""Pictures drawn on the spot, with known answers: coloured, patterned shapes under nuisance of your choice.

Nothing to download. An object is a shape in a colour with a pattern; each stands in ``views`` pictures,
turned, moved, scaled, lit and covered with noise by ``data.nuisance`` (0 = all its pictures are the same, 1 =
much). The seed decides everything. Four tasks, each picture searching among the others:

======= ==================================================================================================
object  the other pictures of its object; without nuisance whatever tells objects apart scores 1
shape   other objects of its shape; its own object is ignored, so that colour is no help
color   other objects of its colour; shape is no help
pattern other objects with its pattern
======= ==================================================================================================

Of all combinations ``objects`` are searched and as many others are for training. The pictures are drawn once
into ``data.root``, in a folder named by the options, which is a part of their ids.
"""

import math
import os
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ssl_retrieval.atomic import atomic_folder
from ssl_retrieval.data.base import DataConfig, check, one_of
from ssl_retrieval.data.tasks import labelled, task_from_groups
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import ImageSet, Task, digest_of

_SHARPNESS = 4
"""Shapes are drawn so many times larger, and reduced."""

_VERSION = 1
"""Changes when the same options give other pictures."""

COLORS = {
    "red": (214, 48, 49),
    "orange": (240, 147, 43),
    "green": (39, 174, 96),
    "cyan": (34, 190, 200),
    "blue": (41, 84, 210),
    "purple": (142, 68, 173),
}
PATTERNS = ("plain", "stripes", "dots")


@dataclass
class Config(DataConfig):
    """Options of the loader.

    Attributes:
        root: Where the pictures are drawn; empty = ``synthetic`` in ``$SSL_RETRIEVAL_CACHE`` or in
            ``~/.cache/ssl_retrieval``.
        task: ``object``, ``shape``, ``color`` or ``pattern``.
        split: Which pictures `images` gives: ``train`` or ``test``.
        objects: How many are searched, and how many others are for training: 2 to 54.
        views: Pictures of each object; at least 2.
        nuisance: From 0 to 1.
        size: Width and height in pixels; at least 16.
        seed: Of the draw.
    """

    name: str = "synthetic"
    root: str = ""
    task: str = "object"
    split: str = "train"
    objects: int = 36
    views: int = 4
    nuisance: float = 0.5
    size: int = 64
    seed: int = 0


def load(cfg: Config) -> Task:
    """Make the task that ``cfg.task`` names; post-processing is fitted on other objects.

    Raises:
        UserError: An option is wrong, or ``root`` cannot be written.
    """
    pictures = _pictures(cfg, "test")
    labels = pictures.labels
    assert labels is not None
    objects = np.repeat(np.arange(cfg.objects), cfg.views)
    common: dict[str, Any] = {
        "name": f"synthetic-{cfg.task}",
        "queries": pictures,
        "gallery": pictures,
        "fit": _pictures(cfg, "train"),
        "metrics": ("hit_rate@1", "mAP@R"),
    }
    words = f"Each of {len(pictures)} drawings (nuisance {cfg.nuisance:g}) searches the others"
    if cfg.task == "object":
        return task_from_groups(level="instance", description=f"{words} for the same object.", **common)
    of_object = [np.flatnonzero(objects == number) for number in range(cfg.objects)]
    alike = [np.flatnonzero(labels == label) for label in range(len(pictures.class_names))]
    return Task(
        level="category",
        relevant=tuple(np.setdiff1d(alike[labels[i]], of_object[objects[i]]) for i in range(len(pictures))),
        ignored=tuple(of_object[number] for number in objects),
        description=f"{words} for another object of the same {cfg.task}.",
        **common,
    )


def images(cfg: Config) -> ImageSet:
    """List the pictures of ``split``, labelled as the task wants.

    Raises:
        UserError: As for `load`.
    """
    one_of("data.split", cfg.split, ("train", "test"))
    return _pictures(cfg, cfg.split)


def draw(
    shape: str, color: str, pattern: str, nuisance: float, size: int, seed: list[int]
) -> NDArray[np.uint8]:
    """Draw one picture.

    Args:
        shape: A key of `SHAPES`.
        color: A key of `COLORS`.
        pattern: One of `PATTERNS`; patterns turn and grow with the shape.
        nuisance: From 0 to 1: how far angle, place, size, light and noise are drawn at random.
        size: Width and height in pixels.
        seed: Of these draws.

    Returns:
        uint8 [size, size, 3].
    """
    random = np.random.default_rng(seed)
    turn, grow, right, down, light, ground = nuisance * random.uniform(-1, 1, 6)
    angle, radius = math.pi * turn, 0.2 * size * math.exp(0.35 * grow)
    x0, y0 = size * (0.5 + 0.12 * right), size * (0.5 + 0.12 * down)
    cos, sin = math.cos(angle), math.sin(angle)

    corners = radius * SHAPES[shape] @ np.array([[cos, sin], [-sin, cos]]) + [x0, y0]
    canvas = Image.new("L", (size * _SHARPNESS, size * _SHARPNESS))
    ImageDraw.Draw(canvas).polygon([tuple(corner) for corner in corners * _SHARPNESS], fill=255)
    mask = np.asarray(canvas.reduce(_SHARPNESS), np.float64)[..., None] / 255

    y, x = np.mgrid[:size, :size] + 0.5
    u = (cos * (x - x0) + sin * (y - y0)) / radius
    v = (cos * (y - y0) - sin * (x - x0)) / radius
    dark = {
        "plain": np.zeros((size, size), bool),
        "stripes": np.sin(6 * u) > 0,
        "dots": np.sin(6 * u) * np.sin(6 * v) > 0.3,
    }[pattern]
    inside = np.array(COLORS[color]) * np.where(dark, 0.5, 1.0)[..., None]
    picture = (mask * inside + (1 - mask) * (205 + 40 * ground)) * (1 + 0.25 * light)
    picture += 20 * nuisance * random.normal(size=picture.shape)
    return np.clip(np.round(picture), 0, 255).astype(np.uint8)


def _outline(corners: list[tuple[float, float]]) -> NDArray[np.float64]:
    """Give all shapes the area of a circle of radius 1, so that area tells nothing about the shape."""
    points = np.array(corners, np.float64)
    x, y = points.T
    area = abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
    return points * math.sqrt(math.pi / area)


def _ring(radii: list[float]) -> list[tuple[float, float]]:
    angles = [2 * math.pi * i / len(radii) - math.pi / 2 for i in range(len(radii))]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


_CROSS = [-1.0, 1.0, 1.0, 3.0, 3.0, 1.0, 1.0, -1.0, -1.0, -3.0, -3.0, -1.0]
"""The corners' x, going round; y is the same a quarter of a turn away."""

SHAPES = {
    "circle": _outline(_ring([1.0] * 60)),
    "square": _outline(_ring([1.0] * 4)),
    "triangle": _outline(_ring([1.0] * 3)),
    "star": _outline(_ring([1.0, 0.42] * 5)),
    "cross": _outline(list(zip(_CROSS, _CROSS[9:] + _CROSS[:9], strict=True))),
    "arrow": _outline([(0, -3), (3, 0), (1, 0), (1, 3), (-1, 3), (-1, 0), (-3, 0)]),
}
"""float64 [corners, 2] around the origin, x to the right and y down; the area is that of a unit circle."""


def _objects(cfg: Config, split: str) -> list[tuple[str, str, str]]:
    """Choose combinations of shape, colour and pattern; those of the splits differ."""
    combinations = list(product(SHAPES, COLORS, PATTERNS))
    order = np.random.default_rng(cfg.seed % 2**32).permutation(len(combinations))
    start = 0 if split == "test" else cfg.objects
    return [combinations[number] for number in order[start : start + cfg.objects]]


def _pictures(cfg: Config, split: str) -> ImageSet:
    _check(cfg)
    folder = _folder(cfg)
    if not folder.is_dir():
        _draw_all(cfg, folder)
    objects = [parts for parts in _objects(cfg, split) for _ in range(cfg.views)]
    paths = [f"{folder.name}/{_path(split, parts, i % cfg.views)}" for i, parts in enumerate(objects)]
    attribute = {"shape": 0, "color": 1, "pattern": 2}.get(cfg.task)
    names = ["-".join(parts) if attribute is None else parts[attribute] for parts in objects]
    return labelled(folder.parent, paths, names)


def _path(split: str, parts: tuple[str, str, str], view: int) -> str:
    return f"{split}/{'-'.join(parts)}/{view}.png"


def _draw_all(cfg: Config, folder: Path) -> None:
    try:
        with atomic_folder(folder) as partial:
            for number, split in enumerate(("test", "train")):
                for index, parts in enumerate(_objects(cfg, split)):
                    (partial / split / "-".join(parts)).mkdir(parents=True)
                    for view in range(cfg.views):
                        seed = [cfg.seed % 2**32, number, index, view]
                        picture = draw(*parts, nuisance=cfg.nuisance, size=cfg.size, seed=seed)
                        Image.fromarray(picture).save(partial / _path(split, parts, view))
    except OSError as error:
        raise UserError(
            f"cannot draw to {str(folder)!r} ({error.strerror or error}): set data.root"
        ) from None


def _folder(cfg: Config) -> Path:
    options = (_VERSION, cfg.objects, cfg.views, cfg.nuisance, cfg.size, cfg.seed)
    cache = Path(os.environ.get("SSL_RETRIEVAL_CACHE") or Path.home() / ".cache" / "ssl_retrieval")
    root = Path(cfg.root).expanduser() if cfg.root else cache / "synthetic"
    return root / digest_of(options)


def _check(cfg: Config) -> None:
    check(cfg)
    one_of("data.task", cfg.task, ("object", "shape", "color", "pattern"))
    most = len(SHAPES) * len(COLORS) * len(PATTERNS) // 2
    for key, low, high in (("objects", 2, most), ("views", 2, 1000), ("nuisance", 0, 1), ("size", 16, 1024)):
        if not low <= getattr(cfg, key) <= high:
            raise UserError(f"data.{key}={getattr(cfg, key)}: from {low} to {high} is needed")
