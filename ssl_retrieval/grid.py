"""Many representations × many tasks -> one comparison, its tables and its page."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

from ssl_retrieval import config, devices, learning, plugins
from ssl_retrieval.atomic import atomic_path, require_writable
from ssl_retrieval.compare import Comparison, compare
from ssl_retrieval.config import plugin, plugin_map
from ssl_retrieval.console import say
from ssl_retrieval.embed import EmbedOptions
from ssl_retrieval.errors import UserError
from ssl_retrieval.evaluate import (
    EvaluateConfig,
    ProtocolOptions,
    Scored,
    as_seed_of,
    fit_options,
    load_task,
    score_features,
    wanted_metrics,
)
from ssl_retrieval.features import Features, checked_labels, derived, extracted, needs_vectors
from ssl_retrieval.fitting import NothingToFitError
from ssl_retrieval.pace import Pace
from ssl_retrieval.recipe import Derived
from ssl_retrieval.report.files import write_report
from ssl_retrieval.report.gallery import GalleryQuery, pick_queries
from ssl_retrieval.report.overview import save_overview
from ssl_retrieval.report.page import write_page
from ssl_retrieval.report.table import to_csv, to_markdown
from ssl_retrieval.representation import Representation
from ssl_retrieval.resampling import StatisticsOptions
from ssl_retrieval.results import results_of
from ssl_retrieval.seed_groups import check_seeds, method_of
from ssl_retrieval.store import Shelf, Store
from ssl_retrieval.types import Report, Task

GALLERY_K = 8


@dataclass
class CompareConfig:
    """The keys of ``ssl-retrieval compare CONFIG.yaml``.

    Attributes:
        out: Folder for tables, page, reports and embeddings.
        seed: Stored with the reports.
        device: ``auto``, ``cpu``, ``cuda``, ….
        data: Dataset keys that all tasks share.
        tasks: Label -> dataset keys of this task, on top of ``data``; empty = one task, ``data``.
        network: Extractor keys of the models that have no ``name``: one network, used in many ways.
        models: Label -> extractor section.
        derived: Label -> what is made of others (see `Derived`), in this order after the models.
        embed: Batch size and workers.
        protocol: See `ProtocolOptions`.
        metrics: Metric names; empty = the default list and what fits the task.
        num_gallery_queries: Queries per task whose results the page shows.
        title: Heading of the page.
        notes: Paragraphs for the page.
        cache: Folder of embeddings shared between runs; by default ``out/embeddings``.
        fit: Dataset section: where vocabularies and whitenings are fitted; by default each task's own
            training images.
        fit_limit: At most so many of them.
        fit_on_test: Whether test images may be among them.
        on_missing_fit: What becomes of a representation that must be fitted on a task without images to
            fit on: ``leave_out`` (and say so) or ``fail``.
        seeds: Label of a method -> labels of models (or of what is derived) that differ by their seed only;
            they are compared as one.
        statistics: See `StatisticsOptions`.
    """

    out: str = "???"
    seed: int = 0
    device: str = "auto"
    data: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    models: Any = plugin_map("extractor", shared="network")
    derived: dict[str, Derived] = field(default_factory=dict)
    embed: EmbedOptions = field(default_factory=EmbedOptions)
    protocol: ProtocolOptions = field(default_factory=ProtocolOptions)
    metrics: list[str] = field(default_factory=list)
    num_gallery_queries: int = 8
    title: str = "Which representation retrieves best?"
    notes: list[str] = field(default_factory=list)
    cache: str = ""
    fit: Any = plugin("dataset")
    fit_limit: int = 5000
    fit_on_test: bool = False
    on_missing_fit: str = "leave_out"
    seeds: dict[str, list[str]] = field(default_factory=dict)
    statistics: StatisticsOptions = field(default_factory=StatisticsOptions)


@dataclass
class FinishedReports:
    """The keys of ``ssl-retrieval compare A.json B.json``.

    Attributes:
        out: Folder for tables and page; empty = the option ``--out``, or ``comparison``.
        statistics: See `StatisticsOptions`.
    """

    out: str = ""
    statistics: StatisticsOptions = field(default_factory=StatisticsOptions)


def run_grid(cfg: CompareConfig) -> Comparison:
    """Evaluate every model on every task and write tables, chart and page.

    Raises:
        UserError: A mistake in the config or the data.
    """
    _check(cfg)
    out = Path(cfg.out).expanduser()
    require_writable(out)
    sections = _task_sections(cfg)
    tasks = _with_own_names({label: load_task(section, cfg.protocol) for label, section in sections.items()})
    wanted = {label: wanted_metrics(task, cfg.metrics) for label, task in tasks.items()}
    cache = Path(cfg.cache).expanduser() if cfg.cache else out / "embeddings"
    fit = fit_options(cfg)
    device = devices.pick(cfg.device)
    shelf = Shelf()
    stores = {
        label: Store(task, cache, cfg.embed, sections[label].on_error, fit, shelf)
        for label, task in tasks.items()
    }
    scored: dict[str, dict[str, Scored]] = {label: {} for label in tasks}
    made: dict[str, dict[str, Features]] = {label: {} for label in tasks}
    left_out: dict[str, list[str]] = {label: [] for label in tasks}
    models = {name: Representation.make(name, section, device) for name, section in cfg.models.items()}
    _check_what_has_vectors(cfg, models)
    _check_fit_images(cfg, models, list(stores.values()))
    fitting = [name for name, recipe in cfg.derived.items() if recipe.learns]
    fitted_on = {part for name in fitting for part in _all_parts(name, cfg)}
    pace = Pace.measured(list(models.values()), list(stores.values()), fitted_on, len(cfg.derived))
    for name in [*models, *cfg.derived]:
        pace.announce(name)
        for label, store in stores.items():
            try:
                features = _features(name, cfg, models, made[label], store)
            except NothingToFitError as error:
                if cfg.on_missing_fit == "fail":
                    raise
                left_out[label].append(f"{name!r} is left out on {store.task.name!r}: {error}")
                say(left_out[label][-1])
                continue
            made[label][name] = features
            result = score_features(features, wanted[label], device, _resolved(cfg, sections[label], name))
            scored[label][name] = as_seed_of(method_of(name, cfg.seeds), result)
            write_report(
                scored[label][name].report,
                out / "reports" / f"{store.task.name}--{name}.json",
                cfg.statistics.resample,
            )
        pace.finished(name)
    for label, task in tasks.items():
        if not scored[label]:
            raise UserError(f"nothing could be evaluated on task {task.name!r}: {left_out[label][0]}")
    say("comparing: bootstrap intervals and paired tests")
    reports = [r.report for of_task in scored.values() for r in of_task.values()]
    comparison = compare(reports, options=cfg.statistics)
    comparison = replace(comparison, notes=(*comparison.notes, *chain.from_iterable(left_out.values())))
    galleries = {
        of_task[next(iter(of_task))].task.name: _galleries(comparison, of_task, cfg.num_gallery_queries)
        for of_task in scored.values()
    }
    write_tables(comparison, out, galleries, cfg.title, cfg.notes)
    return comparison


def _check(cfg: CompareConfig) -> None:
    """Refuse, before anything is embedded, what cannot work."""
    if not cfg.models:
        raise UserError("missing section 'models': give at least one, as models.LABEL.name=…")
    cfg.embed.check()
    if cfg.on_missing_fit not in ("leave_out", "fail"):
        raise UserError(f"on_missing_fit={cfg.on_missing_fit!r}: use leave_out or fail")
    known = checked_labels(cfg.models, cfg.derived)
    cfg.statistics.check()
    check_seeds(cfg.seeds, known)


def _check_what_has_vectors(cfg: CompareConfig, models: Mapping[str, Representation]) -> None:
    have_none = {name for name, model in models.items() if getattr(model.extractor, "only_scores", False)}
    for name, recipe in cfg.derived.items():
        without = [part for part in recipe.of if part in have_none]
        if without and recipe.needs_vectors:
            raise needs_vectors(name, without[0])
        if recipe.gives_scores:
            have_none.add(name)


def _check_fit_images(cfg: CompareConfig, models: Mapping[str, Representation], stores: list[Store]) -> None:
    learn = any(learning.learns(model) for model in models.values())
    if not (learn or any(recipe.learns for recipe in cfg.derived.values())):
        return
    for store in stores:
        try:
            store.fit_images()
        except NothingToFitError:
            if cfg.on_missing_fit == "fail":
                raise


def _features(
    name: str,
    cfg: CompareConfig,
    models: Mapping[str, Representation],
    made: Mapping[str, Features],
    store: Store,
) -> Features:
    """Make a representation of a task.

    Raises:
        NothingToFitError: It, or what it is made of, must be fitted and there is nothing to fit on.
        UserError: A mistake in the config or the data.
    """
    if name in models:
        return extracted(models[name], store)
    recipe = cfg.derived[name]
    for part in recipe.of:
        if part not in made:
            raise NothingToFitError(f"it is made of {part!r}, which is left out")
    return derived(name, recipe, [made[part] for part in recipe.of], store)


def _resolved(cfg: CompareConfig, section: Any, name: str) -> dict[str, Any]:
    """Give the config that makes one report again: of ``evaluate``, or of ``compare`` for what is derived."""
    resolved = config.to_dict(cfg) | {"data": config.to_dict(section)}
    models, recipes = resolved["models"], resolved["derived"]
    if name in models:
        known = {field.name for field in fields(EvaluateConfig)}
        return {key: value for key, value in resolved.items() if key in known} | {
            "model": models[name],
            "label": name,
            "seed_of": method_of(name, cfg.seeds),
        }
    wanted = {name, *_all_parts(name, cfg)}
    return resolved | {
        "tasks": {},
        "network": {},
        "models": {label: model for label, model in models.items() if label in wanted},
        "derived": {label: recipe for label, recipe in recipes.items() if label in wanted},
        "seeds": {},
    }


def _all_parts(name: str, cfg: CompareConfig) -> list[str]:
    """List what a derived representation is made of, directly and indirectly."""
    parts = cfg.derived[name].of if name in cfg.derived else []
    return [*parts, *(inner for part in parts for inner in _all_parts(part, cfg))]


def write_tables(
    comparison: Comparison,
    out: Path,
    galleries: Mapping[str, list[GalleryQuery]],
    title: str,
    notes: list[str],
) -> None:
    """Write ``table.md``, ``table.csv``, ``chart.png`` and ``report.html`` into ``out``."""
    with atomic_path(out / "table.md") as partial:
        partial.write_text(to_markdown(comparison), encoding="utf-8")
    with atomic_path(out / "table.csv") as partial:
        partial.write_text(to_csv(comparison), encoding="utf-8")
    save_overview(comparison, out / "chart.png")
    write_page(comparison, dict(galleries), out / "report.html", title, notes)


def compare_reports(reports: list[Report], out: Path, force: bool, options: StatisticsOptions) -> Comparison:
    """Compare finished reports and write the tables and the page."""
    comparison = compare(reports, force=force, options=options)
    write_tables(comparison, out, {}, CompareConfig.title, [])
    return comparison


def _task_sections(cfg: CompareConfig) -> dict[str, Any]:
    overrides = cfg.tasks or {"data": {}}
    sections = {}
    for label, keys in overrides.items():
        if not isinstance(keys, Mapping):
            raise UserError(f"'tasks.{label}' must be a section of dataset keys, not {keys!r}")
        section = {**cfg.data, **keys}
        name = section.get("name")
        if isinstance(name, str) and name != "???":
            schema = plugins.find("dataset", name).Config
            config.refuse_unknown_keys(schema, cfg.data, "data")
            config.refuse_unknown_keys(schema, keys, f"tasks.{label}")
        sections[label] = config.plugin_config("dataset", section, "data")
    return sections


def _with_own_names(tasks: dict[str, Task]) -> dict[str, Task]:
    """Tell tasks of one name apart (one folder under several options) by their labels."""
    times = Counter(task.name for task in tasks.values())
    return {
        label: replace(task, name=f"{task.name}-{label}") if times[task.name] > 1 else task
        for label, task in tasks.items()
    }


def _galleries(comparison: Comparison, scored: dict[str, Scored], count: int) -> list[GalleryQuery]:
    first = next(iter(scored.values()))
    of_task = next(task for task in comparison.tasks if task.task == first.task.name)
    queries = []
    for picked in pick_queries(of_task, count):
        place = first.task.queries.paths.index(picked.query_id)
        rows = [results_of(name, result, place, GALLERY_K) for name, result in scored.items()]
        queries.append(
            GalleryQuery(
                query_file=first.task.queries.file(place),
                title=_title(first.task, place, picked.reason),
                rows=rows,
            )
        )
    return queries


def _title(task: Task, place: int, why: str) -> str:
    labels = task.queries.labels
    name = "" if labels is None else f" ({task.queries.class_names[labels[place]]})"
    return f"{task.queries.paths[place]}{name}: {why}"
