"""Accuracy against bytes and against time, with the Pareto front marked."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssl_retrieval.atomic import atomic_path
from ssl_retrieval.index_audit import Audit
from ssl_retrieval.index_choice import front

_FRONT, _BEATEN, _LINE = "#d1495b", "#8a8f98", "#3f86c7"
_DPI = 150


def write_index_chart(audits: Sequence[Audit], gallery_size: int, title: str, file: Path) -> None:
    """Draw a PNG of two panels that share the accuracy.

    Args:
        audits: The indexes; exact search is the dashed line.
        gallery_size: Images that ``bytes_at`` is for.
        title: Its heading.
        file: Where it goes.
    """
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    on_front = front(audits)
    _panel(
        left,
        audits,
        on_front,
        [one.bytes_at / gallery_size for one in audits],
        f"bytes per image, of {gallery_size:,} images",
    )
    times = [one.latencies[0].median for one in audits]
    _panel(right, audits, on_front, times, "milliseconds per query (median, one thread)")
    first = audits[0]
    measure = "recall" if first.map_at_k is None else "mAP"
    left.set_ylabel(f"{measure}@{first.k}")
    legend = "red: on the Pareto front of accuracy, bytes and time; dashed: exact search"
    figure.suptitle(f"{title} ({legend})", parse_math=False, fontsize=11)
    with atomic_path(file) as partial:
        figure.savefig(partial, format="png", dpi=_DPI, metadata={"Software": None})


def _panel(axes: Axes, audits: Sequence[Audit], on_front: list[bool], costs: list[float], label: str) -> None:
    axes.axhline(audits[0].accuracy, color=_LINE, linestyle="--", linewidth=1, zorder=1)
    colours = [_FRONT if marked else _BEATEN for marked in on_front]
    axes.scatter(costs, [one.accuracy for one in audits], c=colours, s=46, zorder=5)
    # Names stand apart where points of about the same height would carry them on top of each other.
    order = sorted(range(len(audits)), key=lambda place: (audits[place].accuracy, costs[place]))
    spread = max(one.accuracy for one in audits) - min(one.accuracy for one in audits) or 1.0
    height = 0.045 * spread
    below = float("-inf")
    low, high = min(costs), max(costs)
    for place in order:
        one = audits[place]
        at = max(one.accuracy, below + height)
        below = at
        is_right = costs[place] > (low * high) ** 0.5
        axes.annotate(
            one.name,
            (costs[place], one.accuracy),
            xytext=(costs[place] * (0.9 if is_right else 1.12), at),
            ha="right" if is_right else "left",
            va="center",
            fontsize=8,
            parse_math=False,
            zorder=4,
            bbox={"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none"},
            arrowprops={"arrowstyle": "-", "color": _BEATEN, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3},
        ).set_in_layout(False)
    lowest = min(one.accuracy for one in audits)
    axes.set_ylim(lowest - height, max(axes.get_ylim()[1], below + height))
    axes.set_xscale("log")
    axes.set_xlim(low / 1.6, high * 1.6)
    axes.set_xlabel(label)
    axes.grid(alpha=0.2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
