"""Metrics as tables for a terminal: what they are, and what other libraries would say."""

from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ssl_retrieval.metrics_catalogue import Definition
from ssl_retrieval.metrics_explained import OURS, Verdict
from ssl_retrieval.metrics_one_ranking import OneRanking
from ssl_retrieval.report.numbers import NOTHING, known

_LEGEND = (
    "R: the query's relevant items. With _best or _worst behind it, a metric of ranks says what ties leave "
    "open, e.g. mAP_worst; with _macro, a metric per query counts every class alike. knn@20_t0.1 votes at "
    "another temperature."
)
_WHOLE = ("library", "metric", "value")


def catalogue_table(definitions: Sequence[Definition]) -> Group:
    """Make the table of `metrics_catalogue.catalogue`."""
    table = _table("metric", "divided by", "what it is")
    for definition in definitions:
        table.add_row(Text(definition.name), Text(definition.divided_by), Text(definition.text))
    return Group(table, Text(_LEGEND, style="dim"))


def explained_table(verdicts: Sequence[Verdict], one: OneRanking) -> Group:
    """Make the table of `metrics_explained.explain`; our own numbers head the groups.

    Args:
        verdicts: What it gave.
        one: The ranking that was scored.
    """
    hits = ", ".join(str(rank) for rank in one.ranks.ranks[0]) or "none"
    title = f"{len(one.hits)} items, relevant ones at ranks {hits}; R = {one.num_relevant} in all"
    table = _table("library", "what it is called", "value", "why it differs")
    for i, verdict in enumerate(verdicts):
        is_ours = verdict.package == OURS
        style = "bold" if is_ours else "" if verdict.reasons else "dim"
        if is_ours and i:
            table.add_section()
        table.add_row(
            Text(verdict.package),
            Text(verdict.call),
            _value(verdict),
            Text("; ".join(verdict.reasons)),
            style=style,
        )
    return Group(Text(title), table)


def _value(verdict: Verdict) -> Text:
    if not known(verdict.low):
        return Text(NOTHING)
    low, high = f"{verdict.low:.4f}", f"{verdict.high:.4f}"
    return Text(low if low == high else f"{low}–{high}")


def _table(*titles: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for title in titles[:-1]:
        table.add_column(title, overflow="fold", no_wrap=title in _WHOLE)
    table.add_column(titles[-1], overflow="fold", ratio=1)
    return table
