"""All of a comparison in one picture: a row per representation, a panel per task."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ssl_retrieval.atomic import atomic_path
from ssl_retrieval.compare import HEADLINE_METRIC, Comparison, TaskComparison
from ssl_retrieval.report.chart import family_colours, high_end
from ssl_retrieval.report.numbers import format_score, known

_ROW_INCHES = 0.25
_PANEL_INCHES = 2.7
_LETTER_INCHES = 0.075


def draw_overview(comparison: Comparison) -> Figure:
    """Draw the ``mAP`` of every representation on every task with 95 % intervals.

    Rows are in the order of the comparison, coloured by family; a star marks the best of a task and what is
    not significantly different from it. A representation that is missing from a task leaves a gap there.

    Args:
        comparison: What to draw.
    """
    names = comparison.representations
    entries = [entry for task in comparison.tasks for entry in task.entries]
    colours = family_colours([entry.family for entry in entries])
    width = _PANEL_INCHES * len(comparison.tasks) + _LETTER_INCHES * max(map(len, names)) + 0.2
    height = _ROW_INCHES * len(names) + 1.5
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(1, len(comparison.tasks), sharey=True, squeeze=False)[0]
    for task, panel in zip(comparison.tasks, panels, strict=True):
        _draw_task(panel, task, names, colours)
    panels[0].set_yticks(range(len(names)), names, fontsize=8.5, parse_math=False)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    legend = [Patch(color=colour, label=family) for family, colour in colours.items()]
    figure.legend(handles=legend, loc="outside upper center", ncols=len(legend), fontsize=8.5, frameon=False)
    words = f"{HEADLINE_METRIC} with 95 % interval; ★ best, or not distinguishable from it"
    figure.supxlabel(words, fontsize=8.5)
    return figure


def save_overview(comparison: Comparison, file: Path) -> None:
    """Write `draw_overview` as a PNG."""
    figure = draw_overview(comparison)
    with atomic_path(file) as partial:
        figure.savefig(partial, format="png", dpi=130, facecolor="white")


def _draw_task(panel: Axes, task: TaskComparison, names: tuple[str, ...], colours: dict[str, str]) -> None:
    found = {row: entry for row, name in enumerate(names) if (entry := task.entry(name)) is not None}
    rows = np.array(list(found))
    means = np.array([entry.score.mean for entry in found.values()])
    high = np.array([high_end(entry) for entry in found.values()])
    panel.barh(rows, means, height=0.7, color=[colours[entry.family] for entry in found.values()], alpha=0.9)
    low = np.array([e.score.low if known(e.score.low) else e.score.mean for e in found.values()])
    panel.errorbar(means, rows, xerr=(means - low, high - means), fmt="none", ecolor="black", elinewidth=0.9)
    right = float(high.max()) * 1.32 or 1.0
    for row, entry in found.items():
        value = format_score(entry.score.mean, HEADLINE_METRIC) + (" ★" if entry.in_best_group else "")
        weight = "bold" if entry.in_best_group else "normal"
        panel.text(high_end(entry) + 0.015 * right, row, value, va="center", fontsize=7.5, weight=weight)
    panel.set_xlim(0, right)
    panel.set_title(f"{task.task}\n{task.level}-level", fontsize=8.5, parse_math=False)
    panel.tick_params(labelsize=8)
    panel.grid(axis="x", alpha=0.3)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
