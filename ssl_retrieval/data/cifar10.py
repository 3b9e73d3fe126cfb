"""CIFAR-10 as image files: ten classes, 32 by 32 pixels, 50,000 train and 10,000 test images.

From https://www.cs.toronto.edu/~kriz/cifar.html (Krizhevsky, 2009). Unpack it, or any export of it to
image files, so that ``data.root`` holds ``train/<class>/*.png`` and ``test/<class>/*.png`` (or jpg). A
lossy export scores lower than the original: compare only numbers from the same files.

Any other dataset with this layout loads too.
"""

from dataclasses import dataclass
from pathlib import Path

from ssl_retrieval.data.base import DataConfig, check, existing_folder, nearby, one_of
from ssl_retrieval.data.tasks import first_per_class, labelled, task_from_groups
from ssl_retrieval.errors import UserError
from ssl_retrieval.images import list_images
from ssl_retrieval.types import ImageSet, Task

_SPLITS = ("train", "test")


@dataclass
class Config(DataConfig):
    """Options of the loader.

    Attributes:
        mode: ``leave_one_out``: each image of ``split`` searches among the others of ``split``;
            ``test_to_train``: test images search in train.
        split: What ``leave_one_out`` searches.
        images_split: What ``images`` gives, for training and plain embedding.
        limit_per_class: Keep the first n images of each class in every split that is used, in natural
            order; null = all.
    """

    name: str = "cifar10"
    mode: str = "leave_one_out"
    split: str = "test"
    images_split: str = "train"
    limit_per_class: int | None = None


def load(cfg: Config) -> Task:
    """Make the category-level task; post-processing is fitted on train unless train is searched.

    Raises:
        UserError: The folder or an option is wrong.
    """
    one_of("data.mode", cfg.mode, ("leave_one_out", "test_to_train"))
    one_of("data.split", cfg.split, _SPLITS)
    if cfg.mode == "test_to_train":
        queries, gallery = _split(cfg, "test"), _split(cfg, "train")
        if queries.class_names != gallery.class_names:
            odd = sorted(set(queries.class_names) ^ set(gallery.class_names))
            raise UserError(f"train and test in {cfg.root!r} differ in classes: {', '.join(odd[:5])}")
        return task_from_groups(
            name="cifar10-test-to-train",
            level="category",
            queries=queries,
            gallery=gallery,
            fit=gallery,
            description=f"{len(queries)} test images search for their class in {len(gallery)} of train.",
        )
    searched = _split(cfg, cfg.split)
    return task_from_groups(
        name=f"cifar10-{cfg.split}",
        level="category",
        queries=searched,
        gallery=searched,
        fit=_split(cfg, "train") if cfg.split == "test" else None,
        description=f"Each of {len(searched)} {cfg.split} images searches for its class among the others.",
    )


def images(cfg: Config) -> ImageSet:
    """List the images of ``images_split``.

    Raises:
        UserError: The folder or an option is wrong.
    """
    one_of("data.images_split", cfg.images_split, _SPLITS)
    return _split(cfg, cfg.images_split)


def _split(cfg: Config, split: str) -> ImageSet:
    check(cfg)
    root = existing_folder("data.root", cfg.root)
    if not (root / split).is_dir():
        raise UserError(f"no folder {split!r} in {str(root)!r}: {_hint(root, split)}")
    paths = [f"{split}/{path}" for path in list_images(root / split)]
    loose = next((path for path in paths if path.count("/") < 2), None)
    if loose is not None:
        raise UserError(f"{loose!r} in {str(root)!r} is in no class folder: expected {split}/<class>/*.jpg")
    names = [path.split("/")[1] for path in paths]
    return first_per_class(labelled(root, paths, names), cfg.limit_per_class)


def _hint(root: Path, split: str) -> str:
    found = nearby(root, split)
    return f"try data.root={found}" if found else "give the folder with train/ and test/"
