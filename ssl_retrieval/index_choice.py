"""Which of some audited indexes to take: the Pareto front, and the best that fits a memory budget."""

from collections.abc import Sequence

import numpy as np

from ssl_retrieval.index_audit import Audit
from ssl_retrieval.pareto import pareto_front

_DIGITS = 3
"""Accuracies that agree to so many digits are the same, and speed decides."""

_MIB = 2**20


def front(audits: Sequence[Audit]) -> list[bool]:
    """Mark the indexes that no other beats in accuracy, bytes and time (one thread, median) together.

    Accuracies are compared to three decimals, bytes and times to two significant digits: what differs by less
    is the same.
    """
    costs = [
        [-round(one.accuracy, _DIGITS), float(f"{one.bytes_at:.1e}"), float(f"{one.latencies[0].median:.1e}")]
        for one in audits
    ]
    return pareto_front(np.array(costs).reshape(-1, 3)).tolist()


def best_within(audits: Sequence[Audit], budget_bytes: float) -> Audit | None:
    """Choose the most accurate index that fits, of equally accurate ones the fastest.

    Args:
        audits: Of the same queries and gallery.
        budget_bytes: For ``bytes_at``, the gallery size that the audits were made for.

    Returns:
        One of them; None = none fits.
    """
    fitting = [one for one in audits if one.bytes_at <= budget_bytes]
    return min(
        fitting,
        key=lambda one: (-round(one.accuracy, _DIGITS), one.latencies[0].median, one.bytes_at),
        default=None,
    )


def recommendation(audits: Sequence[Audit], budget_bytes: float, num_images: int) -> str:
    """Say in one line what to take for a budget, and what it costs."""
    where = f"within {_mib(budget_bytes)} for {num_images:,} images"
    chosen = best_within(audits, budget_bytes)
    if chosen is None:
        least = min(audits, key=lambda one: one.bytes_at)
        return f"{where}: nothing fits; the smallest is {least.name} with {_mib(least.bytes_at)}"
    said = [f"recall@{chosen.k} {chosen.recall.mean:.3f}"]
    if chosen.difference is not None:
        loss = chosen.difference
        said.insert(0, f"mAP@{chosen.k} {loss.mean:+.3f} [{loss.low:+.3f}, {loss.high:+.3f}] against exact")
    measured = "" if num_images == chosen.num_images else f"; measured on {chosen.num_images:,} images"
    return (
        f"{where}: {chosen.name} ({_mib(chosen.bytes_at)}), {', '.join(said)}, "
        f"{chosen.latencies[0].median:.2g} ms per query{measured}"
    )


def _mib(num_bytes: float) -> str:
    mib = num_bytes / _MIB
    return f"{mib:,.0f} MiB" if mib >= 10 else f"{mib:.2g} MiB"
