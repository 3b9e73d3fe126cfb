"""How numbers look, everywhere the same: terminal, Markdown, charts and pages."""

import math

from ssl_retrieval.statistics import Interval

NOTHING = "–"
_RANGE_FROM_0_TO_4 = "ns_score"


def known(value: float | None) -> bool:
    """Tell whether there is a number at all."""
    return value is not None and math.isfinite(value)


def format_score(value: float | None, metric: str) -> str:
    """Write a metric's value.

    >>> format_score(0.51249, "mAP"), format_score(3.1, "ns_score"), format_score(float("nan"), "mAP")
    ('0.512', '3.10', '–')
    """
    if value is None or not known(value):
        return NOTHING
    return f"{value:.2f}" if metric == _RANGE_FROM_0_TO_4 else f"{value:.3f}"


def format_bounds(interval: Interval, metric: str) -> str:
    """Write the two ends of an interval; empty when it has none.

    >>> format_bounds(Interval(0.5, 0.45, 0.55, 100), "mAP")
    '0.450–0.550'
    """
    if not known(interval.low):
        return ""
    return f"{format_score(interval.low, metric)}–{format_score(interval.high, metric)}"


def format_p(value: float | None) -> str:
    """Write a p-value so that it reads as an (in)equation.

    >>> format_p(0.0421), format_p(0.00001), format_p(1.0)
    ('p = 0.042', 'p < 0.001', 'p = 1.000')
    """
    if value is None or not known(value):
        return f"p {NOTHING}"
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def format_count(value: float | None) -> str:
    """Write a cost, with as many digits as mean something.

    >>> format_count(1234.56), format_count(0.1234), format_count(None), format_count(42)
    ('1,235', '0.12', '–', '42')
    """
    if value is None or not known(value):
        return NOTHING
    if value != 0 and abs(value) < 10 and value != round(value):
        return f"{value:.2g}"
    return f"{value:,.0f}"


def format_cell(value: object) -> str:
    """Write whatever stands in a cell of a table.

    >>> format_cell(1234), format_cell(0.51249), format_cell(float("nan")), format_cell("a"), format_cell(3.0)
    ('1,234', '0.512', '–', 'a', '3.000')
    """
    if isinstance(value, str | bool):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}" if isinstance(value, float) and known(value) else NOTHING
