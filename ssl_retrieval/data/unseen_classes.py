"""Search for classes that training never saw: the split of metric learning, for birds and cars.

Song et al., "Deep metric learning via lifted structured feature embedding", CVPR 2016: the first half of the
classes is for training, whatever the dataset's own split says, and each image of the other half searches for
its class among the others of that half. Recall@k there is ``hit_rate@k`` here.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ssl_retrieval.data.base import DataConfig, one_of
from ssl_retrieval.data.tasks import task_from_groups
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import FloatArray, ImageSet, Protocol, Task, VectorArray

METRICS = ("hit_rate@1", "hit_rate@2", "hit_rate@4", "hit_rate@8", "mAP@R")
"""Recall@1, 2, 4 and 8 of most papers, and MAP@R of Musgrave et al., arXiv 2003.08505."""


@dataclass
class SplitConfig(DataConfig):
    """Options that `cub200` and `cars196` share.

    Attributes:
        split: ``unseen``: leave one out among the classes that are not for training; ``official``: the
            dataset's own test images search its training images.
        query_crop: ``none`` leaves queries whole, as is customary; ``box`` cuts them to the published boxes.
    """

    split: str = "unseen"
    query_crop: str = "none"


@dataclass(frozen=True, eq=False)
class Photos:
    """A dataset with all that its files say.

    Attributes:
        images: N images with labels and boxes.
        is_training: bool [N], the dataset's own split.
        num_training_classes: The classes before this one are for training in the split ``unseen``.
        what: What the classes are, in words.
    """

    images: ImageSet
    is_training: NDArray[np.bool_]
    num_training_classes: int
    what: str


def task_of(cfg: SplitConfig, photos: Photos) -> Task:
    """Make the category-level task; post-processing is fitted on training images only.

    Raises:
        UserError: An option is wrong, or a split is empty.
    """
    one_of("data.query_crop", cfg.query_crop, ("none", "box"))
    train, test = training_images(cfg, photos), photos.images.take(np.flatnonzero(~_is_training(cfg, photos)))
    if len(test) == 0:
        raise UserError(f"data.split={cfg.split}: {str(test.root)!r} has no test images: download it again")
    whole = replace(test, boxes=None)
    is_official = cfg.split == "official"
    gallery = train if is_official else whole
    return task_from_groups(
        name=f"{cfg.name}-official" if is_official else cfg.name,
        level="category",
        queries=test if cfg.query_crop == "box" else whole,
        gallery=gallery,
        protocol=Protocol(query_crop=cfg.query_crop),
        fit=train,
        description=f"{len(test)} test photos search {len(gallery)} training photos for their {photos.what}."
        if is_official
        else f"Each of {len(test)} photos searches the others for its {photos.what}, none seen in training.",
        metrics=METRICS,
    )


def training_images(cfg: SplitConfig, photos: Photos) -> ImageSet:
    """Give the images for training, whole and labelled.

    Raises:
        UserError: ``split`` is wrong, or there are none.
    """
    found = replace(photos.images.take(np.flatnonzero(_is_training(cfg, photos))), boxes=None)
    if len(found) == 0:
        raise UserError(
            f"data.split={cfg.split}: {str(found.root)!r} has no training images: download it again"
        )
    return found


def checked_boxes(edges: FloatArray, paths: tuple[str, ...], file: str) -> VectorArray:
    """Insist that boxes have an area.

    Args:
        edges: float64 [N, 4]: left, top, right and bottom edge in pixels.
        paths: N paths, for the message.
        file: Where they come from, for the message.

    Returns:
        The same as float32.

    Raises:
        UserError: One has none; it is named.
    """
    is_box = np.isfinite(edges).all(axis=1) & (edges[:, :2] < edges[:, 2:]).all(axis=1)
    if not is_box.all():
        wrong = paths[int(np.flatnonzero(~is_box)[0])]
        raise UserError(f"{file!r}: the box of {wrong!r} has no area: download the published file again")
    return edges.astype(np.float32)


def _is_training(cfg: SplitConfig, photos: Photos) -> NDArray[np.bool_]:
    one_of("data.split", cfg.split, ("unseen", "official"))
    assert photos.images.labels is not None
    if cfg.split == "official":
        return photos.is_training
    return photos.images.labels < photos.num_training_classes
