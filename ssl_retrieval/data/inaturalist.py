"""iNaturalist: animals, plants and fungi; photos of the same species, or genus, family, …, are to be found.

From Van Horn et al., "The iNaturalist species classification and detection dataset", CVPR 2018, and
"Benchmarking representation learning for natural world image collections", CVPR 2021; the repository
visipedia/inat_comp has the photos and annotations of each year. ``data.root``, for 2021 and for 2018::

    train.json, val.json                            train2018.json, val2018.json
    train/00000_Animalia_.../*.jpg ...              train_val2018/Plantae/7477/*.jpg ...
    val/00000_Animalia_.../*.jpg ...

2021: 10,000 species, 2,686,843 training photos (``data.train=train_mini.json``: 500,000) and 100,000 of val.
2018: 8,142 species, 437,513 and 24,426 (``data.train=train2018.json data.val=val2018.json``).

Photos of val search among the other photos of val, or among the training photos (``data.gallery=train``). A
genus is told by all ranks above it too: plants and birds have some names of genera in common.
"""

import json
from dataclasses import dataclass
from typing import Any

from ssl_retrieval.data.base import check, existing_folder, one_of
from ssl_retrieval.data.draws import DrawConfig, check_draws, draw, in_name
from ssl_retrieval.data.published import published_file, require_files
from ssl_retrieval.data.tasks import labelled, task_from_groups
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import ImageSet, Task

_RANKS = ("kingdom", "phylum", "class", "order", "family", "genus")
_ADVICE = "download it with its photos (repository visipedia/inat_comp has the links) and unpack both there"


@dataclass
class Config(DrawConfig):
    """Options of the loader, besides those of `DrawConfig`.

    Attributes:
        rank: What makes photos alike: ``species``, ``genus``, ``family``, ``order``, ``class``, ``phylum``,
            ``kingdom`` or ``supercategory``.
        gallery: ``val``: leave one out among photos of val; ``train``: they search the training photos.
        val: The annotations of val.
        train: The annotations of the training photos; empty = there are none, and nothing can be fitted.
    """

    name: str = "inaturalist"
    rank: str = "species"
    gallery: str = "val"
    val: str = "val.json"
    train: str = "train.json"


def load(cfg: Config) -> Task:
    """Make the category-level task; post-processing is fitted on training photos.

    Raises:
        UserError: The folder, an annotation file or an option is wrong, or photos are missing.
    """
    one_of("data.gallery", cfg.gallery, ("val", "train"))
    check_draws(cfg)
    val = _photos(cfg, cfg.val)
    train = images(cfg) if cfg.train or cfg.gallery == "train" else None
    if train is not None and not set(val.paths).isdisjoint(train.paths):
        raise UserError(f"{cfg.val!r} and {cfg.train!r} of {cfg.root!r} share photos: download them again")
    queries, gallery = draw(cfg, val, val if cfg.gallery == "val" or train is None else train)
    if queries.class_names != gallery.class_names:
        raise UserError(
            f"{cfg.val!r} and {cfg.train!r} of {cfg.root!r} differ in categories: give both of one year"
        )
    return task_from_groups(
        name=f"{val.root.resolve().name}-{cfg.rank}-in-{cfg.gallery}{in_name(cfg)}",
        level="category",
        queries=queries,
        gallery=gallery,
        fit=train,
        description=f"{len(queries)} photos of val search {len(gallery)} of {cfg.gallery} by {cfg.rank}.",
        metrics=("hit_rate@1", "hit_rate@4", "hit_rate@16", "hit_rate@32", "mAP@R"),
    )


def images(cfg: Config) -> ImageSet:
    """List the training photos, labelled at the rank.

    Raises:
        UserError: As for `load`.
    """
    if not cfg.train:
        raise UserError("data.train is empty: name the annotations of the training photos, e.g. train.json")
    return _photos(cfg, cfg.train)


def _photos(cfg: Config, name: str) -> ImageSet:
    check(cfg)
    one_of("data.rank", cfg.rank, ("species", *reversed(_RANKS), "supercategory"))
    root = existing_folder("data.root", cfg.root)
    file = published_file(root, name, _ADVICE)
    try:
        content = json.loads(file.read_text("utf-8"))
        name_of = {entry["id"]: _class_name(entry, cfg.rank) for entry in content["categories"]}
        class_of: dict[Any, str] = {}
        for entry in content["annotations"]:
            if entry["image_id"] in class_of:
                raise ValueError(f"image {entry['image_id']} has two categories")
            class_of[entry["image_id"]] = name_of[entry["category_id"]]
        paths = [str(entry["file_name"]) for entry in content["images"]]
        names = [class_of[entry["id"]] for entry in content["images"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{str(file)!r} is no annotation of iNaturalist ({type(error).__name__}: {error}): {_ADVICE}"
        ) from None
    require_files(root, paths)
    return labelled(root, paths, names, sorted(set(name_of.values())))


def _class_name(category: dict[str, Any], rank: str) -> str:
    if rank == "species":
        return f"{category['id']} {category['name']}"
    if rank == "supercategory":
        return str(category[rank])
    return "/".join(str(category[name]) for name in _RANKS[: _RANKS.index(rank) + 1])
