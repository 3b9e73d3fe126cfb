"""Several tasks in one gallery: each query searches the images of all domains.

A photo of a bird then has cars, shoes and landmarks in the way, as in Ypsilantis et al., "Towards universal
image embeddings", ICCV 2023 (UnED), which is judged by ``hit_rate@1`` and ``mMP@5``. Relevant and ignored
items of a query stay those of its own task; all images of the other parts count, and none of them is
relevant::

    data:
      name: merged
      root: ~/data                                   # the parts' roots are below it, or absolute
      parts:
        birds: {name: cub200, root: CUB_200_2011}
        cars: {name: cars196, root: cars196}
    tasks:
      birds: {domain: birds}                         # all tasks search the same gallery
      cars: {domain: cars}

An image's id starts at the lowest folder that holds all parts; a class's name starts with its part's.
"""

import importlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ssl_retrieval.data.base import DataConfig, check, existing_folder, one_of
from ssl_retrieval.data.common_root import common_root, paths_below
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import ImageSet, IntArray, Task


@dataclass
class Config(DataConfig):
    """Options of the loader.

    Attributes:
        root: The folder below which the parts' roots are looked for; empty = they are given as they are.
        parts: Label -> dataset section, of two or more.
        domain: The part whose queries search; empty = all of them.
    """

    name: str = "merged"
    root: str = ""
    parts: Any = field(default_factory=dict, metadata={"kind": "dataset", "map": True, "shared": ""})
    domain: str = ""


def load(cfg: Config) -> Task:
    """Make the task of a domain, or of all, in the gallery of all.

    Post-processing is fitted on the training images of all parts that have some.

    Raises:
        UserError: A part is wrong, or two parts hold the same image or follow different protocols.
    """
    tasks = {label: _of_part(cfg, label, "load") for label in _labels(cfg)}
    searching = [label for label in tasks if cfg.domain in ("", label)]
    protocols = {tasks[label].protocol for label in searching}
    if len(protocols) > 1:
        raise UserError(
            f"the parts {', '.join(searching)} follow different protocols: set data.domain to one"
        )
    root = _root([part for task in tasks.values() for part in (task.queries, task.gallery, task.fit) if part])
    queries, galleries, fits = (
        {label: _below(images, root) for label, task in tasks.items() if (images := pick(task)) is not None}
        for pick in (lambda task: task.queries, lambda task: task.gallery, lambda task: task.fit)
    )
    _refuse_shared({label: {*galleries[label].paths, *queries[label].paths} for label in tasks})
    _refuse_shared({label: set(fit.paths) for label, fit in fits.items()})
    names = {label: _class_names(label, queries[label], galleries[label]) for label in tasks}
    starts = dict(zip(tasks, np.cumsum([0, *map(len, galleries.values())]).tolist(), strict=False))
    levels = {tasks[label].level for label in searching}
    searched = ", ".join(searching)
    metrics = {label: task.metrics for label, task in tasks.items()}
    return Task(
        name=f"{tasks[cfg.domain].name if cfg.domain else 'all'}-among-{len(tasks)}-sets",
        level="category" if levels == {"category"} else "instance",
        queries=_union({label: queries[label] for label in searching}, names),
        gallery=_union(galleries, names),
        relevant=_shifted({label: tasks[label].relevant for label in searching}, starts),
        ignored=_shifted({label: tasks[label].ignored for label in searching}, starts),
        protocol=protocols.pop(),
        fit=_union(fits, {label: _class_names(label, fit) for label, fit in fits.items()}) if fits else None,
        description=f"{sum(len(queries[label]) for label in searching)} queries of {searched} search "
        f"{sum(map(len, galleries.values()))} images of {', '.join(tasks)}.",
        metrics=tuple(dict.fromkeys(["mMP@5", *(name for label in searching for name in metrics[label])])),
    )


def images(cfg: Config) -> ImageSet:
    """List the images of all parts for training, labelled as in their parts.

    Raises:
        UserError: A part is wrong, or two parts hold the same image.
    """
    found = {label: _of_part(cfg, label, "images") for label in _labels(cfg)}
    root = _root(list(found.values()))
    parts = {label: _below(part, root) for label, part in found.items()}
    _refuse_shared({label: set(part.paths) for label, part in parts.items()})
    return _union(parts, {label: _class_names(label, part) for label, part in parts.items()})


def _labels(cfg: Config) -> list[str]:
    check(cfg)
    if cfg.root:
        existing_folder("data.root", cfg.root)
    if len(cfg.parts) < 2:
        raise UserError("data.parts: give two or more, each with a name, as data.parts.birds.name=cub200")
    one_of("data.domain", cfg.domain, ("", *cfg.parts))
    return list(cfg.parts)


def _of_part(cfg: Config, label: str, what: str) -> Any:
    """Call ``load`` or ``images`` of a part's loader."""
    part = cfg.parts[label]
    if cfg.root and part.root:
        root = Path(cfg.root).expanduser() / Path(part.root).expanduser()
        part = replace(part, root=str(root))
    # A dataset's Config lives in the file of its loader.
    loader = importlib.import_module(type(part).__module__)
    try:
        return getattr(loader, what)(part)
    except UserError as error:
        raise UserError(f"part {label!r}: {error}") from error


def _root(sets: list[ImageSet]) -> Path:
    """Find the lowest folder that holds all."""
    root = sets[0].root.resolve()
    for images in sets[1:]:
        root = common_root(root, images.root, "data.parts")
    return root


def _below(images: ImageSet, root: Path) -> ImageSet:
    return replace(images, root=root, paths=paths_below(root, images))


def _refuse_shared(paths: dict[str, set[str]]) -> None:
    seen: dict[str, str] = {}
    for label, part in paths.items():
        both = part.intersection(seen)
        if both:
            path = min(both)
            raise UserError(
                f"image {path!r} is in the parts {seen[path]!r} and {label!r}: what is relevant to a query "
                "would be in its way; leave one of them out"
            )
        seen.update(dict.fromkeys(part, label))


def _class_names(label: str, *sets: ImageSet) -> tuple[str, ...]:
    """Name the classes of a part; images without labels are all of the class that is named as the part."""
    if any(images.labels is None or images.class_names != sets[0].class_names for images in sets):
        return (label,)
    return tuple(f"{label}/{name}" for name in sets[0].class_names)


def _union(parts: dict[str, ImageSet], names: dict[str, tuple[str, ...]]) -> ImageSet:
    """Join image sets under one root.

    Args:
        parts: Label -> images.
        names: Label -> `_class_names`, of all parts of the task.
    """
    starts = dict(zip(names, np.cumsum([0, *map(len, names.values())]).tolist(), strict=False))
    labels: list[IntArray] = []
    for label, images in parts.items():
        is_one_class = images.labels is None or names[label] == (label,)
        own = np.zeros(len(images), np.int64) if is_one_class else images.labels
        assert own is not None
        labels.append(own + starts[label])
    boxes = [
        np.full((len(images), 4), np.nan, np.float32) if images.boxes is None else images.boxes
        for images in parts.values()
    ]
    return ImageSet(
        root=next(iter(parts.values())).root,
        paths=tuple(path for images in parts.values() for path in images.paths),
        labels=np.concatenate(labels),
        class_names=tuple(name for part in names.values() for name in part),
        boxes=np.concatenate(boxes) if any(images.boxes is not None for images in parts.values()) else None,
    )


def _shifted(lists: dict[str, tuple[IntArray, ...]], starts: dict[str, int]) -> tuple[IntArray, ...]:
    # One copy per list that queries share, and not one per query: classes may have thousands of images.
    shifted: dict[int, IntArray] = {}
    for label, part in lists.items():
        for indices in part:
            if id(indices) not in shifted:
                shifted[id(indices)] = indices + starts[label]
    return tuple(shifted[id(indices)] for part in lists.values() for indices in part)
