"""One HTML file that opens without a network: the comparison as people read it."""

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ssl_retrieval.atomic import atomic_path
from ssl_retrieval.compare import Comparison, TaskComparison
from ssl_retrieval.report.chart import draw_chart, family_colours
from ssl_retrieval.report.coverage import coverage_notes
from ssl_retrieval.report.footnotes import LEGEND, statistics_notes
from ssl_retrieval.report.gallery import GalleryQuery, GalleryRow, thumbnail
from ssl_retrieval.report.headline import headline
from ssl_retrieval.report.numbers import format_cell, format_count, format_p, format_score
from ssl_retrieval.report.table import (
    LEVEL_TITLES,
    Column,
    columns,
    cost_titles,
    costs,
    fitted_notes,
    fitted_on_queries,
)


def write_page(
    comparison: Comparison,
    galleries: Mapping[str, Sequence[GalleryQuery]],
    file: Path,
    title: str,
    notes: Sequence[str] = (),
) -> None:
    """Write the comparison as a single-file page.

    Args:
        comparison: What to show.
        galleries: Task name -> queries with their results; tasks may be missing.
        file: Where the page goes.
        title: Its heading.
        notes: Paragraphs of plain text that follow the result in words.
    """
    entries = [entry for task in comparison.tasks for entry in task.entries]
    colours = family_colours([entry.family for entry in entries])
    shown = columns(comparison)
    templates = environment()
    templates.filters["chart"] = lambda task: Markup(draw_chart(task, colours))
    page = templates.get_template("page.html").render(
        title=title,
        comparison=comparison,
        columns=shown,
        level_spans=[(level, len(list(of_level))) for level, of_level in groupby(shown, _level_of_column)],
        costs=costs,
        cost_titles=cost_titles(comparison),
        warnings=[*comparison.notes, *fitted_on_queries(comparison)],
        table_notes=[*coverage_notes(comparison), *fitted_notes(comparison)],
        cost_keys=list(dict.fromkeys(key for entry in entries for key in entry.report.costs)),
        colours=colours,
        legend=LEGEND.replace("*", "★"),
        galleries=galleries,
        notes=notes,
        versions=_versions(comparison),
    )
    write_text(page, file)


def write_search_page(query_file: Path, hits: Sequence[tuple[Path, float]], file: Path) -> None:
    """Write the results of one search as a single-file page.

    Args:
        query_file: The query image.
        hits: (image file, similarity), best first.
        file: Where the page goes.
    """
    title = f"Images similar to {query_file.name}"
    template = environment().get_template("search.html")
    write_text(template.render(title=title, query_file=query_file, hits=hits), file)


def render(template: str, file: Path, **values: Any) -> None:
    """Write a single-file page from a template of this folder.

    Args:
        template: Its file name.
        file: Where the page goes.
        values: What the template names.
    """
    write_text(environment().get_template(template).render(**values), file)


def environment() -> Environment:
    """Make the reader of this folder's templates."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "thumbnail": thumbnail,
        "headline": headline,
        "statistics_notes": statistics_notes,
        "level": _level,
        "score": format_score,
        "p": format_p,
        "count": format_count,
        "cell": format_cell,
        "results": _results,
        "pretty": _pretty,
    }
    return made


def _level(task: TaskComparison) -> str:
    return LEVEL_TITLES.get(task.level, task.level)


def _level_of_column(column: Column) -> str:
    return column.level


def _results(row: GalleryRow) -> list[tuple[Path, bool, float]]:
    return list(zip(row.files, row.hits, row.scores, strict=True))


def _pretty(config: dict[str, Any]) -> str:
    return json.dumps(config, indent=2, default=str, ensure_ascii=False)


def _versions(comparison: Comparison) -> dict[str, str]:
    """Collect package versions; where reports differ, all of them are shown."""
    found: dict[str, list[str]] = {}
    for task in comparison.tasks:
        for entry in task.entries:
            for package, version in entry.report.versions.items():
                found.setdefault(package, []).append(version)
    return {package: " and ".join(dict.fromkeys(all_)) for package, all_ in sorted(found.items())}


def write_text(text: str, file: Path) -> None:
    """Write a text file whole or not at all."""
    with atomic_path(file) as partial:
        partial.write_text(text, encoding="utf-8")
