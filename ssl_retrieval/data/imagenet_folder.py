"""ImageNet and all that is laid out like it: validation photos search for their class.

ILSVRC2012 (Russakovsky et al., "ImageNet large scale visual recognition challenge", IJCV 2015; from
image-net.org, after registration) has 1,281,167 training and 50,000 validation photos of 1,000 classes. Under
``data.root``::

    train/n01440764/*.JPEG ...       one archive per class inside ILSVRC2012_img_train.tar
    val/n01440764/*.JPEG ...         ILSVRC2012_img_val.tar is flat: sort it into class folders first

Each photo of ``data.queries`` searches ``data.gallery``, which is ``train`` unless said otherwise; where both
are the same, it is left out of its own ranking. ``queries_per_class`` and ``gallery_per_class`` draw a part
of either with ``data.seed``, the same one every time; the task's name says so.
"""

from dataclasses import dataclass

from ssl_retrieval.data.base import check, existing_folder, nearby
from ssl_retrieval.data.draws import DrawConfig, check_draws, draw, in_name
from ssl_retrieval.data.tasks import labelled, task_from_groups
from ssl_retrieval.errors import UserError
from ssl_retrieval.images import list_images
from ssl_retrieval.types import ImageSet, Task

_ADVICE = (
    "get ILSVRC2012 from image-net.org (after registration) and unpack it there as train/<class>/ and "
    "val/<class>/"
)


@dataclass
class Config(DrawConfig):
    """Options of the loader, besides those of `DrawConfig`.

    Attributes:
        queries: The folder under ``root`` whose photos search.
        gallery: The folder under ``root`` that is searched; the same as ``queries`` = leave one out.
        train: The folder under ``root`` for training and fitting; empty = there is none.
    """

    name: str = "imagenet_folder"
    queries: str = "val"
    gallery: str = "train"
    train: str = "train"


def load(cfg: Config) -> Task:
    """Make the category-level task; post-processing is fitted on training photos that are no queries.

    Raises:
        UserError: A folder or an option is wrong.
    """
    check_draws(cfg)
    all_gallery = _part(cfg, cfg.gallery)
    all_queries = all_gallery if cfg.queries == cfg.gallery else _part(cfg, cfg.queries)
    lacking = sorted(set(all_queries.class_names).symmetric_difference(all_gallery.class_names))
    if lacking:
        raise UserError(
            f"{cfg.queries} and {cfg.gallery} in {cfg.root!r} differ in {len(lacking)} classes "
            f"({', '.join(lacking[:3])}): unpack all classes in both"
        )
    queries, gallery = draw(cfg, all_queries, all_gallery)
    has_fit = cfg.train not in ("", cfg.queries)
    return task_from_groups(
        name=f"{gallery.root.resolve().name}-{cfg.queries}-in-{cfg.gallery}{in_name(cfg)}",
        level="category",
        queries=queries,
        gallery=gallery,
        fit=(gallery if cfg.train == cfg.gallery else _part(cfg, cfg.train)) if has_fit else None,
        description=f"{len(queries)} photos of {cfg.queries} search {len(gallery)} of {cfg.gallery} for "
        "their class.",
        metrics=("hit_rate@1", "mAP@R"),
    )


def images(cfg: Config) -> ImageSet:
    """List the photos for training, labelled by class.

    Raises:
        UserError: The folder is wrong.
    """
    if not cfg.train:
        raise UserError("data.train is empty: name the folder with the training photos, as data.train=train")
    return _part(cfg, cfg.train)


def _part(cfg: Config, part: str) -> ImageSet:
    check(cfg)
    root = existing_folder("data.root", cfg.root)
    if not (root / part).is_dir():
        found = nearby(root, part)
        hint = f"try data.root={found}" if found else _ADVICE
        raise UserError(f"no folder {part!r} in {str(root)!r}: {hint}")
    inside = list_images(root / part)
    loose = next((path for path in inside if "/" not in path), None)
    if loose is not None:
        raise UserError(f"{loose!r} in {str(root / part)!r} is in no class folder: sort it into <class>/")
    return labelled(root, [f"{part}/{path}" for path in inside], [path.split("/")[0] for path in inside])
