"""Score vectors that come from elsewhere: no images needed, the same protocol, metrics and statistics."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike

from ssl_retrieval.console import say
from ssl_retrieval.data.tasks import NO_GROUP, task_from_groups
from ssl_retrieval.errors import UserError
from ssl_retrieval.evaluate import score_features, wanted_metrics
from ssl_retrieval.features import Features
from ssl_retrieval.postprocess import l2_normalize
from ssl_retrieval.types import ImageSet, IntArray, Report, Task, VectorArray, digest_of


def evaluate_vectors(
    name: str,
    queries: ArrayLike,
    gallery: ArrayLike | None = None,
    *,
    query_labels: Sequence[Any] | None = None,
    gallery_labels: Sequence[Any] | None = None,
    relevant: Sequence[Sequence[int]] | None = None,
    ignored: Sequence[Sequence[int]] | None = None,
    query_ids: Sequence[str] | None = None,
    gallery_ids: Sequence[str] | None = None,
    metrics: Sequence[str] = (),
    task: str = "vectors",
    family: str = "own vectors",
    device: str | torch.device = "cpu",
) -> Report:
    """Score vectors by cosine similarity.

    Without ``gallery`` every vector searches for its class among all others. What is to be found is told by
    labels (the same label) or by ``relevant`` (gallery positions of each query). An id that stands in
    queries and gallery is the same image, which is left out of its own ranking.

    Args:
        name: The representation's name in tables.
        queries: [Q, D] numbers; any length, they are normalised. A vector of zeros scores 0 with everything.
        gallery: [N, D], likewise.
        query_labels: Q labels of any kind that can be compared; integers of any size stay distinct.
        gallery_labels: N labels.
        relevant: Q lists of gallery positions, instead of labels; an empty one = nothing to find.
        ignored: Q lists of gallery positions that do not count (junk), besides the query itself; they are
            not relevant then.
        query_ids: Q unique names; by default ``query/0``, …, or those of the gallery when there is none.
        gallery_ids: N unique names.
        metrics: Metric names; empty = the default list.
        task: The task's name; reports of one task can be compared.
        family: For tables: ``self-supervised``, ``off-the-shelf``, ….
        device: Where is searched.

    Returns:
        A report, for `compare` and `write_report`.

    Raises:
        UserError: Vectors that are not finite or do not fit together, double ids, positions out of range, no
            query with anything to find, or an unknown metric.

    >>> report = evaluate_vectors("mine", [[1, 0], [2, 0.1], [0, 1], [0.1, 1]], query_labels=list("aabb"))
    >>> float(report.per_query["mAP"].mean())
    1.0
    """
    query_vectors = _checked(queries, "queries")
    leave_one_out = gallery is None
    gallery_vectors = query_vectors if gallery is None else _checked(gallery, "gallery")
    if query_vectors.shape[1] != gallery_vectors.shape[1]:
        raise UserError(
            f"queries have {query_vectors.shape[1]} dimensions, the gallery has {gallery_vectors.shape[1]}: "
            "make both with the same model and post-processing"
        )
    if leave_one_out:
        for argument, value in (("gallery_labels", gallery_labels), ("gallery_ids", gallery_ids)):
            if value is not None:
                raise UserError(f"{argument} needs a gallery: leave it out, or give gallery=")
        gallery_labels = query_labels
        query_ids = gallery_ids = _ids(query_ids, "item", len(query_vectors))
    problem = _problem(
        task,
        ImageSet(Path("/"), _ids(query_ids, "query", len(query_vectors))),
        ImageSet(Path("/"), _ids(gallery_ids, "gallery", len(gallery_vectors))),
        query_labels,
        gallery_labels,
        relevant,
        ignored,
    )
    zeros = _zeros(problem.queries, query_vectors) | _zeros(problem.gallery, gallery_vectors)
    if zeros:
        say(f"{name}: {len(zeros)} vectors are zero and score 0 with everything, e.g. {min(zeros)!r}")
    features = Features(
        task=problem,
        queries=l2_normalize(query_vectors),
        gallery=l2_normalize(gallery_vectors),
        scores=None,
        label=name,
        family=family,
        dim=query_vectors.shape[1],
        key=digest_of(
            [hashlib.sha256(vectors.tobytes()).hexdigest() for vectors in (query_vectors, gallery_vectors)]
        ),
        images_per_s=float("nan"),
        bytes_per_image=4.0 * query_vectors.shape[1],
        peak_rss_mib=float("nan"),
        train_s=None,
        skipped=(),
        without_features=zeros,
        to_fit=None,
    )
    return score_features(features, wanted_metrics(problem, metrics), device).report


def _checked(values: ArrayLike, what: str) -> VectorArray:
    try:
        with np.errstate(over="ignore"):
            vectors = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"{what}: no table of numbers ({error}): give [rows, dimensions]") from None
    if vectors.ndim != 2 or vectors.shape[1] == 0:
        raise UserError(f"{what}: has shape {list(vectors.shape)}: give [rows, dimensions]")
    if len(vectors) == 0:
        raise UserError(f"{what}: is empty: give at least one vector")
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise UserError(
            f"{what}: row {bad[0]} is not finite (NaN, infinity, or beyond float32), as are "
            f"{len(bad) - 1} others: leave them out, or mend the model"
        )
    return vectors


def _zeros(images: ImageSet, vectors: VectorArray) -> frozenset[str]:
    return frozenset(images.paths[row] for row in np.flatnonzero((vectors == 0).all(axis=1)))


def _ids(ids: Sequence[str] | None, what: str, count: int) -> tuple[str, ...]:
    if ids is None:
        return tuple(f"{what}/{number}" for number in range(count))
    if len(ids) != count:
        raise UserError(f"{what} ids: {len(ids)} for {count} vectors: give one for each")
    return tuple(str(identifier).lstrip("/") for identifier in ids)


def _labelled(
    queries: ImageSet, gallery: ImageSet, query_labels: Sequence[Any], gallery_labels: Sequence[Any]
) -> Task:
    for what, images, labels in (("query", queries, query_labels), ("gallery", gallery, gallery_labels)):
        if len(labels) != len(images):
            raise UserError(f"{what} labels: {len(labels)} for {len(images)} vectors: give one for each")
    both = pd.Series([*query_labels, *gallery_labels], dtype=object)
    codes, names = pd.factorize(both)
    groups = codes.astype(np.int64)
    of_queries, of_gallery = groups[: len(queries)], groups[len(queries) :]
    if (groups != NO_GROUP).all():
        class_names = tuple(str(name) for name in names)
        queries = replace(queries, labels=of_queries, class_names=class_names)
        gallery = replace(gallery, labels=of_gallery, class_names=class_names)
    return task_from_groups(
        name="",
        level="category",
        queries=queries,
        gallery=gallery,
        query_groups=of_queries,
        gallery_groups=of_gallery,
    )


def _positions(lists: Sequence[Sequence[int]] | None, what: str, queries: ImageSet) -> list[IntArray]:
    if lists is None:
        return [np.empty(0, np.int64)] * len(queries)
    if len(lists) != len(queries):
        raise UserError(
            f"{what}: {len(lists)} lists for {len(queries)} queries: give one for each, empty or not"
        )
    found = []
    for identifier, positions in zip(queries.paths, lists, strict=True):
        array = np.asarray(positions)
        if array.size and not np.issubdtype(array.dtype, np.integer):
            raise UserError(f"{what} of {identifier!r}: {positions!r} are no gallery positions (0, 1, 2, …)")
        found.append(np.unique(array.astype(np.int64)))
    return found


def _problem(
    name: str,
    queries: ImageSet,
    gallery: ImageSet,
    query_labels: Sequence[Any] | None,
    gallery_labels: Sequence[Any] | None,
    relevant: Sequence[Sequence[int]] | None,
    ignored: Sequence[Sequence[int]] | None,
) -> Task:
    if query_labels is not None and gallery_labels is not None and relevant is None:
        base = _labelled(queries, gallery, query_labels, gallery_labels)
        found, level = list(base.relevant), "category"
    elif relevant is not None and query_labels is None and gallery_labels is None:
        unlabelled = np.full(max(len(queries), len(gallery)), NO_GROUP)
        base = task_from_groups(
            name="",
            level="instance",
            queries=queries,
            gallery=gallery,
            query_groups=unlabelled[: len(queries)],
            gallery_groups=unlabelled[: len(gallery)],
        )
        found, level = _positions(relevant, "relevant", queries), "instance"
    else:
        raise UserError("say what is to be found: labels of queries and gallery, or relevant=, not both")
    own, junk = base.ignored, _positions(ignored, "ignored", queries)
    if relevant is not None or ignored is not None:
        uncounted = [np.union1d(a, b) for a, b in zip(junk, own, strict=True)]
        found = [np.setdiff1d(a, b) for a, b in zip(found, uncounted, strict=True)]
        own = tuple(uncounted)
    return Task(
        name=name,
        level=level,
        queries=base.queries,
        gallery=base.gallery,
        relevant=tuple(found),
        ignored=own,
        description=f"{len(queries)} vectors search among {len(gallery)}.",
    )
