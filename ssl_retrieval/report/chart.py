"""One bar chart per task, as inline SVG.

A chart is drawn narrow, with each name above its bar, so that on a phone it is still read at full size
and on a wide screen several stand side by side. Text stays text: it takes the page's font and colour,
light or dark.
"""

import io
import re
from html import escape
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from ssl_retrieval.compare import HEADLINE_METRIC, Entry, TaskComparison
from ssl_retrieval.report.footnotes import mark_of
from ssl_retrieval.report.numbers import format_bounds, format_score, known

_FAMILY_COLOURS = {
    "hand-crafted": "#8a8f98",
    "random": "#b59a3c",
    "off-the-shelf": "#3f86c7",
    "fine-tuned": "#7d63c4",
    "self-supervised": "#e0752f",
}
_OTHER_COLOURS = ("#2f9e7d", "#c2558f", "#6b7f2a", "#a0522d")
# Never seen: matplotlib has no name for "the page's text colour", so this one is swapped for it.
_INK = "#010203"
_WIDTH_INCHES = 4.6
_ROW_INCHES = 0.52


class Drawing(Figure):
    """A figure that notebooks show without being told how."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
        return buffer.getvalue()


def family_colours(families: list[str]) -> dict[str, str]:
    """Give each family its colour; unknown families get colours of their own, in order.

    >>> family_colours(["random", "fused"])
    {'random': '#b59a3c', 'fused': '#2f9e7d'}
    """
    unknown = [family for family in dict.fromkeys(families) if family not in _FAMILY_COLOURS]
    others = {f: _OTHER_COLOURS[i % len(_OTHER_COLOURS)] for i, f in enumerate(unknown)}
    return {f: _FAMILY_COLOURS.get(f) or others[f] for f in dict.fromkeys(families)}


def draw_chart(task: TaskComparison, colours: dict[str, str]) -> str:
    """Draw the ``mAP`` of every representation on one task, with 95 % intervals, best on top.

    Args:
        task: What to draw.
        colours: Family -> colour, from :func:`family_colours`.

    Returns:
        An ``<svg>`` element that needs nothing from outside; equal input gives equal text.
    """
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": task.task,
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": _INK,
        "axes.edgecolor": _INK,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
    }
    with matplotlib.rc_context(style):
        figure = draw_figure(task.ranked, colours)
        buffer = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    return _inline(buffer.getvalue(), _in_words(task))


def draw_figure(entries: list[Entry], colours: dict[str, str]) -> Drawing:
    """Draw the ``mAP`` of some representations with their intervals, the first one on top."""
    num_rows = len(entries)
    height = _ROW_INCHES * num_rows + 0.55
    figure = Drawing(figsize=(_WIDTH_INCHES, height))
    axes = figure.add_axes((0.02, 0.5 / height, 0.96, _ROW_INCHES * num_rows / height))
    # The value stands right of the interval: leave it room.
    right = max(high_end(entry) for entry in entries) * 1.22 or 1.0
    for row, entry in enumerate(entries):
        score = entry.score
        axes.barh(row, score.mean, height=0.42, color=colours[entry.family], zorder=2)
        if known(score.low):
            axes.plot([score.low, score.high], [row, row], color=_INK, linewidth=1.4, zorder=3)
            for end in (score.low, score.high):
                axes.plot([end, end], [row - 0.1, row + 0.1], color=_INK, linewidth=1.4, zorder=3)
        value = f"{format_score(score.mean, HEADLINE_METRIC)} {mark_of(entry)}".rstrip().replace("*", "★")
        place = high_end(entry) + right * 0.012
        axes.text(place, row, value, va="center", weight="bold" if entry.in_best_group else "normal")
        axes.text(0, row - 0.32, _shorten(entry.name), va="bottom", parse_math=False, fontsize=9.5)
    axes.set_xlim(0, right)
    axes.set_ylim(num_rows - 0.62, -0.88)
    axes.set_yticks([])
    axes.set_xlabel(HEADLINE_METRIC)
    axes.grid(axis="x", color=_INK, alpha=0.12, linewidth=0.8)
    axes.locator_params(axis="x", nbins=6)
    axes.tick_params(axis="x", length=0)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    return figure


def high_end(entry: Entry) -> float:
    """Give the upper end of the headline's interval, or the mean where there is none."""
    return entry.score.high if known(entry.score.high) else entry.score.mean


def _shorten(name: str, limit: int = 48) -> str:
    """Cut a name that would run out of the picture; the table has it in full."""
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def _inline(svg: str, alternative: str) -> str:
    """Make matplotlib's file an element of a page: no prolog, no clashing ids, the page's text colour."""
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    # Ids of mere groups repeat from chart to chart; those that are referred to carry a hash.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(alternative)}"', 1).strip()


def _in_words(task: TaskComparison) -> str:
    bars = (
        f"{entry.name} {format_score(entry.score.mean, HEADLINE_METRIC)}"
        f" ({format_bounds(entry.score, HEADLINE_METRIC) or 'no interval'})"
        for entry in task.ranked
    )
    return f"{HEADLINE_METRIC} on {task.task}, best first: " + "; ".join(bars)
