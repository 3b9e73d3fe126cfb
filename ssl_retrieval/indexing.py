"""The job of ``ssl-retrieval index``: build some indexes of one gallery, audit each, choose."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ssl_retrieval import config, index, index_files, postprocess
from ssl_retrieval.atomic import require_writable
from ssl_retrieval.config import plugin
from ssl_retrieval.console import say
from ssl_retrieval.embed import EmbedOptions
from ssl_retrieval.embedding_files import read
from ssl_retrieval.errors import UserError
from ssl_retrieval.evaluate import ProtocolOptions, features_of, fit_options, load_task, versions
from ssl_retrieval.index_audit import Audit, Problem, audit, audit_exact
from ssl_retrieval.index_choice import recommendation
from ssl_retrieval.index_syntax import IndexSpec, parse
from ssl_retrieval.postprocess import l2_normalize
from ssl_retrieval.report.index_page import IndexReport, write_index_report
from ssl_retrieval.representation import check_label
from ssl_retrieval.store import Store
from ssl_retrieval.types import IntArray, VectorArray

_MIB = 2**20
_BLOCK_ROWS = 16_384

DEFAULT_INDEXES = ["Flat", "SQ8", "HNSW32", "IVF64,Flat nprobe=8", "RaBitQ", "RaBitQ rescore=10"]


@dataclass
class IndexConfig:
    """The keys of ``ssl-retrieval index``.

    Attributes:
        out: Folder for the tables and the page; with ``data`` also for indexes and embeddings.
        embeddings: A folder that `embed` left: the gallery; the indexes are stored in it. Queries are its own
            images, each without itself, and right is what has the same label.
        indexes: What to build: factory strings of faiss, then settings (see `index_syntax.parse`).
        k: Results per query: recall@k, mAP@k, and what is timed.
        queries: At most so many queries are drawn.
        train_images: At most so many images are trained on.
        gallery_size: Number of images that bytes are estimated for; by default the gallery's own.
        memory_budget_mib: One index is recommended that fits into so many MiB.
        bytes_per_image: The same, as bytes for each image of ``gallery_size``.
        seed: Draws queries and training images.
        device: Where is embedded: ``auto``, ``cpu``, ….
        data: Dataset section: the task, instead of ``embeddings``.
        model: Extractor section.
        steps: Post-processing (see `postprocess.parse`).
        label: The representation's name; by default ``model.name``.
        embed: Batch size and workers.
        protocol: See `ProtocolOptions`.
        cache: Folder of embeddings shared between runs; by default ``out/embeddings``.
        fit: Dataset section: where post-processing is fitted; by default the task's own training images.
        fit_limit: At most so many of them.
        fit_on_test: Whether test images may be among them.
    """

    out: str = "???"
    embeddings: str = ""
    indexes: list[str] = field(default_factory=lambda: list(DEFAULT_INDEXES))
    k: int = 10
    queries: int = 1000
    train_images: int = index.TRAIN_IMAGES
    gallery_size: int | None = None
    memory_budget_mib: float | None = None
    bytes_per_image: float | None = None
    seed: int = 0
    device: str = "auto"
    data: Any = plugin("dataset")
    model: Any = plugin("extractor")
    steps: list[str] = field(default_factory=list)
    label: str = ""
    embed: EmbedOptions = field(default_factory=EmbedOptions)
    protocol: ProtocolOptions = field(default_factory=ProtocolOptions)
    cache: str = ""
    fit: Any = plugin("dataset")
    fit_limit: int = 5000
    fit_on_test: bool = False


@dataclass(frozen=True, eq=False)
class _Search:
    """A gallery and the questions put to it.

    Attributes:
        name: Of what.
        folder: Where its indexes go.
        of: See `index_files.vectors_key`.
        queries: float32 [Q, D].
        gallery: float32 [N, D], rows of length 1 or 0.
        ignored: Q arrays of gallery rows.
        relevant: Q arrays of gallery rows; None where nothing is known.
    """

    name: str
    folder: Path
    of: str
    queries: VectorArray
    gallery: VectorArray
    ignored: list[IntArray]
    relevant: list[IntArray] | None


def run_index(cfg: IndexConfig) -> IndexReport:
    """Build, store and audit indexes; write ``table.md``, ``table.csv``, ``report.html`` and ``pareto.png``.

    Raises:
        UserError: A mistake in the config, the data or an index.
    """
    specs = _checked(cfg)
    out = Path(cfg.out).expanduser()
    require_writable(out)
    asked = _of_embeddings(cfg) if cfg.embeddings else _of_task(cfg, out)
    num, dim = asked.gallery.shape
    for spec in specs:
        index.empty(spec, dim)
    k = min(cfg.k, num)
    size = cfg.gallery_size or num
    say(f"{asked.name}: {num:,} images of {dim} dimensions, {len(asked.queries):,} queries: exact first")
    problem = Problem.of(asked.queries, asked.gallery, k, asked.ignored, asked.relevant)
    audits = {None: audit_exact(problem, size)} | _audited(problem, specs, asked, size, cfg)
    rows = [audits[None], *(audits[spec] for spec in specs)]
    budget = _budget_bytes(cfg, size)
    report = IndexReport(
        name=asked.name,
        audits=rows,
        gallery_size=size,
        exact_map=None if problem.exact_map is None else float(np.nanmean(problem.exact_map)),
        recommendation=None if budget is None else recommendation(rows, budget, size),
        versions=versions(),
    )
    write_index_report(report, out)
    return report


def _checked(cfg: IndexConfig) -> list[IndexSpec]:
    if not cfg.embeddings:
        if cfg.data is None and cfg.model is None:
            raise UserError("nothing to index: give embeddings=DIR, or the sections data and model")
        config.require_sections(cfg, "data", "model")
    elif cfg.data is not None or cfg.model is not None:
        raise UserError(
            "embeddings=… and data or model: give either a folder of embeddings or a task to embed"
        )
    for name in ("k", "queries", "train_images", "gallery_size", "memory_budget_mib", "bytes_per_image"):
        value = getattr(cfg, name)
        if value is not None and not value > 0:
            raise UserError(f"{name}={value}: must be above 0")
    if cfg.memory_budget_mib is not None and cfg.bytes_per_image is not None:
        raise UserError("memory_budget_mib and bytes_per_image: give one of them")
    postprocess.parse(cfg.steps)
    specs = list(dict.fromkeys(parse(text) for text in cfg.indexes))
    if not specs:
        raise UserError("indexes=[]: give at least one factory string, as indexes=[HNSW32]")
    return specs


def _budget_bytes(cfg: IndexConfig, size: int) -> float | None:
    if cfg.bytes_per_image is not None:
        return cfg.bytes_per_image * size
    return None if cfg.memory_budget_mib is None else cfg.memory_budget_mib * _MIB


def _audited(
    problem: Problem, specs: list[IndexSpec], asked: _Search, size: int, cfg: IndexConfig
) -> dict[IndexSpec | None, Audit]:
    """Audit every spec; those that differ only in how they search share one index, which is then let go."""
    found: dict[IndexSpec | None, Audit] = {}
    for built_as in dict.fromkeys(spec.built_as for spec in specs):
        together = [spec for spec in specs if spec.built_as == built_as]
        say(f"building {built_as}")
        built = index.build(together[0], asked.gallery, cfg.seed, cfg.train_images)
        file = index_files.index_file(asked.folder, built_as)
        index_files.save(built, file, asked.of)
        for spec in together:
            found[spec] = audit(problem, spec, built, size)
            index_files.add_audit(file, spec.name, found[spec].to_dict())
    return found


def _of_task(cfg: IndexConfig, out: Path) -> _Search:
    task = load_task(cfg.data, cfg.protocol)
    label = cfg.label or cfg.model.name
    check_label(label)
    store = Store(
        task,
        cache=Path(cfg.cache).expanduser() if cfg.cache else out / "embeddings",
        options=cfg.embed,
        on_error=cfg.data.on_error,
        fit=fit_options(cfg),
    )
    features = features_of(cfg, store, label, [])
    if features.scores is not None or features.queries is None or features.gallery is None:
        raise UserError(
            f"{label!r} has a similarity of its own and no vectors to index: choose another model"
        )
    kept = features.task
    rows = _drawn(len(kept.queries), cfg)
    return _Search(
        name=f"{kept.name}, {label}",
        folder=out / index_files.FOLDER,
        of=index_files.vectors_key(features.key, kept.gallery.paths, features.dim),
        queries=features.queries[rows],
        gallery=features.gallery,
        ignored=[kept.ignored[row] for row in rows],
        relevant=[kept.relevant[row] for row in rows],
    )


def _of_embeddings(cfg: IndexConfig) -> _Search:
    folder = Path(cfg.embeddings).expanduser()
    stored = read(folder)
    if len(stored.ids) < 2:
        raise UserError(f"{folder}: {len(stored.ids)} images are too few to search among")
    gallery = np.empty(stored.vectors.shape, np.float32)
    for start in range(0, len(gallery), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        gallery[rows] = l2_normalize(stored.vectors[rows])
    drawn = _drawn(len(gallery), cfg)
    return _Search(
        name=folder.name,
        folder=folder / index_files.FOLDER,
        of=index_files.vectors_key(stored.key, stored.ids, stored.dim),
        queries=gallery[drawn],
        gallery=gallery,
        ignored=[np.array([row], np.int64) for row in drawn],
        relevant=_of_same_label(pd.read_parquet(folder / "items.parquet")["label"], drawn),
    )


def _of_same_label(labels: "pd.Series[Any]", drawn: IntArray) -> list[IntArray] | None:
    """Give the other rows with each row's label; None where no two images share one."""
    codes, _ = pd.factorize(labels)
    members = {code: np.flatnonzero(codes == code) for code in np.unique(codes[drawn])}
    relevant = []
    for row in drawn:
        same = members[codes[row]] if codes[row] >= 0 else np.empty(0, np.int64)
        relevant.append(same[same != row].astype(np.int64))
    return relevant if any(len(rows) for rows in relevant) else None


def _drawn(num: int, cfg: IndexConfig) -> IntArray:
    if num <= cfg.queries:
        return np.arange(num)
    return np.sort(np.random.default_rng(cfg.seed).choice(num, cfg.queries, replace=False)).astype(np.int64)
