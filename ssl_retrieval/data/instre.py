"""INSTRE: 250 objects and pairs of objects in 28,543 photos, in the split of Iscen et al.

Photos: Wang and Jiang, "INSTRE: a new benchmark for instance-level object retrieval and recognition", TOMM
2015. Split: Iscen et al., "Efficient diffusion on region manifolds", CVPR 2017, arXiv 1611.05113: 1,250
queries, 5 per class, each with a box, and 27,293 photos that are searched; published as ``gnd_instre.mat``
on the first author's page, together with the photos. Under ``data.root``::

    instre/gnd_instre.mat
    instre/INSTRE-S1/..., instre/INSTRE-S2/..., instre/INSTRE-M/...

The ``.mat`` file (MATLAB 5) is the form that is read here: its cells ``imlist`` and ``qimlist`` name files
below ``data.root``, its structure ``gnd`` has for each query first the photos to be found, counted from 1,
then the box as left, top, right, bottom. Queries are cut to their boxes unless ``data.query_crop=none``; they
are no part of the gallery. The authors' average precision is ``mAP_trapezoid``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat

from ssl_retrieval.data.base import DataConfig, check, existing_folder, one_of
from ssl_retrieval.data.published import ground_truth_file, require
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import ImageSet, IntArray, Protocol, Task, VectorArray


@dataclass
class Config(DataConfig):
    """Options of the loader.

    Attributes:
        ground_truth: The ``.mat`` file; empty = ``gnd_instre.mat`` in ``root``.
        query_crop: ``box`` cuts queries to their boxes, ``none`` leaves them whole.
    """

    name: str = "instre"
    ground_truth: str = ""
    query_crop: str = "box"


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """What the ``.mat`` file says.

    Attributes:
        gallery: N paths.
        queries: Q paths.
        boxes: float32 [Q, 4]: left, top, right and bottom edge in pixels.
        relevant: Q int64 arrays of gallery indices.
    """

    gallery: tuple[str, ...]
    queries: tuple[str, ...]
    boxes: VectorArray
    relevant: tuple[IntArray, ...]


def load(cfg: Config) -> Task:
    """Make the instance-level task.

    Raises:
        UserError: The folder, the ground truth or an option is wrong, or photos are missing.
    """
    one_of("data.query_crop", cfg.query_crop, ("box", "none"))
    root, truth = _read(cfg)
    queries = ImageSet(root, truth.queries, boxes=truth.boxes if cfg.query_crop == "box" else None)
    return Task(
        name="instre",
        level="instance",
        queries=queries,
        gallery=ImageSet(root, truth.gallery),
        relevant=truth.relevant,
        ignored=(np.empty(0, np.int64),) * len(queries),
        protocol=Protocol(query_crop=cfg.query_crop),
        description=f"{len(queries)} photos search for the same object among {len(truth.gallery)}.",
        metrics=("mAP_trapezoid",),
    )


def images(cfg: Config) -> ImageSet:
    """List the photos that are searched, without the queries.

    Raises:
        UserError: As for `load`.
    """
    root, truth = _read(cfg)
    return ImageSet(root, truth.gallery)


def read_ground_truth(file: Path) -> GroundTruth:
    """Read ``gnd_instre.mat``.

    Raises:
        UserError: The file is damaged or holds something else.
    """
    try:
        content = loadmat(file, squeeze_me=True, variable_names=("imlist", "qimlist", "gnd"))
        gallery, queries = _paths(content["imlist"]), _paths(content["qimlist"])
        entries = np.atleast_1d(content["gnd"])
        positives, boxes = tuple(entries.dtype.names or ())[:2]
        edges = np.array([np.asarray(entry[boxes], np.float32).reshape(4) for entry in entries])
        relevant = tuple(_indices(entry[positives], len(gallery)) for entry in entries)
        if len(relevant) != len(queries):
            raise ValueError(f"{len(queries)} queries, but answers for {len(relevant)}")
        if not (edges[:, :2] < edges[:, 2:]).all():
            raise ValueError("a box needs left below right and top below bottom")
    except Exception as error:  # a damaged file raises nearly any type
        raise UserError(
            f"{str(file)!r} is no ground truth of INSTRE ({type(error).__name__}: {error}): download "
            "gnd_instre.mat again"
        ) from None
    return GroundTruth(gallery, queries, edges, relevant)


def _read(cfg: Config) -> tuple[Path, GroundTruth]:
    check(cfg)
    root = existing_folder("data.root", cfg.root)
    source = "Ahmet Iscen's page has it, with the photos"
    truth = read_ground_truth(ground_truth_file(root, "gnd_instre.mat", cfg.ground_truth, source))
    named = (*truth.gallery, *truth.queries)
    ImageSet(root, named)  # refuses paths that leave the root before any is looked at
    require(named, (path for path in named if (root / path).is_file()), root)
    return root, truth


def _paths(cells: Any) -> tuple[str, ...]:
    return tuple(str(cell) for cell in np.atleast_1d(cells))


def _indices(value: Any, size: int) -> IntArray:
    counted_from_1 = np.unique(np.atleast_1d(value)).astype(np.int64)
    if len(counted_from_1) and not (counted_from_1[0] >= 1 and counted_from_1[-1] <= size):
        raise ValueError(f"its lists need whole numbers from 1 to {size}")
    return counted_from_1 - 1
