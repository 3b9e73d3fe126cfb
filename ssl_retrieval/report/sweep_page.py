"""What ``ssl-retrieval sweep`` leaves: tables, a picture, settings, and a page that needs no network."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ssl_retrieval.report.markdown import markdown_table
from ssl_retrieval.report.numbers import format_count, format_score
from ssl_retrieval.report.page import render, write_text
from ssl_retrieval.report.sweep_chart import write_sweep_chart
from ssl_retrieval.report.sweep_table import (
    CHOSEN,
    TIED,
    TITLES,
    cells,
    difference,
    to_csv,
)
from ssl_retrieval.sweep_choice import MEASURE, Judged


@dataclass(frozen=True, eq=False)
class SweepReport:
    """The points of a network, which of them is recommended, and how that one scores.

    Attributes:
        name: The task on which the choice is scored.
        chosen_by: The task by which was chosen.
        how: How the two differ, in words.
        judged: All points by ``chosen_by``, the default one first.
        chosen: The recommended one of them.
        best: The one with the highest ``mAP``.
        held_out: The default, the best and the recommended point on ``name``, without repeats.
        max_loss: See `sweep_choice.judge`.
        settings: The config of ``evaluate`` that takes the recommended point.
        notes: What was left out, and why.
        versions: Package versions.
    """

    name: str
    chosen_by: str
    how: str
    judged: Sequence[Judged]
    chosen: Judged
    best: Judged
    held_out: Sequence[Judged]
    max_loss: float
    settings: dict[str, Any]
    notes: Sequence[str] = ()
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def recommendation(self) -> str:
        """Say in one line what to export, and what it is worth."""
        point = self.chosen.tried
        kept = f"{point.dim} dimensions, {format_count(point.bytes_per_image)} bytes per image"
        scored = next(one for one in self.held_out if one.tried.label == point.label)
        default = self.judged[0].tried
        if point.label == default.label:
            return f"Recommended: the default point ({kept}): nothing cheaper is about as good as the best."
        gain = difference(scored.against_default)
        return (
            f"Recommended: {point.label} ({kept}): {MEASURE} {format_score(scored.score.mean, MEASURE)} on "
            f"{self.name}, {gain} against the default point of {format_count(default.bytes_per_image)} bytes."
        )

    @property
    def remarks(self) -> list[str]:
        """What must be said below the table."""
        best = "the best" if self.best is not self.chosen else "the best itself"
        return [
            f"{TIED} not told apart from the best ({self.best.tried.label}) by a paired test at 5 % and at "
            f"most {self.max_loss:g} {MEASURE} lower. {CHOSEN} of these the one with the fewest bytes, then "
            f"with the smallest input, then the fastest: here it is {_behind(self.chosen) or best}.",
            "Points were tried in rounds, one axis after the other: places with and without whitening, then "
            "resolutions at the best of them, then dimensions at the cheapest resolution that is about as "
            "good. Other combinations were not tried. The best of many points looks better than it is on the "
            "task by which it was chosen; the numbers of the other task do not.",
            "images/s: as measured while embedding, decoding included; points were not timed side by side.",
            *self.notes,
        ]


def _behind(chosen: Judged) -> str:
    found = chosen.behind_best
    return "" if found is None else f"{found.mean:.3f} [{found.low:+.3f}, {found.high:+.3f}] lower than that"


def write_sweep_report(report: SweepReport, out: Path) -> None:
    """Write ``table.md``, ``table.csv``, ``sweep.png``, ``recommended.yaml`` and ``report.html``."""
    title = f"Where to take the embedding: {report.name}"
    rows, held_out = cells(report.judged, report.chosen), cells(_unstarred(report.held_out))
    parts = [
        report.recommendation,
        report.how,
        f"Scored on {report.name}:",
        markdown_table([TITLES, *held_out]),
        f"All points, by {report.chosen_by}:",
        markdown_table([TITLES, *rows]),
        *report.remarks,
    ]
    write_text("\n\n".join(parts) + "\n", out / "table.md")
    write_text(to_csv(report.judged, report.held_out, report.chosen), out / "table.csv")
    settings = yaml.safe_dump(report.settings, sort_keys=False, allow_unicode=True)
    comment = "# ssl-retrieval evaluate recommended.yaml out=DIR\n"
    write_text(comment + settings, out / "recommended.yaml")
    picture = out / "sweep.png"
    write_sweep_chart(report.judged, report.chosen, f"By {report.chosen_by}", picture)
    render(
        "sweep.html",
        out / "report.html",
        title=title,
        report=report,
        titles=TITLES,
        rows=rows,
        held_out=held_out,
        settings=settings,
        picture="data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode(),
    )


def _unstarred(judged: Sequence[Judged]) -> list[Judged]:
    """Leave out the ties: on this task nothing is chosen."""
    return [Judged(one.tried, one.score, one.against_default, one.behind_best, False) for one in judged]
