"""An analysis as people read it: one section per question, on one page."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from ssl_retrieval.report.gallery import GalleryQuery
from ssl_retrieval.report.page import render


@dataclass(frozen=True)
class Picture:
    """One image with words below it.

    Attributes:
        file: Where it is.
        caption: The words.
    """

    file: Path
    caption: str


@dataclass(frozen=True, eq=False)
class Section:
    """The answer to one question.

    Attributes:
        name: Short; files of the section begin with it.
        title: The question.
        text: Paragraphs of plain text.
        table: What the page shows of the numbers.
        chart: A PNG; empty = none.
        pictures: Headings and the images below each.
        queries: Queries with their results.
        files: Name of a CSV file -> what is written there.
    """

    name: str
    title: str
    text: Sequence[str]
    table: pd.DataFrame
    chart: bytes = b""
    pictures: Sequence[tuple[str, Sequence[Picture]]] = ()
    queries: Sequence[GalleryQuery] = ()
    files: dict[str, pd.DataFrame] = field(default_factory=dict)

    @property
    def chart_address(self) -> str:
        """The chart as a ``data:`` address."""
        return "data:image/png;base64," + base64.b64encode(self.chart).decode("ascii")


def write_analysis_page(file: Path, title: str, intro: Sequence[str], sections: Sequence[Section]) -> None:
    """Write the page.

    Args:
        file: Where it goes.
        title: Its heading.
        intro: Paragraphs before the sections.
        sections: In this order.
    """
    render("analysis.html", file, title=title, intro=intro, sections=sections)
