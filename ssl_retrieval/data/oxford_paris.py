"""Oxford5k and Paris6k: 55 queries each for buildings, with good, ok and junk lists.

Oxford5k: Philbin et al., "Object retrieval with large vocabularies and fast spatial matching", CVPR 2007.
Paris6k: Philbin et al., "Lost in quantization", CVPR 2008. From the pages "The Oxford Buildings Dataset" and
"The Paris Dataset" of the Visual Geometry Group, Oxford: the images (Oxford one archive, Paris two) and the
ground truth files, 220 texts. Unpack the images anywhere under ``data.root``; the texts there too, in the
folder itself or one of its own, or anywhere else with ``data.ground_truth``::

    oxford5k/jpg/all_souls_000000.jpg ...          paris6k/paris/defense/paris_defense_000000.jpg ...
    oxford5k/gt_files/all_souls_1_query.txt ...    paris6k/gt_files/defense_1_query.txt ...

Relevant are good and ok images; junk ones are taken out of the ranking. By the classical protocol the query
is cut to its box and searches in all images, its own among them: that is one of the good or ok ones and
counts (``data.self_match=counted``). ``ignored`` takes it out, ``data.query_crop=none`` leaves queries whole;
the protocol records both. The classical average precision is ``mAP_trapezoid``.

About 20 images of Paris6k are damaged; ``data.on_error=skip`` leaves them out and lists them.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssl_retrieval.data import distractors
from ssl_retrieval.data.base import DataConfig, check, existing_folder, one_of
from ssl_retrieval.data.published import by_stem, indices_of, require
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import ImageSet, Protocol, Task

_QUERY = "_query.txt"
_LISTS = ("good", "ok", "junk")


@dataclass
class Config(DataConfig):
    """Options of the loader.

    Attributes:
        set: ``oxford5k`` or ``paris6k``.
        ground_truth: The folder with ``*_query.txt``; empty = ``root`` or a folder directly in it.
        query_crop: ``box`` cuts queries to their boxes, ``none`` leaves them whole.
        self_match: ``counted``: a query's own image is to be found; ``ignored``: it is left out.
        distractors: A folder of other images that join the gallery (Oxford100k); empty = none.
    """

    name: str = "oxford_paris"
    set: str = "oxford5k"
    ground_truth: str = ""
    query_crop: str = "box"
    self_match: str = "counted"
    distractors: str = ""


@dataclass(frozen=True)
class Query:
    """One query of the ground truth.

    Attributes:
        name: Its name there, as ``all_souls_1``.
        image: The image's name without suffix.
        box: Left, top, right and bottom edge in pixels.
        good: Images that show the object well.
        ok: Images that show more than a quarter of it.
        junk: Images that show less, or with heavy distortion.
    """

    name: str
    image: str
    box: tuple[float, float, float, float]
    good: tuple[str, ...]
    ok: tuple[str, ...]
    junk: tuple[str, ...]


def load(cfg: Config) -> Task:
    """Make the instance-level task.

    Raises:
        UserError: A folder or option is wrong, or images of the ground truth are missing.
    """
    one_of("data.query_crop", cfg.query_crop, ("box", "none"))
    one_of("data.self_match", cfg.self_match, ("counted", "ignored"))
    gallery = images(cfg)
    asked = read_ground_truth(_ground_truth_folder(cfg, gallery.root))
    position = {Path(path).stem: i for i, path in enumerate(gallery.paths)}
    named = [name for query in asked for name in (query.image, *query.good, *query.ok, *query.junk)]
    require(named, position, gallery.root)
    relevant, ignored = [], []
    for query in asked:
        found = indices_of([*query.good, *query.ok], position)
        out = indices_of(query.junk, position)
        if cfg.self_match == "ignored":
            itself = position[query.image]
            found, out = found[found != itself], np.union1d(out, np.array([itself]))
        relevant.append(found)
        ignored.append(out)
    queries = ImageSet(
        gallery.root,
        tuple(gallery.paths[position[query.image]] for query in asked),
        boxes=np.array([query.box for query in asked], np.float32) if cfg.query_crop == "box" else None,
    )
    queries, gallery, count = distractors.add(cfg.distractors, queries, gallery)
    return Task(
        name=f"{cfg.set}{distractors.in_name(count)}",
        level="instance",
        queries=queries,
        gallery=gallery,
        relevant=tuple(relevant),
        ignored=tuple(ignored),
        protocol=Protocol(query_crop=cfg.query_crop, self_match=cfg.self_match),
        description=f"{len(queries)} views of buildings search for the same building among "
        f"{len(gallery) - count} photos.{distractors.in_words(count)}",
        metrics=("mAP_trapezoid",),
    )


def images(cfg: Config) -> ImageSet:
    """List all photos, the queries' among them, without distractors.

    Raises:
        UserError: The folder or an option is wrong.
    """
    check(cfg)
    one_of("data.set", cfg.set, ("oxford5k", "paris6k"))
    root = existing_folder("data.root", cfg.root)
    return ImageSet(root, tuple(by_stem(root).values()))


def read_ground_truth(folder: Path) -> list[Query]:
    """Read ``*_query.txt`` and the three lists that go with each, in natural order of their names.

    Oxford's queries carry the prefix ``oxc1_``, which no image has. A name that a list gives twice stays so.

    Raises:
        UserError: A file is missing or says something else.
    """
    files = sorted(folder.glob(f"*{_QUERY}"))
    if not files:
        raise UserError(f"no *{_QUERY} in {str(folder)!r}: unpack the ground truth files there")
    return [_read_query(file) for file in files]


def _read_query(file: Path) -> Query:
    name = file.name.removesuffix(_QUERY)
    words = _words(file)
    try:
        image, *numbers = words
        left, top, right, bottom = map(float, numbers)
    except ValueError:
        raise UserError(
            f"{str(file)!r}: an image name and four numbers are needed, not {words[:6]}"
        ) from None
    if not (left < right and top < bottom):
        raise UserError(f"{str(file)!r}: the box needs left below right and top below bottom")
    good, ok, junk = (_words(file.with_name(f"{name}_{kind}.txt")) for kind in _LISTS)
    if twice := (set(good) | set(ok)) & set(junk):
        raise UserError(f"{name!r} in {str(file.parent)!r} has {min(twice)!r} both as junk and as good or ok")
    return Query(name, image.removeprefix("oxc1_"), (left, top, right, bottom), good, ok, junk)


def _words(file: Path) -> tuple[str, ...]:
    try:
        return tuple(file.read_text("utf-8").split())
    except OSError as error:
        raise UserError(
            f"cannot read {str(file)!r}: {error.strerror}; unpack the ground truth again"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{str(file)!r} is no text: unpack the ground truth again") from None


def _ground_truth_folder(cfg: Config, root: Path) -> Path:
    if cfg.ground_truth:
        return existing_folder("data.ground_truth", cfg.ground_truth)
    places = [root, *sorted(place for place in root.iterdir() if place.is_dir())]
    found = next((place for place in places if any(place.glob(f"*{_QUERY}"))), None)
    if found is None:
        raise UserError(
            f"no *{_QUERY} in {str(root)!r} or in a folder of it: unpack the ground truth files there, or "
            "set data.ground_truth to their folder"
        )
    return found
