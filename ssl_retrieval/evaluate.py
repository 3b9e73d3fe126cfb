"""One representation × one task -> Report: the stages, wired in a straight line."""

import dataclasses
import importlib.metadata
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ssl_retrieval import config, devices, exclusion, measuring, plugins, postprocess, rerank
from ssl_retrieval.atomic import require_writable
from ssl_retrieval.config import plugin
from ssl_retrieval.data.tasks import require_positives
from ssl_retrieval.embed import EmbedOptions
from ssl_retrieval.features import Features, derived, extracted, needs_vectors
from ssl_retrieval.fitting import images_of_section
from ssl_retrieval.query_groups import query_groups
from ssl_retrieval.recipe import Derived
from ssl_retrieval.report.files import write_report
from ssl_retrieval.representation import Representation, check_label
from ssl_retrieval.resampling import StatisticsOptions
from ssl_retrieval.seed_groups import SEED_OF
from ssl_retrieval.similarity import Similarity
from ssl_retrieval.store import FitOptions, Store
from ssl_retrieval.types import Report, Task, digest_of


@dataclass
class ProtocolOptions:
    """What a config may set of a task's protocol; the rest belongs to the task.

    Attributes:
        image_size: Short side in pixels to which all images are reduced first; None = as stored.
        exclude: A list of images to leave out, as `leakage` writes it; empty = the whole task.
    """

    image_size: int | None = None
    exclude: str = ""


@dataclass
class EvaluateConfig:
    """The keys of ``ssl-retrieval evaluate``.

    Attributes:
        out: Folder for ``report.json`` and the embeddings.
        seed: Not used by deterministic extractors; stored with the report.
        device: ``auto``, ``cpu``, ``cuda``, ….
        data: Dataset section: the task.
        model: Extractor section: a timm name or an extractor, and its options.
        steps: Post-processing of its vectors, in order (see `postprocess.parse`).
        rerank: Re-ranking of what is found, in order (see `rerank.parse`).
        label: The representation's name in tables; by default ``model.name``.
        seed_of: The method of which this is one seed; ``compare`` joins all seeds of a method.
        embed: Batch size and workers.
        protocol: See `ProtocolOptions`.
        metrics: Metric names; empty = the default list and what fits the task. ``mAP`` is always there.
        cache: Folder of embeddings shared between runs; by default ``out/embeddings``.
        fit: Dataset section: where vocabularies and whitenings are fitted; by default the task's own
            training images.
        fit_limit: At most so many of them.
        fit_on_test: Whether test images may be among them.
        statistics: See `StatisticsOptions`.
    """

    out: str = "???"
    seed: int = 0
    device: str = "auto"
    data: Any = plugin("dataset")
    model: Any = plugin("extractor")
    steps: list[str] = field(default_factory=list)
    rerank: list[str] = field(default_factory=list)
    label: str = ""
    seed_of: str = ""
    embed: EmbedOptions = field(default_factory=EmbedOptions)
    protocol: ProtocolOptions = field(default_factory=ProtocolOptions)
    metrics: list[str] = field(default_factory=list)
    cache: str = ""
    fit: Any = plugin("dataset")
    fit_limit: int = 5000
    fit_on_test: bool = False
    statistics: StatisticsOptions = field(default_factory=StatisticsOptions)


@dataclass(frozen=True, eq=False)
class Scored:
    """A report, and what it was computed from.

    Attributes:
        report: The scores.
        task: The task, without the images that could not be read.
        similarity: The scores of all pairs.
    """

    report: Report
    task: Task
    similarity: Similarity


def evaluate(cfg: EvaluateConfig) -> Report:
    """Embed, search and score; write ``out/report.json``.

    Raises:
        UserError: A mistake in the config or the data, or a task without positives.
    """
    config.require_sections(cfg, "data", "model")
    out = Path(cfg.out).expanduser()
    require_writable(out)
    postprocess.parse(cfg.steps)
    rerank.parse(cfg.rerank)
    cfg.statistics.check()
    task = load_task(cfg.data, cfg.protocol)
    label = cfg.label or cfg.model.name
    check_label(label)
    if cfg.seed_of:
        check_label(cfg.seed_of)
    store = Store(
        task,
        cache=Path(cfg.cache).expanduser() if cfg.cache else out / "embeddings",
        options=cfg.embed,
        on_error=cfg.data.on_error,
        fit=fit_options(cfg),
    )
    wanted = wanted_metrics(task, cfg.metrics)
    device = devices.pick(cfg.device)
    features = features_of(cfg, store, label, cfg.rerank)
    scored = as_seed_of(cfg.seed_of, score_features(features, wanted, device, config.to_dict(cfg)))
    write_report(scored.report, out / "report.json", cfg.statistics.resample)
    return scored.report


def features_of(cfg: Any, store: Store, label: str, reranking: list[str]) -> Features:
    """Embed a task as ``model`` and ``steps`` of a config say, and re-rank.

    Args:
        cfg: With ``model``, ``steps`` and ``device``, as `EvaluateConfig` has them.
        store: Of the task.
        label: The representation's name.
        reranking: Steps of re-ranking; empty = none.

    Raises:
        UserError: See `extracted` and `derived`; or steps for what has scores and no vectors.
    """
    recipe = Derived(of=[label], steps=cfg.steps, rerank=reranking)
    representation = Representation.make(label, cfg.model, devices.pick(cfg.device))
    # Refused before anything is embedded.
    has_more = bool(cfg.steps or reranking)
    if has_more and recipe.needs_vectors and getattr(representation.extractor, "only_scores", False):
        raise needs_vectors("steps" if cfg.steps else "rerank", label)
    if recipe.learns:
        store.fit_images()
    features = extracted(representation, store)
    return derived(label, recipe, [features], store) if has_more else features


def as_seed_of(method: str, scored: Scored) -> Scored:
    """Mark what was scored as one seed of a method; an empty name marks nothing."""
    if not method:
        return scored
    representation = scored.report.representation | {SEED_OF: method}
    return dataclasses.replace(
        scored, report=dataclasses.replace(scored.report, representation=representation)
    )


def fit_options(cfg: Any) -> FitOptions:
    """Read ``fit``, ``fit_limit``, ``fit_on_test`` and ``seed`` of a config."""
    images = None if cfg.fit is None else images_of_section(cfg.fit)
    return FitOptions(images, cfg.fit_limit, cfg.fit_on_test, cfg.seed)


def load_task(data: Any, options: ProtocolOptions) -> Task:
    """Load the task that a dataset section names, under the protocol options.

    Raises:
        UserError: Wrong data, or no query has a positive.
    """
    task: Task = plugins.find("dataset", data.name).load(data)
    if options.exclude:
        task = exclusion.apply(task, Path(options.exclude).expanduser())
    require_positives(task)
    return dataclasses.replace(
        task, protocol=dataclasses.replace(task.protocol, image_size=options.image_size)
    )


def wanted_metrics(task: Task, names: Sequence[str]) -> list[str]:
    """List the metrics to compute, ``mAP`` first; refuse what does not fit before anything is embedded.

    Args:
        task: What is searched.
        names: Metric names; empty = the default list and what fits the task.

    Raises:
        UserError: An unknown metric, or one that the task cannot have.
    """
    wanted = list(dict.fromkeys([measuring.HEADLINE, *names])) if names else measuring.customary(task)
    for name in wanted:
        measuring.check(name, task)
    return wanted


def score(
    representation: Representation,
    task: Task,
    *,
    cache: Path,
    options: EmbedOptions | None = None,
    names: Sequence[str] = (),
    on_error: str = "skip",
) -> Scored:
    """Score an extractor on a task.

    Args:
        representation: What embeds.
        task: What is searched.
        cache: Folder of EmbeddingSets; finished ones with the right key are reused.
        options: How to embed.
        names: Metric names; empty = the default list and what fits the task.
        on_error: ``skip`` or ``fail`` for unreadable images.

    Raises:
        UserError: Unknown metric, unreadable images with ``fail``, or nothing left to score.
    """
    wanted = wanted_metrics(task, names)
    store = Store(task, cache, options or EmbedOptions(), on_error)
    return score_features(extracted(representation, store), wanted, representation.device)


def score_features(
    features: Features,
    wanted: Sequence[str],
    device: str | torch.device = "cpu",
    resolved: dict[str, Any] | None = None,
) -> Scored:
    """Score what a representation made of a task.

    Args:
        features: Its vectors or scores.
        wanted: Metric names, from `wanted_metrics`.
        device: Where is searched.
        resolved: The config, to be stored with the report.

    Raises:
        UserError: No query is left that has anything to find.
    """
    kept = features.task
    require_positives(kept)
    measured = measuring.measure(features, wanted, device)
    report = Report(
        task=kept.name,
        representation={
            "name": features.label,
            "family": features.family,
            "dim": features.dim,
            "key": features.key,
            "fitted": features.fitted,
            "notes": list(features.notes),
        },
        protocol=kept.protocol.to_dict(),
        query_ids=kept.queries.paths,
        per_query=measured.per_query,
        pooled=measured.pooled,
        query_groups=query_groups(kept),
        costs={
            "embed_images_per_s": features.images_per_s,
            "search_queries_per_s": measured.queries_per_s,
            "bytes_per_image": features.bytes_per_image,
            "peak_rss_mib": features.peak_rss_mib,
            "train_s": features.train_s,
            **features.rerank_costs,
        },
        config=resolved or {},
        versions=versions(),
        info={
            "level": kept.level,
            "description": kept.description,
            "num_queries": len(kept.queries),
            "num_gallery": len(kept.gallery),
            "num_queries_without_positives": len(kept.queries) - kept.num_queries_with_positives,
            "num_queries_with_ties": measured.num_tied_queries,
            "tie_band": {measuring.HEADLINE: list(measured.tie_band)},
            "num_images_without_features": len(features.without_features),
            "gallery_digest": digest_of(list(kept.gallery.paths)),
            "skipped": [list(item) for item in features.skipped],
        },
        query_classes=measuring.classes_of_queries(kept),
        ranks=measured.ranks,
    )
    return Scored(report, kept, features.similarity)


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
