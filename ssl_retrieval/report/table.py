"""One table, four ways to read it: terminal, Markdown, CSV, and (in ``page.html``) HTML.

The wide table has one row per representation; the CSV is long: one row per task, representation and
metric.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ssl_retrieval.compare import HEADLINE_METRIC, Comparison, Entry, TaskComparison
from ssl_retrieval.report.coverage import coverage_notes
from ssl_retrieval.report.footnotes import LEGEND, mark_of, statistics_notes
from ssl_retrieval.report.markdown import escape, markdown_table
from ssl_retrieval.report.numbers import NOTHING, format_bounds, format_count, format_score, known

LEVEL_TITLES = {"instance": "instance-level", "category": "category-level"}
COST_TITLES = ("dim", "images/s", "bytes/image", "search ms", "peak MiB", "training s")
RERANK_TITLE = "re-rank ms"
_WIDE_METRICS = (HEADLINE_METRIC, "hit_rate@1", "ns_score")
_RERANK_KEY = "rerank_ms_per_query"
_TASKS_PER_TABLE = 3
_TASK_NAME_WIDTH = 15
_SHORT_TITLES = {"hit_rate@1": "hit@1", "ns_score": "NS"}


@dataclass(frozen=True, eq=False)
class Column:
    """One metric of one task in the wide table."""

    task: TaskComparison
    metric: str

    @property
    def level(self) -> str:
        """``instance-level`` or ``category-level``."""
        return LEVEL_TITLES.get(self.task.level, self.task.level)

    def is_best(self, entry: Entry | None) -> bool:
        """Whether the cell is marked: only the metric that was tested is."""
        return entry is not None and self.metric == HEADLINE_METRIC and entry.in_best_group

    def mark(self, entry: Entry | None) -> str:
        """What stands behind the cell's number: see `footnotes.LEGEND`."""
        return mark_of(entry) if entry is not None and self.metric == HEADLINE_METRIC else ""

    def value(self, entry: Entry | None) -> str:
        """The cell's number."""
        if entry is None or self.metric not in entry.metrics:
            return NOTHING
        return format_score(entry.metrics[self.metric].mean, self.metric)

    def bounds(self, entry: Entry | None) -> str:
        """The cell's interval; only the headline metric shows it."""
        if entry is None or self.metric != HEADLINE_METRIC:
            return ""
        return format_bounds(entry.metrics[self.metric], self.metric)


def columns(comparison: Comparison) -> list[Column]:
    """List the metric columns of the wide table, task by task."""
    return [
        Column(task, metric)
        for task in comparison.tasks
        for metric in _WIDE_METRICS
        if any(metric in entry.metrics for entry in task.entries)
    ]


def cost_titles(comparison: Comparison) -> tuple[str, ...]:
    """Name the columns of `costs`."""
    return (*COST_TITLES, RERANK_TITLE) if _is_reranked(comparison) else COST_TITLES


def costs(comparison: Comparison, name: str) -> list[str]:
    """Give what a representation costs.

    Returns:
        Its dimension, images per second, bytes per image, milliseconds of search per query, largest memory
        while embedding in MiB, and training seconds; where anything is re-ranked also the milliseconds of
        that per query. Speeds are the median over its tasks; the others are the largest.
    """
    entries = comparison.entries(name)

    def over_tasks(key: str) -> list[float]:
        values = (entry.report.costs.get(key) for entry in entries)
        return [value for value in values if value is not None and known(value)]

    reranks = over_tasks(_RERANK_KEY)
    speeds, searches = over_tasks("embed_images_per_s"), over_tasks("search_queries_per_s")
    return [
        format_count(max(int(entry.report.representation["dim"]) for entry in entries)),
        format_count(float(np.median(speeds)) if speeds else None),
        format_count(max(over_tasks("bytes_per_image"), default=None)),
        format_count(1000 / float(np.median(searches)) if searches else None),
        format_count(max(over_tasks("peak_rss_mib"), default=None)),
        format_count(max(over_tasks("train_s"), default=None)),
        *([format_count(float(np.median(reranks)) if reranks else None)] if _is_reranked(comparison) else []),
    ]


def _is_reranked(comparison: Comparison) -> bool:
    return any(_RERANK_KEY in entry.report.costs for task in comparison.tasks for entry in task.entries)


def to_rich(comparison: Comparison) -> Group:
    """Make the wide table for a terminal of 80 columns; the best group is green and starred.

    To fit, a task is one column, its metrics side by side and the interval of ``mAP`` below them, and
    every three tasks make a table of their own.
    """
    by_task = [(task, list(of_task)) for task, of_task in groupby(columns(comparison), _task_of)]
    parts = [by_task[i : i + _TASKS_PER_TABLE] for i in range(0, len(by_task), _TASKS_PER_TABLE)]
    notes = [
        *(f"{task.task}: {' '.join(statistics_notes(task))}" for task in comparison.tasks),
        *coverage_notes(comparison),
    ]
    below = [Text(note, style="dim") for note in (LEGEND, *notes)]
    below += [Text(note, style="bold yellow") for note in [*comparison.notes, *fitted_on_queries(comparison)]]
    return Group(*(_rich_table(comparison, part) for part in parts), *below)


def _rich_table(comparison: Comparison, by_task: list[tuple[TaskComparison, list[Column]]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    # Only names may fold; numbers must not, so that a narrow terminal takes from the first column.
    table.add_column("representation", overflow="fold", min_width=14)
    task_names = [wrap(task.task, _TASK_NAME_WIDTH) for task, _ in by_task]
    num_lines = max(len(lines) for lines in task_names)
    for (_, shown), lines in zip(by_task, task_names, strict=True):
        titles = _side_by_side([_SHORT_TITLES.get(column.metric, column.metric) for column in shown])
        padding = [""] * (num_lines - len(lines))
        table.add_column(Text("\n".join([shown[0].level, *lines, *padding, titles])), no_wrap=True)
    for titles in ("dim\nB/image", "img/s\ntrain s"):
        table.add_column(Text("\n" * num_lines + titles), justify="right", no_wrap=True)
    for name in comparison.representations:
        cells = [Text(name)]
        for task, shown in by_task:
            entry = task.entry(name)
            values = [column.value(entry) + column.mark(entry) for column in shown]
            cell = Text(_side_by_side(values))
            if shown[0].is_best(entry):
                cell.stylize("bold green", 0, len(values[0]))
            cells.append(cell.append(f"\n{shown[0].bounds(entry)}", style="dim"))
        dim, speed, size, _, _, training = costs(comparison, name)[: len(COST_TITLES)]
        table.add_row(*cells, f"{dim}\n{size}", f"{speed}\n{training}")
    return table


def _task_of(column: Column) -> TaskComparison:
    return column.task


def _side_by_side(texts: list[str]) -> str:
    first, *others = texts
    return " ".join([first.ljust(6), *(text.ljust(5) for text in others)]).rstrip()


def to_markdown(comparison: Comparison) -> str:
    """Write the wide table in Markdown; the best group is bold. Notes and protocols follow below it."""
    shown = columns(comparison)
    header = ["representation", "family"]
    header += [f"{column.task.task} ({column.level}) {column.metric}" for column in shown]
    rows = []
    for name in comparison.representations:
        row = [name, comparison.entries(name)[0].family]
        for column in shown:
            entry = column.task.entry(name)
            value = column.value(entry)
            if column.is_best(entry):
                value = f"**{value}**{column.mark(entry).replace('*', '★')}"
            bounds = column.bounds(entry)
            row.append(f"{value} [{bounds}]" if bounds else value)
        rows.append(row + costs(comparison, name))
    text = markdown_table([[*header, *cost_titles(comparison)], *rows], num_texts=2)
    below = [f"{LEGEND.replace('*', '★')}. In brackets: 95 % interval."]
    notes = [
        *comparison.notes,
        *fitted_on_queries(comparison),
        *coverage_notes(comparison),
        *fitted_notes(comparison),
    ]
    below += [escape(note) for note in notes]
    below += [
        f"- {escape(task.task)}: {task.best.score.num_queries} queries, protocol "
        f"`{task.protocol['hash']}`. {escape(' '.join([task.description, *statistics_notes(task)]).strip())}"
        for task in comparison.tasks
    ]
    return f"{text}\n\n" + "\n".join(f"{line}\n" if line[0] != "-" else line for line in below) + "\n"


def fitted_notes(comparison: Comparison) -> list[str]:
    """Say of everything that was fitted where, and what was done because images were few."""
    names_of: dict[tuple[str, str], list[str]] = {}
    for task in comparison.tasks:
        for entry in task.entries:
            for text in _fitted_texts(entry):
                names_of.setdefault((text, task.task), []).append(entry.name)
    tasks_of: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (text, task_name), names in names_of.items():
        tasks_of.setdefault((text, tuple(names)), []).append(task_name)
    # The same names again are not repeated: a ladder has dozens of them.
    named: dict[tuple[str, ...], str] = {}
    notes = []
    for (text, together), task_names in tasks_of.items():
        who = named.get(together, "; ".join(together))
        others = f"{together[0]} and the {len(together) - 1} named with it"
        named.setdefault(together, others if len(together) > 2 else who)
        notes.append(f"{who}: {text} ({', '.join(task_names)}).")
    return notes


def fitted_on_queries(comparison: Comparison) -> list[str]:
    """Name, task by task, what was fitted on queries, which flatters it."""
    notes = []
    for task in comparison.tasks:
        names = [entry.name for entry in task.entries if _fitted(entry).get("num_in_queries")]
        if names:
            notes.append(f"Fitted on queries of {task.task}, which flatters: {'; '.join(names)}.")
    return notes


def _fitted(entry: Entry) -> Mapping[str, Any]:
    return entry.report.representation.get("fitted") or {}


def _fitted_texts(entry: Entry) -> list[str]:
    texts = [str(note) for note in entry.report.representation.get("notes") or []]
    fitted = _fitted(entry)
    if fitted:
        where = f"fitted on {format_count(fitted['num_images'])} images: {fitted['source']}"
        if fitted["num_in_gallery"]:
            where += f"; {format_count(fitted['num_in_gallery'])} of them are in the gallery too"
        if fitted["num_in_queries"]:
            where += f"; {format_count(fitted['num_in_queries'])} OF THEM ARE QUERIES"
        texts.append(where)
    missing = entry.report.info.get("num_images_without_features")
    if missing:
        texts.append(f"{format_count(missing)} images have no features and score 0 with everything")
    return texts


def to_csv(comparison: Comparison) -> str:
    """Write `to_frame`."""
    return to_frame(comparison).to_csv(index=False)


def to_frame(comparison: Comparison) -> pd.DataFrame:
    """Give every number: one row per task, representation and metric.

    ``p_holm`` and ``in_best_group`` are filled for ``mAP``, the metric that is tested.
    """
    rows = []
    for task in comparison.tasks:
        for entry in task.entries:
            for metric, interval in entry.metrics.items():
                tested = metric == HEADLINE_METRIC
                rows.append(
                    {
                        "task": task.task,
                        "level": task.level,
                        "representation": entry.name,
                        "family": entry.family,
                        "dim": entry.report.representation["dim"],
                        "metric": metric,
                        "mean": interval.mean,
                        "low": interval.low,
                        "high": interval.high,
                        "num_queries": interval.num_queries,
                        "best": task.best.name if tested else None,
                        "p_holm": entry.p_holm if tested else None,
                        "in_best_group": entry.in_best_group if tested else None,
                        "resampling": task.resampling,
                        "detectable": task.detectable if tested else None,
                        "num_seeds": len(entry.seeds),
                        "seed_deviation": entry.seed_deviation if tested else None,
                        "protocol": entry.report.protocol["hash"],
                        **entry.report.costs,
                    }
                )
    return pd.DataFrame(rows)
