"""What ``ssl-retrieval index`` leaves: tables, a picture and a page that opens without a network."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ssl_retrieval.index_audit import EXACT, Audit
from ssl_retrieval.report.index_chart import write_index_chart
from ssl_retrieval.report.index_table import LEGEND, cells, titles, to_csv, to_markdown
from ssl_retrieval.report.page import render, write_text


@dataclass(frozen=True, eq=False)
class IndexReport:
    """Audited indexes of one gallery.

    Attributes:
        name: Of what.
        audits: Exact search first.
        gallery_size: Images that ``bytes_at`` is for.
        exact_map: mAP of the full exact ranking; None without answers.
        recommendation: One line; None where no budget was given.
        versions: Package versions.
    """

    name: str
    audits: Sequence[Audit]
    gallery_size: int
    exact_map: float | None
    recommendation: str | None
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """What must be said below the table."""
        first = self.audits[0]
        assert first.name == EXACT
        said = [
            f"{self.name}: {first.num_images:,} images, {first.recall.num_queries:,} queries, one at a "
            f"time where milliseconds are given. MiB: for {self.gallery_size:,} images. {LEGEND}"
        ]
        if self.exact_map is not None:
            said.append(
                f"Against exact: mAP@{first.k} minus that of exact search cut at the same {first.k}, paired "
                f"by query. The full exact ranking has mAP {self.exact_map:.3f}."
            )
        if self.gallery_size != first.num_images:
            said.append(
                f"Accuracy and time were measured on {first.num_images:,} images; on {self.gallery_size:,} "
                "recall will be lower and time higher at the same settings."
            )
        said += [f"{one.name}: {note}." for one in self.audits for note in one.notes]
        if any("rescore=" in one.name for one in self.audits):
            said.append(
                "rescore reads the stored vectors of its candidates: they must stay on disk beside the index."
            )
        if self.recommendation is not None:
            said.append(f"Recommended {self.recommendation}.")
        return said


def write_index_report(report: IndexReport, out: Path) -> None:
    """Write ``table.md``, ``table.csv``, ``pareto.png`` and ``report.html``."""
    write_text(to_markdown(report.audits, report.notes), out / "table.md")
    write_text(to_csv(report.audits), out / "table.csv")
    picture = out / "pareto.png"
    write_index_chart(report.audits, report.gallery_size, report.name, picture)
    render(
        "index.html",
        out / "report.html",
        title=f"Approximate search: {report.name}",
        report=report,
        titles=titles(report.audits),
        rows=cells(report.audits),
        picture="data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode(),
    )
