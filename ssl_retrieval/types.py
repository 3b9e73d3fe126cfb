"""The central types: frozen, validated when made. Every stage takes and returns these."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_retrieval.errors import UserError

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]
VectorArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]

Choices = dict[str, tuple[Any, str]]
"""Dotted key of a config -> the value chosen for it, and the reason in words."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Some images under one root folder.

    Attributes:
        root: The folder that all paths are relative to.
        paths: N relative POSIX paths, unique. They are the images' ids.
        labels: int64 [N], indices into ``class_names``; None when unlabelled.
        class_names: What the labels mean; empty when unlabelled.
        boxes: float32 [N, 4]: left, top, right and bottom edge, in pixels of the upright image, of the part
            that counts; rows of NaN = the whole image. None = all images are taken whole.
    """

    root: Path
    paths: tuple[str, ...]
    labels: IntArray | None = None
    class_names: tuple[str, ...] = ()
    boxes: VectorArray | None = None

    def __post_init__(self) -> None:
        """Check that ids are unique and stay inside the root, and that labels and boxes fit."""
        if len(set(self.paths)) != len(self.paths):
            twice = next(p for p in self.paths if self.paths.count(p) > 1)
            raise UserError(f"image path listed twice: {twice!r} (paths are ids and must be unique)")
        for path in self.paths:
            if path.startswith("/") or ".." in path.split("/"):
                raise UserError(f"image path {path!r} leaves its root {str(self.root)!r}")
        if self.labels is not None:
            assert self.labels.dtype == np.int64
            assert self.labels.shape == (len(self.paths),)
            assert len(self.labels) == 0 or self.labels.min() >= 0
            assert len(self.labels) == 0 or self.labels.max() < len(self.class_names)
        if self.boxes is not None:
            assert self.boxes.dtype == np.float32
            assert self.boxes.shape == (len(self.paths), 4)

    def __len__(self) -> int:
        """Count the images."""
        return len(self.paths)

    def file(self, index: int) -> Path:
        """Give the full path of image ``index``."""
        return self.root / self.paths[index]

    def box(self, index: int) -> tuple[float, float, float, float] | None:
        """Give the part of image ``index`` that counts, None for the whole of it."""
        if self.boxes is None or np.isnan(self.boxes[index]).any():
            return None
        left, top, right, bottom = self.boxes[index].tolist()
        return left, top, right, bottom

    def take(self, indices: IntArray) -> "ImageSet":
        """Keep the images at ``indices`` (int64 [M]), in that order."""
        return ImageSet(
            root=self.root,
            paths=tuple(self.paths[i] for i in indices),
            labels=None if self.labels is None else self.labels[indices],
            class_names=self.class_names,
            boxes=None if self.boxes is None else self.boxes[indices],
        )

    def to_key(self) -> list[object]:
        """Give what tells this list from others but for the files' content, as plain values to hash."""
        boxes = [] if self.boxes is None else [np.nan_to_num(self.boxes, nan=-1).tolist()]
        return [list(self.paths), *boxes]


@dataclass(frozen=True)
class Protocol:
    """How a task is scored: data, hashed and stored beside every number.

    Two reports whose protocols differ are not comparable. What belongs to one representation (its own
    input size, pooling) is not in here but in the representation's key.

    Attributes:
        image_size: Short side in pixels to which every image is reduced before any representation sees
            it; None = as stored.
        query_crop: ``none``, or ``box`` when queries are cropped to the task's boxes.
        scales: Image scales over which embeddings are averaged.
        whitening: Where whitening was fitted; ``none`` = no whitening.
        self_match: ``ignored`` = the query's own id is taken out of its ranking; ``counted`` = it stays
            in and is relevant (UKBench).
        junk: ``removed`` = ignored items are taken out before ranking.
        average_precision: The variant behind the headline ``mAP``.
        cutoff: Ranks beyond it do not count for ``mAP``; None = full ranking.
        ties: How equal scores are ordered.
        similarity: What the ranking sorts by.
        excluded: What a list left out (see `exclusion.apply`); ``none`` = the task is whole.
    """

    image_size: int | None = None
    query_crop: str = "none"
    scales: tuple[float, ...] = (1.0,)
    whitening: str = "none"
    self_match: str = "ignored"
    junk: str = "removed"
    average_precision: str = "standard"
    cutoff: int | None = None
    ties: str = "gallery_index"
    similarity: str = "cosine"
    excluded: str = "none"

    def __post_init__(self) -> None:
        """Refuse values that no stage implements."""
        allowed = {
            "query_crop": {"none", "box"},
            "self_match": {"ignored", "counted"},
            "junk": {"removed"},
            "average_precision": {"standard"},
            "ties": {"gallery_index"},
            "similarity": {"cosine"},
        }
        for name, values in allowed.items():
            value = getattr(self, name)
            if value not in values:
                raise UserError(f"protocol.{name}={value!r}: one of {sorted(values)} is needed")
        if self.image_size is not None and self.image_size < 1:
            raise UserError(f"protocol.image_size={self.image_size}: must be at least 1")

    def to_dict(self) -> dict[str, Any]:
        """Give the fields and their hash, as stored in ``report.json``."""
        fields = asdict(self) | {"scales": list(self.scales)}
        if self.excluded == "none":
            # Reports of whole tasks have had no such field, and stay comparable.
            del fields["excluded"]
        return fields | {"hash": digest_of(fields)}


@dataclass(frozen=True, eq=False)
class Task:
    """A search problem with its answers; one type for instance- and category-level search.

    Attributes:
        name: Short name, e.g. ``grocery-fine``.
        level: ``instance`` or ``category``.
        queries: Q images.
        gallery: N images.
        relevant: Q int64 arrays: the gallery indices to be found for each query.
        ignored: Q int64 arrays: gallery indices that do not count for that query (itself, junk).
        protocol: How it is scored.
        fit: Images on which post-processing may be fitted; never the test images.
        description: One plain sentence about what is searched where.
        metrics: Metrics that are customary here; they are computed besides the default ones.
    """

    name: str
    level: str
    queries: ImageSet
    gallery: ImageSet
    relevant: tuple[IntArray, ...]
    ignored: tuple[IntArray, ...]
    protocol: Protocol = field(default_factory=Protocol)
    fit: ImageSet | None = None
    description: str = ""
    metrics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that the lists fit: in range, unique, relevant and ignored disjoint."""
        if self.level not in ("instance", "category"):
            raise UserError(f"task {self.name!r}: level must be instance or category")
        if len(self.queries) == 0 or len(self.gallery) == 0:
            raise UserError(
                f"task {self.name!r} has {len(self.queries)} queries and {len(self.gallery)} gallery "
                "images: both need at least one"
            )
        assert len(self.relevant) == len(self.ignored) == len(self.queries)
        n = len(self.gallery)
        mark = np.zeros(n, dtype=np.int8)
        for relevant, ignored in zip(self.relevant, self.ignored, strict=True):
            for indices in (relevant, ignored):
                assert indices.dtype == np.int64
                if len(indices) and (indices.min() < 0 or indices.max() >= n):
                    raise UserError(f"task {self.name!r}: gallery index out of range 0..{n - 1}")
            mark[relevant] += 1
            overlap = mark[ignored].any()
            mark[relevant] = 0
            mark[ignored] = 0
            if overlap:
                raise UserError(f"task {self.name!r}: an item is both relevant and ignored")

    @property
    def num_queries_with_positives(self) -> int:
        """Count the queries that have something to find."""
        return sum(len(relevant) > 0 for relevant in self.relevant)

    def restrict(self, query_ids: set[str], gallery_ids: set[str]) -> "Task":
        """Drop queries and gallery images whose ids are not given (unreadable files, say)."""
        keep_q = np.array([i for i, p in enumerate(self.queries.paths) if p in query_ids], np.int64)
        keep_g = np.array([i for i, p in enumerate(self.gallery.paths) if p in gallery_ids], np.int64)
        if len(keep_q) == len(self.queries) and len(keep_g) == len(self.gallery):
            return self
        new_index = np.full(len(self.gallery), -1, dtype=np.int64)
        new_index[keep_g] = np.arange(len(keep_g))

        def remap(lists: tuple[IntArray, ...]) -> tuple[IntArray, ...]:
            mapped = (new_index[lists[i]] for i in keep_q)
            return tuple(indices[indices >= 0] for indices in mapped)

        return Task(
            name=self.name,
            level=self.level,
            queries=self.queries.take(keep_q),
            gallery=self.gallery.take(keep_g),
            relevant=remap(self.relevant),
            ignored=remap(self.ignored),
            protocol=self.protocol,
            fit=self.fit,
            description=self.description,
            metrics=self.metrics,
        )


@dataclass(frozen=True, eq=False)
class EmbeddingSet:
    """Vectors of some images.

    Attributes:
        ids: N image ids (relative paths).
        vectors: float32 [N, D], finite.
        key: Hex digest of extractor config, weights, preprocessing and the images' content.
        skipped: (id, reason) of the images that could not be read.
        images_per_s: Speed at which they were made, decoding included.
        meta: What is needed to embed another image the same way (``key.json``).
    """

    ids: tuple[str, ...]
    vectors: VectorArray
    key: str
    skipped: tuple[tuple[str, str], ...] = ()
    images_per_s: float = float("nan")
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check shapes, dtype and finiteness."""
        assert self.vectors.dtype == np.float32
        assert self.vectors.ndim == 2
        assert len(self.ids) == len(self.vectors)
        # In blocks, for the vectors may be a file that is larger than memory.
        for start in range(0, len(self.vectors), 16_384):
            finite = np.isfinite(self.vectors[start : start + 16_384]).all(axis=1)
            if not finite.all():
                name = self.ids[start + int(finite.argmin())]
                raise UserError(f"the embedding of {name!r} is not finite (NaN or infinity)")

    @property
    def dim(self) -> int:
        """The number of dimensions D."""
        return int(self.vectors.shape[1])


@dataclass(frozen=True, eq=False)
class Ranking:
    """The best gallery items per query.

    Attributes:
        indices: int64 [Q, K] gallery indices, best first; -1 where there are fewer than K.
        scores: float32 [Q, K], descending; -inf where padded.
    """

    indices: IntArray
    scores: VectorArray

    def __post_init__(self) -> None:
        """Check shapes, order and padding."""
        assert self.indices.shape == self.scores.shape
        assert self.indices.ndim == 2
        assert self.indices.dtype == np.int64
        assert self.scores.dtype == np.float32
        assert (self.scores[:, 1:] <= self.scores[:, :-1]).all()
        assert ((self.indices >= 0) == (self.scores > -np.inf)).all()


@dataclass(frozen=True, eq=False)
class Report:
    """What one representation scored on one task.

    Attributes:
        task: The task's name.
        representation: ``name``, ``family``, ``dim``, ``key``.
        protocol: ``Protocol.to_dict()``.
        query_ids: Q ids.
        per_query: Metric name -> float64 [Q]; NaN where the query has no positive. Means are derived
            from these, so that differences can be tested query by query.
        pooled: Metrics that are no mean over queries (``uap``, ``mAP_macro``): name -> value.
        query_groups: int64 [Q], the class or object of each query (see `query_groups`); None = not known.
        costs: ``embed_images_per_s``, ``search_queries_per_s``, ``bytes_per_image``, ``peak_rss_mib``,
            ``train_s``; re-ranked also ``rerank_ms_per_query``, ``rerank_offline_s`` and
            ``rerank_bytes_per_image``.
        config: The resolved config that made it.
        versions: Package versions.
        info: The task's level, description, sizes, skipped images, ties.
        query_classes: Q class names; empty when the queries have no labels.
        ranks: Q int64 arrays: the ranks of each query's relevant items, 1-based, ascending; empty when they
            are too many to be kept.
    """

    task: str
    representation: dict[str, Any]
    protocol: dict[str, Any]
    query_ids: tuple[str, ...]
    per_query: dict[str, FloatArray]
    pooled: dict[str, float] = field(default_factory=dict)
    query_groups: IntArray | None = None
    costs: dict[str, float | None] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    query_classes: tuple[str, ...] = ()
    ranks: tuple[IntArray, ...] = ()

    def __post_init__(self) -> None:
        """Check that every metric has one value per query, and that all queries have the rest or none."""
        assert len(self.ranks) in (0, len(self.query_ids))
        assert len(self.query_classes) in (0, len(self.query_ids))
        for values in self.per_query.values():
            assert values.dtype == np.float64
            assert values.shape == (len(self.query_ids),)
        if self.query_groups is not None:
            assert self.query_groups.dtype == np.int64
            assert self.query_groups.shape == (len(self.query_ids),)


def digest_of(value: Any) -> str:
    """Hash a JSON-like value to 16 hex digits, independent of key order.

    >>> digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
