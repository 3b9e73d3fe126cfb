"""The points of a sweep as a table: terminal, Markdown, CSV."""

from collections.abc import Sequence

import pandas as pd
from rich import box
from rich.table import Table

from ssl_retrieval.report.numbers import NOTHING, format_bounds, format_count, format_p, format_score
from ssl_retrieval.statistics import PairedDifference
from ssl_retrieval.sweep_choice import MEASURE, Judged

TIED, CHOSEN = "★", "→"
TITLES = [
    "point",
    "input px",
    "dim",
    f"{MEASURE} [95 %]",
    "against default [95 %]",
    "p",
    "bytes/image",
    "images/s",
]


def cells(judged: Sequence[Judged], chosen: Judged | None = None) -> list[list[str]]:
    """Write the rows; a star marks what is about as good as the best, an arrow what is recommended."""
    rows = []
    for one in judged:
        marks = [TIED] if one.is_tied else []
        marks += [CHOSEN] if one is chosen else []
        point = one.tried
        rows.append(
            [
                " ".join([point.label, *marks]),
                NOTHING if point.image_size is None else str(point.image_size),
                str(point.dim),
                f"{format_score(one.score.mean, MEASURE)} [{format_bounds(one.score, MEASURE)}]",
                difference(one.against_default),
                NOTHING if one.against_default is None else format_p(one.against_default.p_value)[2:],
                format_count(point.bytes_per_image),
                format_count(point.images_per_s),
            ]
        )
    return rows


def difference(found: PairedDifference | None) -> str:
    """Write a difference of ``mAP`` with its interval."""
    if found is None:
        return NOTHING
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def to_rich(judged: Sequence[Judged], chosen: Judged) -> Table:
    """Make the table for a terminal: the columns that decide."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    shown = [place for place, title in enumerate(TITLES) if title not in ("input px", "dim", "p")]
    for place in shown:
        table.add_column(TITLES[place].replace(" [95 %]", ""), justify="right" if place else "left")
    for row in cells(judged, chosen):
        table.add_row(*(row[place] for place in shown))
    return table


def to_csv(judged: Sequence[Judged], held_out: Sequence[Judged], chosen: Judged) -> str:
    """Write every number, one row per point and task; ``role`` says what the task was for."""
    rows = [_row(one, "choosing", chosen) for one in judged]
    rows += [_row(one, "scoring", chosen) for one in held_out]
    return pd.DataFrame(rows).to_csv(index=False)


def _row(one: Judged, role: str, chosen: Judged) -> dict[str, object]:
    point, against = one.tried, one.against_default
    return {
        "role": role,
        "task": point.report.task,
        "point": point.label,
        "axis": point.axis,
        "place": point.place,
        "processing": point.processing,
        "steps": " ".join(point.steps),
        "image_size": point.image_size,
        "dim": point.dim,
        "mAP": one.score.mean,
        "mAP_low": one.score.low,
        "mAP_high": one.score.high,
        "num_queries": one.score.num_queries,
        "difference": None if against is None else against.mean,
        "difference_low": None if against is None else against.low,
        "difference_high": None if against is None else against.high,
        "difference_p": None if against is None else against.p_value,
        "behind_best": 0.0 if one.behind_best is None else one.behind_best.mean,
        "behind_best_p": None if one.behind_best is None else one.behind_best.p_value,
        "tied_with_best": one.is_tied,
        "recommended": point.label == chosen.tried.label,
        "bytes_per_image": point.bytes_per_image,
        "images_per_s": point.images_per_s,
    }
