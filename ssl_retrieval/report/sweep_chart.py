"""The points of a sweep: how each searches, and what it costs."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ssl_retrieval.atomic import atomic_path
from ssl_retrieval.sweep_choice import MEASURE, Judged

_DPI = 150
_ROW_INCHES = 0.3
_COLOURS = {"": "#3f86c7", "whitened": "#d1495b", "half-whitened": "#e0a030", "PCA": "#2f9e7d"}
_QUIET, _CHOSEN = "#8a8f98", "#1d2125"
_SPREAD = {"": -0.2, "whitened": 0.0, "half-whitened": 0.2, "PCA": -0.2}


def write_sweep_chart(judged: Sequence[Judged], chosen: Judged, title: str, file: Path) -> None:
    """Draw a PNG: one line per place, resolution and dimension; beside it ``mAP`` against bytes.

    Args:
        judged: All points, the default one first.
        chosen: Which of them is recommended.
        title: Its heading.
        file: Where it goes.
    """
    rows = list(dict.fromkeys(_row(one) for one in judged))
    figure = Figure(figsize=(12, max(4.5, _ROW_INCHES * len(rows) + 2)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    _dots(left, judged, chosen, rows)
    _costs(right, judged, chosen)
    kinds = [kind for kind in _COLOURS if any(_kind(one) == kind for one in judged)]
    handles = [
        *(
            Line2D([], [], marker="o", linestyle="", color=_COLOURS[kind], label=kind or "as it is")
            for kind in kinds
        ),
        Line2D([], [], marker="o", linestyle="", mfc="none", mec=_CHOSEN, ms=11, label="recommended"),
        Line2D([], [], linestyle="--", color=_QUIET, label="default point"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    figure.suptitle(title, parse_math=False, fontsize=11)
    with atomic_path(file) as partial:
        figure.savefig(partial, format="png", dpi=_DPI, metadata={"Software": None})


def _kind(one: Judged) -> str:
    """Name the post-processing by which points are coloured."""
    words = one.tried.processing.partition(",")[0]
    return "PCA" if words.endswith("dim.") else words


def _row(one: Judged) -> str:
    point = one.tried
    if point.axis == "dimensions":
        return f"{point.dim} dimensions"
    return f"{point.place}, {point.image_size} px" if point.axis == "resolution" else point.place


def _dots(axes: Axes, judged: Sequence[Judged], chosen: Judged, rows: list[str]) -> None:
    for one in judged:
        height, colour = rows.index(_row(one)) + _SPREAD[_kind(one)], _COLOURS[_kind(one)]
        axes.plot([one.score.low, one.score.high], [height] * 2, color=colour, linewidth=1.2, alpha=0.7)
        axes.plot(one.score.mean, height, "o", color=colour, markersize=5)
        if one is chosen:
            axes.plot(one.score.mean, height, "o", mfc="none", mec=_CHOSEN, ms=11)
    axes.axvline(judged[0].score.mean, color=_QUIET, linestyle="--", linewidth=1, zorder=0)
    for before, after in pairwise(rows):
        if _axis(judged, before) != _axis(judged, after):
            axes.axhline(rows.index(after) - 0.5, color=_QUIET, linewidth=0.6)
    axes.set_yticks(range(len(rows)), rows, parse_math=False, fontsize=9)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f"{MEASURE} on the task to choose by, with 95 % intervals")
    _tidy(axes)


def _axis(judged: Sequence[Judged], row: str) -> str:
    return next(one.tried.axis for one in judged if _row(one) == row)


def _costs(axes: Axes, judged: Sequence[Judged], chosen: Judged) -> None:
    for one in judged:
        axes.plot(one.tried.bytes_per_image, one.score.mean, "o", color=_COLOURS[_kind(one)], markersize=6)
    axes.plot(chosen.tried.bytes_per_image, chosen.score.mean, "o", mfc="none", mec=_CHOSEN, ms=12)
    axes.axhline(judged[0].score.mean, color=_QUIET, linestyle="--", linewidth=1, zorder=0)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("bytes per image of the gallery")
    axes.set_ylabel(MEASURE)
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    axes.grid(alpha=0.2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
