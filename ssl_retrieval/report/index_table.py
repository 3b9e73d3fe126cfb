"""The audit of some indexes as a table: terminal, Markdown, CSV."""

from collections.abc import Sequence

import pandas as pd
from rich import box
from rich.table import Table

from ssl_retrieval.index_audit import Audit
from ssl_retrieval.index_choice import front
from ssl_retrieval.report.markdown import markdown_table
from ssl_retrieval.report.numbers import NOTHING, format_count, format_score

MARK = "★"
LEGEND = (
    f"{MARK} no other is at least as good in accuracy, bytes and time together and better in one of them."
)
_MIB = 2**20


def titles(audits: Sequence[Audit]) -> list[str]:
    """Name the columns of `cells`."""
    first = audits[0]
    named = [f"recall@{first.k}", f"mAP@{first.k}", "against exact [95 %]"]
    timed = [f"ms, {_in_words(latency.threads)} (p95)" for latency in first.latencies]
    return ["index", *named, "bytes/image", "MiB", *timed, "build s", "build peak MiB"]


def cells(audits: Sequence[Audit]) -> list[list[str]]:
    """Write the rows; those on the Pareto front carry a star."""
    rows = []
    for one, on_front in zip(audits, front(audits), strict=True):
        loss = NOTHING
        if one.difference is not None and one.map_at_k is not None:
            loss = f"{one.difference.mean:+.3f} [{one.difference.low:+.3f}, {one.difference.high:+.3f}]"
        rows.append(
            [
                f"{one.name} {MARK}" if on_front else one.name,
                format_score(one.recall.mean, "recall"),
                format_score(None if one.map_at_k is None else one.map_at_k.mean, "mAP"),
                loss,
                format_count(one.bytes_per_image),
                format_count(one.bytes_at / _MIB),
                *(f"{format_count(it.median)} ({format_count(it.p95)})" for it in one.latencies),
                format_count(one.build_s),
                format_count(one.peak_mib),
            ]
        )
    return rows


def to_rich(audits: Sequence[Audit]) -> Table:
    """Make the table for a terminal: the columns that decide."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    shown = [place for place, title in enumerate(titles(audits)) if "build" not in title]
    for place in shown:
        table.add_column(titles(audits)[place], justify="right" if place else "left", overflow="fold")
    for row in cells(audits):
        table.add_row(*(row[place] for place in shown))
    return table


def to_markdown(audits: Sequence[Audit], below: Sequence[str]) -> str:
    """Write the table in Markdown.

    Args:
        audits: The rows.
        below: Lines of plain text that follow.
    """
    return f"{markdown_table([titles(audits), *cells(audits)])}\n\n" + "\n\n".join(below) + "\n"


def to_csv(audits: Sequence[Audit]) -> str:
    """Write `audit_frame`."""
    return audit_frame(audits).to_csv(index=False)


def audit_frame(audits: Sequence[Audit]) -> pd.DataFrame:
    """Give every number, one row per index."""
    rows = []
    for one, on_front in zip(audits, front(audits), strict=True):
        row = {
            "index": one.name,
            "k": one.k,
            "num_images": one.num_images,
            "num_queries": one.recall.num_queries,
            "recall": one.recall.mean,
            "recall_low": one.recall.low,
            "recall_high": one.recall.high,
            "map_at_k": None if one.map_at_k is None else one.map_at_k.mean,
            "map_difference": None if one.difference is None else one.difference.mean,
            "map_difference_low": None if one.difference is None else one.difference.low,
            "map_difference_high": None if one.difference is None else one.difference.high,
            "map_difference_p": None if one.difference is None else one.difference.p_value,
            "fixed_bytes": one.fixed_bytes,
            "bytes_per_image": one.bytes_per_image,
            "bytes_at_gallery_size": one.bytes_at,
            "build_s": one.build_s,
            "build_peak_mib": one.peak_mib,
            "on_front": on_front,
            "notes": "; ".join(one.notes),
        }
        for latency in one.latencies:
            row[f"ms_median_{latency.threads}_threads"] = latency.median
            row[f"ms_p95_{latency.threads}_threads"] = latency.p95
        rows.append(row)
    return pd.DataFrame(rows)


def _in_words(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
