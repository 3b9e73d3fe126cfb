"""DISC21: altered copies to be found among a million photos, most queries being copies of none.

From Douze et al., "The 2021 Image Similarity Dataset and Challenge", arXiv 2106.09672; the page "DISC21
dataset" of Meta AI has the images, the repository facebookresearch/isc2021 the ground truth. Under
``data.root``, each part with its folders as they come out of the archives::

    disc21/references/**/R000000.jpg ...      1,000,000
    disc21/dev_queries/**/Q00000.jpg ...      50,000; final_queries/ likewise
    disc21/train/**/T000000.jpg ...           optional; whitening and vocabularies are fitted there
    disc21/dev_ground_truth.csv               query, reference (empty: the query copies none)

All queries count for ``uap`` and ``recall_at_p90``, the challenge's metrics: one ranking of all pairs, in
which a query that copies none can only do harm. Metrics per query leave those out. The final queries are
scored with ``data.queries=final_queries data.ground_truth=.../final_ground_truth.csv``.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssl_retrieval.data.base import DataConfig, check, existing_folder
from ssl_retrieval.data.published import ground_truth_file, in_part, indices_of, require, table
from ssl_retrieval.types import ImageSet, Task


@dataclass
class Config(DataConfig):
    """Options of the loader.

    Attributes:
        queries: The folder of the queries under ``root``; all images in it are queries.
        references: The folder of the references under ``root``; all images in it are searched.
        train: The folder of the training images under ``root``, if there is one.
        ground_truth: The CSV file; empty = ``dev_ground_truth.csv`` in ``root``.
    """

    name: str = "disc21"
    queries: str = "dev_queries"
    references: str = "references"
    train: str = "train"
    ground_truth: str = ""


def load(cfg: Config) -> Task:
    """Make the instance-level task.

    Raises:
        UserError: A folder or the ground truth is wrong, or images that it names are missing.
    """
    root = _root(cfg)
    source = "the repository facebookresearch/isc2021 has it, in list_files"
    file = ground_truth_file(root, "dev_ground_truth.csv", cfg.ground_truth, source)
    pairs = read_ground_truth(file)
    queries, gallery = _part(root, cfg.queries), _part(root, cfg.references)
    require(pairs, queries, root / cfg.queries)
    require((name for names in pairs.values() for name in names), gallery, root / cfg.references)
    position = {name: i for i, name in enumerate(gallery)}
    relevant = tuple(indices_of(pairs.get(name, ()), position) for name in queries)
    num_copies = sum(len(found) > 0 for found in relevant)
    return Task(
        name=f"disc21-{Path(cfg.queries).name.removesuffix('_queries')}",
        level="instance",
        queries=ImageSet(root, tuple(queries.values())),
        gallery=ImageSet(root, tuple(gallery.values())),
        relevant=relevant,
        ignored=(np.empty(0, np.int64),) * len(queries),
        fit=images(cfg) if (root / cfg.train).is_dir() else None,
        description=f"{len(queries)} images, {num_copies} of them copies, search {len(gallery)} for their "
        "originals.",
        metrics=("uap", "recall_at_p90", "mrr"),
    )


def images(cfg: Config) -> ImageSet:
    """List the training images.

    Raises:
        UserError: There are none.
    """
    root = _root(cfg)
    return ImageSet(root, tuple(_part(root, cfg.train).values()))


def read_ground_truth(file: Path) -> dict[str, list[str]]:
    """Read pairs of query and reference, with or without a header.

    Returns:
        Query -> its references, none for a query that copies none.

    Raises:
        UserError: The file is missing or has other columns.
    """
    rows = table(file, ("query_id", "reference_id"), header=False)
    pairs: defaultdict[str, list[str]] = defaultdict(list)
    for query, reference in zip(rows["query_id"], rows["reference_id"], strict=True):
        if (query, reference) != ("query_id", "reference_id"):
            pairs[query] += [reference] if reference else []
    return dict(pairs)


def _root(cfg: Config) -> Path:
    check(cfg)
    return existing_folder("data.root", cfg.root)


def _part(root: Path, folder: str) -> dict[str, str]:
    return in_part(root, folder, "unpack that part there")
