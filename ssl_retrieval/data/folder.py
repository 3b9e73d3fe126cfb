"""Any folder of images of your own; subfolders are classes.

Nothing to download. Three layouts under ``data.root``::

    photos/*.jpg                      no labels: enough to pretrain, embed and search
    photos/<class>/**/*.jpg           leave-one-out: each image searches for its class among the others
    photos/val/<class>/**/*.jpg       with data.queries=val data.gallery=train: val searches in train
    photos/train/<class>/**/*.jpg
"""

from dataclasses import dataclass
from pathlib import Path

from ssl_retrieval.console import say
from ssl_retrieval.data.base import DataConfig, check, existing_folder, one_of
from ssl_retrieval.data.tasks import first_per_class, labelled, task_from_groups
from ssl_retrieval.errors import UserError
from ssl_retrieval.images import list_images
from ssl_retrieval.types import ImageSet, Task


@dataclass
class Config(DataConfig):
    """Options of the loader.

    Attributes:
        labels: ``auto``: the first subfolder is the class, if every image is in one and there are two or
            more; ``folder``: insist on it; ``none``: ignore subfolders.
        queries: Subfolder with the queries; empty = leave-one-out.
        gallery: Subfolder with the gallery; goes together with ``queries``.
        limit_per_class: Keep the first n images of each class, in natural order; null = all.
    """

    name: str = "folder"
    labels: str = "auto"
    queries: str = ""
    gallery: str = ""
    limit_per_class: int | None = None


def load(cfg: Config) -> Task:
    """Make the category-level task of a folder.

    Raises:
        UserError: The folder or an option is wrong.
    """
    if not (cfg.queries or cfg.gallery):
        everything = images(cfg)
        return task_from_groups(
            name=everything.root.resolve().name,
            level="category",
            queries=everything,
            gallery=everything,
            description=f"Each of {len(everything)} images searches for its class among all others.",
        )
    root = _root(cfg)
    if not (cfg.queries and cfg.gallery):
        raise UserError("data.queries and data.gallery go together: set both subfolders, or neither")
    query_classes = _classes(root, cfg.queries)
    gallery_classes = _classes(root, cfg.gallery)
    class_names = sorted({*query_classes.values(), *gallery_classes.values()})
    queries, gallery = (
        first_per_class(labelled(root, list(part), list(part.values()), class_names), cfg.limit_per_class)
        for part in (query_classes, gallery_classes)
    )
    return task_from_groups(
        name=root.resolve().name,
        level="category",
        queries=queries,
        gallery=gallery,
        fit=gallery,
        description=f"{len(queries)} images of {cfg.queries} search for their class in {cfg.gallery}.",
    )


def images(cfg: Config) -> ImageSet:
    """List the images for training or embedding: all, or those of ``gallery`` where it is set.

    Raises:
        UserError: The folder or an option is wrong.
    """
    root = _root(cfg)
    if cfg.gallery:
        classes = _classes(root, cfg.gallery)
        return first_per_class(labelled(root, list(classes), list(classes.values())), cfg.limit_per_class)
    paths = list_images(root)
    names = [_class_of(path) for path in paths]
    if _use_labels(cfg, root, names):
        found = labelled(root, paths, [name for name in names if name is not None])
    else:
        found = ImageSet(root=root, paths=tuple(paths))
    return first_per_class(found, cfg.limit_per_class)


def _root(cfg: Config) -> Path:
    check(cfg)
    one_of("data.labels", cfg.labels, ("auto", "folder", "none"))
    return existing_folder("data.root", cfg.root)


def _class_of(path: str) -> str | None:
    return path.split("/")[0] if "/" in path else None


def _use_labels(cfg: Config, root: Path, names: list[str | None]) -> bool:
    if cfg.labels == "none":
        return False
    num_loose = names.count(None)
    if cfg.labels == "folder":
        if num_loose:
            raise UserError(
                f"{num_loose} images lie directly in {str(root)!r}, in no class: "
                "move them into a subfolder, or set data.labels=none"
            )
        return True
    if 0 < num_loose < len(names):
        say(f"no labels: images lie both directly in {str(root)!r} and in its subfolders")
    elif len(set(names)) == 1 and num_loose == 0:
        say(f"no labels: {str(root)!r} has one subfolder only (data.labels=folder makes it a class)")
    return num_loose == 0 and len(set(names)) > 1


def _classes(root: Path, subfolder: str) -> dict[str, str]:
    classes = {}
    for path in list_images(root / subfolder):
        name = _class_of(path)
        if name is None:
            raise UserError(
                f"{path!r} lies directly in {str(root / subfolder)!r}: "
                "queries and gallery need one subfolder per class"
            )
        classes[f"{Path(subfolder).as_posix()}/{path}"] = name
    return classes
