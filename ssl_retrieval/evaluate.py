"""One representation × one task -> Report: the stages, wired in a straight line."""

import dataclasses
import importlib.metadata
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ssl_retrieval import config, devices, metrics, plugins
from ssl_retrieval.atomic import require_writable
from ssl_retrieval.config import plugin
from ssl_retrieval.data.tasks import require_positives
from ssl_retrieval.embed import EmbedOptions, Representation, embed
from ssl_retrieval.errors import UserError
from ssl_retrieval.images import report_skipped
from ssl_retrieval.postprocess import l2_normalize
from ssl_retrieval.report.files import write_report
from ssl_retrieval.search import RelevantRanks, global_positive_counts, relevant_ranks, top_k
from ssl_retrieval.types import EmbeddingSet, ImageSet, Report, Task, VectorArray, digest_of

KNN = "knn@20"
KNN_K = 20
SPEED_K = 100
"""Results per query when search speed is measured."""

_NO_RANKS = RelevantRanks(*[np.empty((0, 0), np.int64)] * 3, *[np.empty(0, np.int64)] * 2)


@dataclass
class ProtocolOptions:
    """What a config may set of a task's protocol; the rest belongs to the task.

    Attributes:
        image_size: Short side in pixels to which all images are reduced first; None = as stored.
    """

    image_size: int | None = None


@dataclass
class EvaluateConfig:
    """The keys of ``ssl-retrieval evaluate``.

    Attributes:
        out: Folder for ``report.json`` and the embeddings.
        seed: Not used by deterministic extractors; stored with the report.
        device: ``auto``, ``cpu``, ``cuda``, ….
        data: Dataset section: the task.
        model: Extractor section: a timm name or an extractor, and its options.
        label: The representation's name in tables; by default ``model.name``.
        embed: Batch size and workers.
        protocol: See `ProtocolOptions`.
        metrics: Metric names; empty = the default list and what fits the task. ``mAP`` is always there.
        cache: Folder of embeddings shared between runs; by default ``out/embeddings``.
    """

    out: str = "???"
    seed: int = 0
    device: str = "auto"
    data: Any = plugin("dataset")
    model: Any = plugin("extractor")
    label: str = ""
    embed: EmbedOptions = field(default_factory=EmbedOptions)
    protocol: ProtocolOptions = field(default_factory=ProtocolOptions)
    metrics: list[str] = field(default_factory=list)
    cache: str = ""


@dataclass(frozen=True, eq=False)
class Scored:
    """A report, and what it was computed from.

    Attributes:
        report: The scores.
        task: The task, without the images that could not be read.
        queries: float32 [Q, D], rows of length 1.
        gallery: float32 [N, D], rows of length 1.
    """

    report: Report
    task: Task
    queries: VectorArray
    gallery: VectorArray


def evaluate(cfg: EvaluateConfig) -> Report:
    """Embed, search and score; write ``out/report.json``.

    Raises:
        UserError: A mistake in the config or the data, or a task without positives.
    """
    config.require_sections(cfg, "data", "model")
    out = Path(cfg.out).expanduser()
    require_writable(out)
    task = load_task(cfg.data, cfg.protocol)
    scored = score(
        Representation.make(cfg.label or cfg.model.name, cfg.model, devices.pick(cfg.device)),
        task,
        cache=Path(cfg.cache).expanduser() if cfg.cache else out / "embeddings",
        options=cfg.embed,
        names=cfg.metrics,
        on_error=cfg.data.on_error,
        resolved=config.to_dict(cfg),
    )
    write_report(scored.report, out / "report.json")
    return scored.report


def load_task(data: Any, options: ProtocolOptions) -> Task:
    """Load the task that a dataset section names, under the protocol options.

    Raises:
        UserError: Wrong data, or no query has a positive.
    """
    task: Task = plugins.find("dataset", data.name).load(data)
    require_positives(task)
    return dataclasses.replace(
        task, protocol=dataclasses.replace(task.protocol, image_size=options.image_size)
    )


def score(
    representation: Representation,
    task: Task,
    *,
    cache: Path,
    options: EmbedOptions | None = None,
    names: Sequence[str] = (),
    on_error: str = "skip",
    resolved: dict[str, Any] | None = None,
) -> Scored:
    """Score one representation on one task.

    Args:
        representation: What embeds.
        task: What is searched.
        cache: Folder of EmbeddingSets; finished ones with the right key are reused.
        options: How to embed.
        names: Metric names; empty = the default list and what fits the task.
        on_error: ``skip`` or ``fail`` for unreadable images.
        resolved: The config, to be stored with the report.

    Raises:
        UserError: Unknown metric, unreadable images with ``fail``, or nothing left to score.
    """
    wanted = list(dict.fromkeys(["mAP", *names])) if names else _fitting(task)
    for name in wanted:
        _check_metric(name, task)
    sets: dict[str, EmbeddingSet] = {}
    for images in (task.gallery, task.queries):
        # One folder per image list: tasks over the same images share it.
        place = _images_name(images)
        if place in sets:
            continue
        sets[place] = embed(
            representation,
            images,
            cache / f"{representation.label}-{place}",
            options=options or EmbedOptions(),
            image_size=task.protocol.image_size,
            on_error=on_error,
        )
        report_skipped(sets[place].skipped, str(images.root))
    queries, gallery = sets[_images_name(task.queries)], sets[_images_name(task.gallery)]
    kept = task.restrict(set(queries.ids), set(gallery.ids))
    require_positives(kept)
    q, g = l2_normalize(queries.vectors), l2_normalize(gallery.vectors)
    per_query, pooled, queries_per_s, num_tied = _measure(kept, q, g, wanted, representation)
    report = Report(
        task=task.name,
        representation={
            "name": representation.label,
            "family": representation.extractor.family,
            "dim": representation.extractor.dim,
            "key": gallery.key,
        },
        protocol=kept.protocol.to_dict(),
        query_ids=kept.queries.paths,
        per_query=per_query,
        pooled=pooled,
        costs={
            "embed_images_per_s": gallery.images_per_s,
            "search_queries_per_s": queries_per_s,
            "bytes_per_image": float(4 * representation.extractor.dim),
            "peak_rss_mib": _peak_rss_mib(),
            "train_s": getattr(representation.extractor, "train_s", None),
        },
        config=resolved or {},
        versions=versions(),
        info={
            "level": kept.level,
            "description": kept.description,
            "num_queries": len(kept.queries),
            "num_gallery": len(kept.gallery),
            "num_queries_without_positives": len(kept.queries) - kept.num_queries_with_positives,
            "num_queries_with_ties": num_tied,
            "gallery_digest": digest_of(list(kept.gallery.paths)),
            "skipped": [list(item) for item in sorted({*queries.skipped, *gallery.skipped})],
        },
    )
    return Scored(report, kept, q, g)


def _measure(
    task: Task, q: VectorArray, g: VectorArray, wanted: list[str], representation: Representation
) -> tuple[dict[str, Any], dict[str, float], float, int]:
    device = representation.device
    start = time.perf_counter()
    nearest = top_k(q, g, min(SPEED_K, len(g)), task.ignored, device)
    queries_per_s = len(q) / (time.perf_counter() - start)
    ranks = relevant_ranks(q, g, task.relevant, task.ignored, device)
    per_query, pooled = {}, {}
    for name in wanted:
        if name == "uap":
            pooled[name] = metrics.uap(global_positive_counts(q, g, task.relevant, task.ignored, device))
        elif name == KNN:
            assert task.queries.labels is not None
            assert task.gallery.labels is not None
            per_query[name] = metrics.knn_accuracy(nearest, task.queries.labels, task.gallery.labels, k=KNN_K)
        elif name == "ns_score" and task.protocol.self_match == "ignored":
            # The score counts the query itself, which comes first; the other three ranks are left.
            per_query[name] = 1 + 3 * metrics.compute("precision@3", ranks)
        else:
            per_query[name] = metrics.compute(name, ranks)
    return per_query, pooled, queries_per_s, ranks.num_tied_queries


def _fitting(task: Task) -> list[str]:
    names = [*metrics.DEFAULT_METRICS, *task.metrics]
    if task.level == "instance":
        names.append("uap")
    elif task.queries.labels is not None and task.gallery.labels is not None:
        names.append(KNN)
    return names


def _check_metric(name: str, task: Task) -> None:
    """Refuse a metric before anything is embedded for it."""
    if name == KNN:
        if task.queries.labels is None or task.gallery.labels is None:
            raise UserError(f"metric {name!r} needs labels, and task {task.name!r} has none: leave it out")
    elif name != "uap":
        metrics.compute(name, _NO_RANKS)


def _images_name(images: ImageSet) -> str:
    return digest_of([str(images.root), list(images.paths)])[:8]


def _peak_rss_mib() -> float:
    if sys.platform == "win32":
        return float("nan")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, Linux KiB.
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def versions() -> dict[str, str]:
    """Give the versions of Python and of the packages that decide about numbers."""
    packages = ("ssl-retrieval", "torch", "torchvision", "timm", "lightly", "faiss-cpu", "numpy", "pillow")
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
