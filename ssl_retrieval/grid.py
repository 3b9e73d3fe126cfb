"""Many representations × many tasks -> one comparison, its tables and its page."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ssl_retrieval import config, devices, plugins
from ssl_retrieval.atomic import atomic_path, require_writable
from ssl_retrieval.compare import Comparison, compare
from ssl_retrieval.config import plugin_map
from ssl_retrieval.console import say
from ssl_retrieval.embed import EmbedOptions, Representation, check_label
from ssl_retrieval.errors import UserError
from ssl_retrieval.evaluate import ProtocolOptions, Scored, load_task, score
from ssl_retrieval.report.files import write_report
from ssl_retrieval.report.gallery import GalleryQuery, GalleryRow, pick_queries
from ssl_retrieval.report.page import write_page
from ssl_retrieval.report.table import to_csv, to_markdown
from ssl_retrieval.search import top_k
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
        models: Label -> extractor section.
        embed: Batch size and workers.
        protocol: See `ProtocolOptions`.
        metrics: Metric names; empty = the default list and what fits the task.
        num_gallery_queries: Queries per task whose results the page shows.
        title: Heading of the page.
        notes: Paragraphs for the page.
        cache: Folder of embeddings shared between runs; by default ``out/embeddings``.
    """

    out: str = "???"
    seed: int = 0
    device: str = "auto"
    data: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, Any] = field(default_factory=dict)
    models: Any = plugin_map("extractor")
    embed: EmbedOptions = field(default_factory=EmbedOptions)
    protocol: ProtocolOptions = field(default_factory=ProtocolOptions)
    metrics: list[str] = field(default_factory=list)
    num_gallery_queries: int = 8
    title: str = "Which representation retrieves best?"
    notes: list[str] = field(default_factory=list)
    cache: str = ""


def run_grid(cfg: CompareConfig) -> Comparison:
    """Evaluate every model on every task and write ``table.md``, ``table.csv``, ``report.html``.

    Raises:
        UserError: A mistake in the config or the data.
    """
    if not cfg.models:
        raise UserError("missing section 'models': give at least one, as models.LABEL.name=…")
    for name in cfg.models:
        check_label(name)
    out = Path(cfg.out).expanduser()
    require_writable(out)
    sections = _task_sections(cfg)
    tasks = _with_own_names({label: load_task(section, cfg.protocol) for label, section in sections.items()})
    scored: dict[str, dict[str, Scored]] = {label: {} for label in tasks}
    for name, section in cfg.models.items():
        representation = Representation.make(name, section, devices.pick(cfg.device))
        for label, task in tasks.items():
            resolved = config.to_dict(cfg) | {
                "data": config.to_dict(sections[label]),
                "model": config.to_dict(section),
            }
            for key in ("tasks", "models"):
                del resolved[key]
            result = score(
                representation,
                task,
                cache=Path(cfg.cache).expanduser() if cfg.cache else out / "embeddings",
                options=cfg.embed,
                names=cfg.metrics,
                on_error=sections[label].on_error,
                resolved=resolved,
            )
            scored[label][name] = result
            write_report(result.report, out / "reports" / f"{task.name}--{name}.json")
    say("comparing: bootstrap intervals and paired tests")
    comparison = compare([r.report for of_task in scored.values() for r in of_task.values()])
    galleries = {
        of_task[next(iter(of_task))].task.name: _galleries(comparison, of_task, cfg.num_gallery_queries)
        for of_task in scored.values()
    }
    write_tables(comparison, out, galleries, cfg.title, cfg.notes)
    return comparison


def write_tables(
    comparison: Comparison,
    out: Path,
    galleries: Mapping[str, list[GalleryQuery]],
    title: str,
    notes: list[str],
) -> None:
    """Write ``table.md``, ``table.csv`` and ``report.html`` into ``out``."""
    with atomic_path(out / "table.md") as partial:
        partial.write_text(to_markdown(comparison), encoding="utf-8")
    with atomic_path(out / "table.csv") as partial:
        partial.write_text(to_csv(comparison), encoding="utf-8")
    write_page(comparison, dict(galleries), out / "report.html", title, notes)


def compare_reports(reports: list[Report], out: Path, force: bool) -> Comparison:
    """Compare finished reports and write the tables and the page."""
    comparison = compare(reports, force=force)
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
        rows = [_gallery_row(name, result, place) for name, result in scored.items()]
        queries.append(
            GalleryQuery(
                query_file=first.task.queries.file(place),
                title=_title(first.task, place, picked.reason),
                rows=rows,
            )
        )
    return queries


def _gallery_row(name: str, scored: Scored, place: int) -> GalleryRow:
    task = scored.task
    one = slice(place, place + 1)
    ranking = top_k(scored.queries[one], scored.gallery, GALLERY_K, task.ignored[one])
    found = ranking.indices[0][ranking.indices[0] >= 0]
    return GalleryRow(
        name=name,
        files=[task.gallery.file(int(i)) for i in found],
        hits=np.isin(found, task.relevant[place]).tolist(),
        scores=ranking.scores[0][: len(found)].tolist(),
    )


def _title(task: Task, place: int, why: str) -> str:
    labels = task.queries.labels
    name = "" if labels is None else f" ({task.queries.class_names[labels[place]]})"
    return f"{task.queries.paths[place]}{name}: {why}"
