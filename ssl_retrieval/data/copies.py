"""Near-duplicates made from any folder: instance-level search with exact answers for unlabelled photos.

Nothing to download and no labels needed. Some photos of ``data.root`` are altered as people alter them, and
each altered copy searches for its original among all photos::

    ssl-retrieval compare configs/compare/copies.yaml data.root=photos out=runs/copies

The copies are written once as JPEG (quality 95) below ``data.copies`` and reused; what is random depends on
``data.seed``, the transformation and the photo's content alone. Photos with exactly the bytes of the
original, and a collage's background, are neither right nor wrong: they do not count for that query.
"""

import hashlib
import importlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ssl_retrieval import copy_transformations
from ssl_retrieval.atomic import atomic_path, require_writable
from ssl_retrieval.console import progress_bar
from ssl_retrieval.copy_transformations import TRANSFORMATIONS, collage
from ssl_retrieval.data.base import DataConfig, check, existing_folder
from ssl_retrieval.data.common_root import common_root, paths_below
from ssl_retrieval.errors import ImageError, UserError
from ssl_retrieval.images import content_digests, list_images, load_image, report_skipped, unreadable
from ssl_retrieval.types import ImageSet, IntArray, Task, digest_of

QUALITY = 95
MAX_SIDE = 1024
"""Larger photos are reduced before they are altered: copies that go around are rarely larger."""
_VERSION = 1
"""Part of the names of copies: raised when the same settings make other pixels."""


@dataclass
class Config(DataConfig):
    """Options of the loader.

    Attributes:
        of: Dataset section: its training images are the photos, in place of all images of ``root``, which may
            then be empty.
        copies: The folder where copies are written and found again.
        transformations: Names, each with ``:strength`` where the usual one is not wanted: ``crop``,
            ``jpeg:90``, ….
        num_originals: So many photos are altered, drawn at random; all photos are searched.
        seed: Of that draw and of all that is random in the copies.
    """

    name: str = "copies"
    of: Any = field(default=None, metadata={"kind": "dataset"})
    copies: str = ""
    transformations: list[str] = field(default_factory=lambda: list(TRANSFORMATIONS))
    num_originals: int = 250
    seed: int = 0


@dataclass(frozen=True)
class _Copy:
    """One copy to be made: which photo, how, where, and a collage's background."""

    original: int
    name: str
    strength: float | None
    path: str
    background: int | None


def load(cfg: Config) -> Task:
    """Make the copies that are missing, and the task.

    Raises:
        UserError: A folder or an option is wrong, or no photo can be read.
    """
    photos = images(cfg)
    wanted = _parse(cfg.transformations)
    if cfg.num_originals < 1:
        raise UserError(f"data.num_originals={cfg.num_originals}: must be at least 1")
    if len(photos) < 2:
        raise UserError(f"{str(photos.root)!r} holds one image: a search needs at least two")
    if not cfg.copies:
        raise UserError("data.copies is not set: give a folder for the copies, e.g. data.copies=runs/images")
    folder = Path(cfg.copies).expanduser()
    if folder.resolve().is_relative_to(photos.root.resolve()):
        raise UserError(
            f"data.copies={cfg.copies!r} lies within data.root, where the copies would be searched as "
            "photos: give a folder outside"
        )
    require_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    digests = content_digests(photos)
    plan = _plan(cfg, photos, wanted, digests)
    made, skipped = _make(photos, folder, plan, cfg.seed, digests)
    if skipped and cfg.on_error == "fail":
        raise unreadable(photos, *skipped[0])
    report_skipped(skipped, "the copies")
    if not made:
        raise UserError(
            f"no copy could be made: none of the drawn images in {str(photos.root)!r} can be read"
        )
    root = common_root(photos.root, folder, "data.copies")
    relevant, ignored = _answers(made, digests)
    names = "-".join(spec.replace(":", "-") for spec in cfg.transformations)
    return Task(
        name="copies" if len(wanted) > 3 else f"copies-{names}",
        level="instance",
        queries=ImageSet(root, paths_below(root, ImageSet(folder, tuple(copy.path for copy in made)))),
        gallery=ImageSet(root, paths_below(root, photos)),
        relevant=relevant,
        ignored=ignored,
        description=f"{len(made)} altered copies ({', '.join(cfg.transformations)}) search for their "
        f"originals among {len(photos)} photos.",
        metrics=("mAP", "uap", "hit_rate@1"),
    )


def images(cfg: Config) -> ImageSet:
    """List the photos.

    Raises:
        UserError: The folder is wrong.
    """
    check(cfg)
    if cfg.of is not None:
        # A dataset's Config lives in the file of its loader.
        chosen: ImageSet = importlib.import_module(type(cfg.of).__module__).images(cfg.of)
        return ImageSet(chosen.root, chosen.paths)
    root = existing_folder("data.root", cfg.root)
    return ImageSet(root, tuple(list_images(root)))


def _parse(specs: Sequence[str]) -> list[tuple[str, float | None]]:
    if not specs:
        raise UserError(f"data.transformations is empty: choose from {', '.join(TRANSFORMATIONS)}")
    parsed = []
    for spec in specs:
        name, colon, text = spec.partition(":")
        try:
            strength = float(text) if colon else None
        except ValueError:
            raise UserError(f"data.transformations: {spec!r} has no number after the colon") from None
        copy_transformations.check(name, strength)
        parsed.append((name, strength))
    if len(set(parsed)) < len(parsed):
        raise UserError(f"data.transformations={list(specs)}: one is given twice")
    return parsed


def _plan(
    cfg: Config, photos: ImageSet, wanted: list[tuple[str, float | None]], digests: list[str]
) -> list[_Copy]:
    draw = np.random.default_rng([cfg.seed % 2**32, 0])
    chosen = np.sort(draw.permutation(len(photos))[: cfg.num_originals]).tolist()
    # Each photo's background is drawn once, whatever the transformations are.
    backgrounds = [(index + 1 + int(draw.integers(len(photos) - 1))) % len(photos) for index in chosen]
    plan = []
    for name, strength in wanted:
        of_name = TRANSFORMATIONS[name].default if strength is None else strength
        for index, other in zip(chosen, backgrounds, strict=True):
            background = other if name == "collage" and digests[other] != digests[index] else None
            against = "" if background is None else digests[background]
            content = digest_of([_VERSION, digests[index], against, name, of_name, cfg.seed])
            # The folders of the photos stay; a suffix would not tell 1.jpg from 1.png, the digest does.
            path = Path(f"{name}-{of_name:g}", photos.paths[index]).with_suffix("")
            path = path.with_name(f"{path.name}-{content}.jpg")
            plan.append(_Copy(index, name, of_name, path.as_posix(), background))
    return plan


def _make(
    photos: ImageSet, folder: Path, plan: list[_Copy], seed: int, digests: list[str]
) -> tuple[list[_Copy], list[tuple[str, str]]]:
    """Write the copies that are missing; give those that there are, and the unreadable photos."""

    def make(copy: _Copy) -> str | None:
        target = folder / copy.path
        if target.exists():
            return None
        try:
            _write(photos, copy, target, _generator(seed, copy, digests))
        except ImageError as error:
            return str(error)
        return None

    made, reasons = [], {}
    with ThreadPoolExecutor() as pool, progress_bar() as bar:
        results = bar.track(pool.map(make, plan), total=len(plan), description="copies")
        for copy, reason in zip(plan, results, strict=True):
            if reason is None:
                made.append(copy)
            else:
                reasons[photos.paths[copy.original]] = reason
    return made, list(reasons.items())


def _generator(seed: int, copy: _Copy, digests: list[str]) -> np.random.Generator:
    text = f"{seed} {copy.name} {copy.strength} {digests[copy.original]}"
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()))


def _write(photos: ImageSet, copy: _Copy, target: Path, generator: np.random.Generator) -> None:
    original = _opened(photos.file(copy.original))
    if copy.background is None:
        altered = copy_transformations.apply(original, copy.name, copy.strength, generator)
    else:
        assert copy.strength is not None
        altered = collage(original, _opened(photos.file(copy.background)), copy.strength, generator)
    with atomic_path(target) as partial:
        altered.save(partial, "JPEG", quality=QUALITY, subsampling=0)


def _opened(file: Path) -> Image.Image:
    image = load_image(file, at_least=MAX_SIDE)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return image


def _answers(made: list[_Copy], digests: list[str]) -> tuple[tuple[IntArray, ...], tuple[IntArray, ...]]:
    alike: dict[str, list[int]] = {}
    for index, digest in enumerate(digests):
        alike.setdefault(digest, []).append(index)
    relevant, ignored = [], []
    for copy in made:
        uncounted = set(alike[digests[copy.original]])
        if copy.background is not None:
            uncounted.update(alike[digests[copy.background]])
        uncounted.discard(copy.original)
        relevant.append(np.array([copy.original], np.int64))
        ignored.append(np.array(sorted(uncounted), np.int64))
    return tuple(relevant), tuple(ignored)
