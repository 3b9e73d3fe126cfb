"""ROxford5k and RParis6k: Oxford and Paris with new labels, 70 queries each, easy, medium and hard.

From Radenović et al., "Revisiting Oxford and Paris: large-scale image retrieval benchmarking", CVPR 2018,
arXiv 1803.11285; its home page and the repository filipradenovic/revisitop have the ground truth, the images
are those of Oxford5k and Paris6k. Under ``data.root``, as the repository puts them::

    roxford5k/gnd_roxford5k.pkl                    rparis6k/gnd_rparis6k.pkl
    roxford5k/jpg/all_souls_000000.jpg ...         rparis6k/jpg/paris_defense_000000.jpg ...

The pickle is read without executing anything in it (see `plain_pickle`). What is to be found, and what is
taken out of the ranking, follows ``data.difficulty``:

========== ============= =======================
difficulty relevant      ignored
========== ============= =======================
easy       easy          junk and hard
medium     easy and hard junk
hard       hard          junk and easy
========== ============= =======================

The 70 query images are no part of the gallery; one that a changed ground truth lists there too is ignored in
its own ranking. They are cut to their boxes unless
``data.query_crop=none``; the protocol records it, for it moves the score by a point or more. Queries with
nothing to find do not count. The benchmark's average precision is ``mAP_trapezoid``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssl_retrieval.data import distractors, plain_pickle
from ssl_retrieval.data.base import DataConfig, check, existing_folder, one_of
from ssl_retrieval.data.plain_pickle import NumberArray
from ssl_retrieval.data.published import by_stem, ground_truth_file, require
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import ImageSet, IntArray, Protocol, Task

_RELEVANT = {"easy": ("easy",), "medium": ("easy", "hard"), "hard": ("hard",)}
_IGNORED = {"easy": ("junk", "hard"), "medium": ("junk",), "hard": ("junk", "easy")}


@dataclass
class Config(DataConfig):
    """Options of the loader.

    Attributes:
        set: ``roxford5k`` or ``rparis6k``.
        difficulty: ``easy``, ``medium`` or ``hard``.
        ground_truth: The pickle; empty = ``gnd_<set>.pkl`` in ``root``.
        query_crop: ``box`` cuts queries to their boxes, ``none`` leaves them whole.
        distractors: A folder of other images that join the gallery (the million of R1M); empty = none.
    """

    name: str = "revisited"
    set: str = "roxford5k"
    difficulty: str = "medium"
    ground_truth: str = ""
    query_crop: str = "box"
    distractors: str = ""


@dataclass(frozen=True)
class GroundTruth:
    """What the pickle says.

    Attributes:
        gallery: N image names without suffix.
        queries: Q image names without suffix.
        boxes: Q boxes: left, top, right and bottom edge in pixels.
        lists: For each query ``easy``, ``hard`` and ``junk``: int64 gallery indices.
    """

    gallery: tuple[str, ...]
    queries: tuple[str, ...]
    boxes: tuple[tuple[float, ...], ...]
    lists: tuple[dict[str, IntArray], ...]


def load(cfg: Config) -> Task:
    """Make the instance-level task of a difficulty.

    Raises:
        UserError: The folder, the pickle or an option is wrong, or images are missing.
    """
    one_of("data.difficulty", cfg.difficulty, tuple(_RELEVANT))
    one_of("data.query_crop", cfg.query_crop, ("box", "none"))
    root, truth, paths = _read(cfg)
    gallery = ImageSet(root, tuple(paths[name] for name in truth.gallery))
    boxes = np.array(truth.boxes, np.float32) if cfg.query_crop == "box" else None
    queries = ImageSet(root, tuple(paths[name] for name in truth.queries), boxes=boxes)
    itself = _positions(truth)
    queries, gallery, count = distractors.add(cfg.distractors, queries, gallery)
    return Task(
        name=f"{cfg.set}-{cfg.difficulty}{distractors.in_name(count)}",
        level="instance",
        queries=queries,
        gallery=gallery,
        relevant=tuple(
            np.setdiff1d(_union(lists, _RELEVANT[cfg.difficulty]), own)
            for lists, own in zip(truth.lists, itself, strict=True)
        ),
        ignored=tuple(
            np.union1d(_union(lists, _IGNORED[cfg.difficulty]), own)
            for lists, own in zip(truth.lists, itself, strict=True)
        ),
        protocol=Protocol(query_crop=cfg.query_crop),
        description=f"{len(queries)} views of buildings search for the same building among "
        f"{len(gallery) - count} photos, {cfg.difficulty}.{distractors.in_words(count)}",
        metrics=("mAP_trapezoid", *(f"precision_revisited@{k}" for k in (1, 5, 10))),
    )


def images(cfg: Config) -> ImageSet:
    """List the gallery's photos: neither queries nor distractors.

    Raises:
        UserError: As for `load`.
    """
    root, truth, paths = _read(cfg)
    return ImageSet(root, tuple(paths[name] for name in truth.gallery))


def read_ground_truth(file: Path) -> GroundTruth:
    """Read ``gnd_roxford5k.pkl`` or ``gnd_rparis6k.pkl``.

    Raises:
        UserError: The pickle is refused, or holds something else.
    """
    try:
        content = plain_pickle.read(file)
        gallery, queries = _names(content["imlist"]), _names(content["qimlist"])
        entries = [content["gnd"][i] for i in range(len(queries))]
        lists = tuple(
            {kind: _indices(entry[kind], len(gallery)) for kind in ("easy", "hard", "junk")}
            for entry in entries
        )
        boxes = tuple(_box(entry["bbx"]) for entry in entries)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{str(file)!r} is no ground truth of revisitop ({type(error).__name__}: {error}): download "
            "gnd_roxford5k.pkl or gnd_rparis6k.pkl again"
        ) from None
    for name, entry in zip(queries, lists, strict=True):
        if len(_union(entry, tuple(entry))) < sum(map(len, entry.values())):
            raise UserError(f"{str(file)!r}: the lists of query {name!r} overlap; download it again")
    return GroundTruth(gallery, queries, boxes, lists)


def _read(cfg: Config) -> tuple[Path, GroundTruth, dict[str, str]]:
    check(cfg)
    one_of("data.set", cfg.set, ("roxford5k", "rparis6k"))
    root = existing_folder("data.root", cfg.root)
    source = "the home page of Revisiting Oxford and Paris has it"
    truth = read_ground_truth(ground_truth_file(root, f"gnd_{cfg.set}.pkl", cfg.ground_truth, source))
    paths = by_stem(root)
    require([*truth.gallery, *truth.queries], paths, root)
    return root, truth, paths


def _names(value: Any) -> tuple[str, ...]:
    if not (isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)):
        raise TypeError("its image names are no list of texts")
    return tuple(value)


def _indices(value: Any, size: int) -> IntArray:
    given = np.array(_plain(value))
    if given.size == 0:
        return np.empty(0, np.int64)
    if given.ndim != 1 or given.dtype.kind not in "iu" or given.min() < 0 or given.max() >= size:
        raise ValueError(f"its lists need whole numbers from 0 to {size - 1}")
    return np.unique(given.astype(np.int64))


def _box(value: Any) -> tuple[float, ...]:
    left, top, right, bottom = map(float, _plain(value))
    if not (left < right and top < bottom):
        raise ValueError("a box needs left below right and top below bottom")
    return left, top, right, bottom


def _plain(value: Any) -> Any:
    return value.values if isinstance(value, NumberArray) else value


def _positions(truth: GroundTruth) -> tuple[IntArray, ...]:
    """Give, for each query, where it stands in the gallery itself: int64 [0] or [1]."""
    position = {name: i for i, name in enumerate(truth.gallery)}
    return tuple(np.array([position[name]] if name in position else [], np.int64) for name in truth.queries)


def _union(lists: dict[str, IntArray], kinds: tuple[str, ...]) -> IntArray:
    return np.unique(np.concatenate([lists[kind] for kind in kinds]))
