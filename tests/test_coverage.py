"""How many queries count, and what ties leave open, in words."""

import io
from pathlib import Path

import numpy as np
from rich.console import Console

from ssl_retrieval.compare import Comparison, compare
from ssl_retrieval.report.coverage import coverage_notes
from ssl_retrieval.report.page import write_page
from ssl_retrieval.report.table import to_markdown, to_rich
from ssl_retrieval.types import Protocol, Report


def comparison(num_without: int = 0, **ties: tuple[int, float, float]) -> Comparison:
    values = np.linspace(0.1, 0.9, 1200)
    values[:num_without] = np.nan
    return compare(
        [
            Report(
                task="toys",
                representation={"name": name, "family": "hand-crafted", "dim": 3, "key": name},
                protocol=Protocol().to_dict(),
                query_ids=tuple(map(str, range(len(values)))),
                per_query={"mAP": values},
                info={"num_queries_with_ties": count, "tie_band": {"mAP": [low, high]}} if count else {},
            )
            for name, (count, low, high) in ties.items()
        ]
    )


def test_full_coverage_without_ties() -> None:
    assert coverage_notes(comparison(pixels=(0, 0.5, 0.5))) == [
        "toys: all 1,200 queries have something to find. No relevant item ties with a wrong one."
    ]


def test_queries_without_positives_and_tied_ones_are_counted_everywhere(tmp_path: Path) -> None:
    found = comparison(7, bits=(1100, 0.31, 0.4567), pixels=(0, 0.5, 0.5), bytes=(2, 0.5, 0.501))
    note = (
        "toys: 1,193 of 1,200 queries have something to find; 7 have no value. bits (1,100 queries, mAP "
        "0.310–0.457), bytes (2 queries, mAP 0.500–0.501): relevant items tie with wrong ones."
    )
    assert coverage_notes(found) == [note]
    assert note in to_markdown(found)
    console = Console(width=1000, record=True, file=io.StringIO())
    console.print(to_rich(found))
    assert note in console.export_text()
    write_page(found, {}, tmp_path / "page.html", "Toys")
    assert f"<li>{note}</li>" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_ties_that_no_table_shows_are_only_counted() -> None:
    few = comparison(gist=(3, 0.5, 0.5001))
    assert coverage_notes(few)[0].endswith(" Ties of 1 representation move mAP by less than 0.0005.")
    several = comparison(bits=(9, 0.2, 0.3), gist=(3, 0.5, 0.5001), hog=(3, 0.5, 0.5001))
    assert coverage_notes(several)[0].endswith(
        " bits (9 queries, mAP 0.200–0.300): relevant items tie with wrong ones; ties of 2 other "
        "representations move mAP by less than 0.0005."
    )
