"""Representations × one task -> what lies behind their scores: tables, charts and one page."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ssl_retrieval import config, devices
from ssl_retrieval.analysis import (
    calibration_section,
    hubness_section,
    invariance_section,
    label_errors_section,
    wins_section,
)
from ssl_retrieval.atomic import atomic_path, require_writable
from ssl_retrieval.config import plugin, plugin_map
from ssl_retrieval.console import say
from ssl_retrieval.data.base import one_of
from ssl_retrieval.embed import EmbedOptions
from ssl_retrieval.errors import UserError
from ssl_retrieval.evaluate import ProtocolOptions, Scored, fit_options, load_task, score_features
from ssl_retrieval.features import Features, checked_labels, derived, extracted
from ssl_retrieval.measuring import HEADLINE
from ssl_retrieval.recipe import Derived
from ssl_retrieval.report.analysis_page import Section, write_analysis_page
from ssl_retrieval.representation import Representation
from ssl_retrieval.statistics import bootstrap_mean
from ssl_retrieval.store import Store

PARTS = ("hubness", "calibration", "label_errors", "wins", "invariance")


@dataclass
class AnalyzeConfig:
    """The keys of ``ssl-retrieval analyze``.

    Attributes:
        out: Folder for tables, charts, page and embeddings.
        seed: Of the halving of queries and of the images that are altered.
        device: ``auto``, ``cpu``, ``cuda``, ….
        data: Dataset section: the task.
        network: Extractor keys of the models that have no ``name``.
        models: Label -> extractor section.
        derived: Label -> what is made of others (see `Derived`), in this order after the models.
        embed: Batch size and workers.
        protocol: See `ProtocolOptions`.
        cache: Folder of embeddings shared between runs; by default ``out/embeddings``.
        fit: Dataset section: where vocabularies and whitenings are fitted; by default the task's own
            training images.
        fit_limit: At most so many of them.
        fit_on_test: Whether test images may be among them.
        parts: What is asked, of ``hubness``, ``calibration``, ``label_errors``, ``wins`` and ``invariance``;
            empty = everything that the task and the models allow.
        k: Results per query that count for hubness.
        precisions: Of the best match, for which thresholds are sought.
        wins: Two labels that are set against each other; empty = the best two by mAP.
        doubts: The label by whose vectors labels are doubted; empty = the best by mAP.
        num_altered: Gallery images that are altered to see what is noticed.
        num_shown: Pictures or queries that the page shows of each kind.
    """

    out: str = "???"
    seed: int = 0
    device: str = "auto"
    data: Any = plugin("dataset")
    network: dict[str, Any] = field(default_factory=dict)
    models: Any = plugin_map("extractor", shared="network")
    derived: dict[str, Derived] = field(default_factory=dict)
    embed: EmbedOptions = field(default_factory=EmbedOptions)
    protocol: ProtocolOptions = field(default_factory=ProtocolOptions)
    cache: str = ""
    fit: Any = plugin("dataset")
    fit_limit: int = 5000
    fit_on_test: bool = False
    parts: list[str] = field(default_factory=list)
    k: int = 10
    precisions: list[float] = field(default_factory=lambda: [0.8, 0.9, 0.95, 0.99])
    wins: list[str] = field(default_factory=list)
    doubts: str = ""
    num_altered: int = 200
    num_shown: int = 12


def analyze(cfg: AnalyzeConfig) -> list[Section]:
    """Score the representations, answer the questions, and write all of it.

    Every table goes to ``out/NAME.csv``, every chart to ``out/SECTION.png`` and everything together to
    ``out/report.html``.

    Raises:
        UserError: A mistake in the config or the data.
    """
    _check(cfg)
    out = Path(cfg.out).expanduser()
    require_writable(out)
    task = load_task(cfg.data, cfg.protocol)
    has_labels = task.queries.labels is not None and task.gallery.labels is not None
    cache = Path(cfg.cache).expanduser() if cfg.cache else out / "embeddings"
    store = Store(task, cache, cfg.embed, cfg.data.on_error, fit_options(cfg))
    device = devices.pick(cfg.device)
    models = {name: Representation.make(name, section, device) for name, section in cfg.models.items()}
    made: dict[str, Features] = {}
    scored: dict[str, Scored] = {}
    for label in [*models, *cfg.derived]:
        say(f"{label} …")
        if label in models:
            made[label] = extracted(models[label], store)
        else:
            recipe = cfg.derived[label]
            made[label] = derived(label, recipe, [made[part] for part in recipe.of], store)
        scored[label] = score_features(made[label], [HEADLINE], device)
    mean = {name: bootstrap_mean(one.report.per_query[HEADLINE]).mean for name, one in scored.items()}
    best = sorted(mean, key=lambda name: -mean[name])
    doubts = cfg.doubts or best[0]
    rivals = cfg.wins or best[:2]
    ways: dict[str, Callable[[], Section]] = {
        "hubness": partial(hubness_section, scored, cfg.k, cfg.num_shown),
        "calibration": partial(calibration_section, scored, cfg.precisions, cfg.seed),
        "label_errors": partial(label_errors_section, scored, doubts, cfg.num_shown),
        "wins": lambda: wins_section(scored, rivals[0], rivals[1], cfg.num_shown),
        "invariance": partial(invariance_section, models, store, cfg.num_altered, cfg.seed),
    }
    possible = {"label_errors": has_labels, "wins": len(scored) > 1}
    wanted = cfg.parts or [part for part in PARTS if possible.get(part, True)]
    sections = []
    for part in wanted:
        say(f"{part} …")
        sections.append(ways[part]())
        _write(sections[-1], out)
    intro = [
        f"{task.description} " + "mAP: " + ", ".join(f"{name} {mean[name]:.3f}" for name in best) + ".",
        f"Protocol {task.protocol.to_dict()['hash']}.",
    ]
    write_analysis_page(out / "report.html", f"Behind the scores on {task.name}", intro, sections)
    return sections


def _check(cfg: AnalyzeConfig) -> None:
    """Refuse, before anything is embedded, what cannot work."""
    config.require_sections(cfg, "data")
    if not cfg.models:
        raise UserError("missing section 'models': give at least one, as models.LABEL.name=…")
    cfg.embed.check()
    known = checked_labels(cfg.models, cfg.derived)
    for part in cfg.parts:
        one_of("parts", part, PARTS)
    if "wins" in cfg.parts and len(known) < 2:
        raise UserError("parts: wins sets two representations against each other, and there is only one")
    if cfg.wins and (len(cfg.wins) != 2 or not set(cfg.wins) <= set(known)):
        raise UserError(f"wins={cfg.wins}: give two labels of {', '.join(known)}, or none for the best two")
    if cfg.doubts and cfg.doubts not in known:
        raise UserError(f"doubts={cfg.doubts!r}: use one of {', '.join(known)}")
    for key, least in (("k", 1), ("num_altered", 2), ("num_shown", 0)):
        if getattr(cfg, key) < least:
            raise UserError(f"{key}={getattr(cfg, key)}: must be at least {least}")


def _write(section: Section, out: Path) -> None:
    for name, table in section.files.items():
        with atomic_path(out / f"{name}.csv") as target:
            table.to_csv(target, index=False)
    if section.chart:
        with atomic_path(out / f"{section.name}.png") as target:
            target.write_bytes(section.chart)
