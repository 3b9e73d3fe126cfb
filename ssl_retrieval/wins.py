"""Where one representation beats another, query by query."""

import numpy as np
import pandas as pd

from ssl_retrieval.errors import UserError
from ssl_retrieval.types import Report


def differences(one: Report, other: Report, metric: str) -> pd.DataFrame:
    """Set two representations against each other on the queries of one task.

    Args:
        one: Report of the first.
        other: Report of the second on the same queries, under the same protocol.
        metric: Name of a metric that both have per query.

    Returns:
        One row per query that has a value, the largest win of the first at the top and its largest loss at
        the bottom: ``query``, ``first``, ``second``, ``difference``.

    Raises:
        UserError: Another task, protocol or other queries, or a metric that one lacks.
    """
    names = [str(report.representation["name"]) for report in (one, other)]
    if one.task != other.task or one.protocol != other.protocol:
        raise UserError(f"{names[0]!r} and {names[1]!r}: reports on two tasks, or under two protocols")
    if set(one.query_ids) != set(other.query_ids):
        raise UserError(f"{names[0]!r} and {names[1]!r} were scored on different queries: evaluate again")
    for name, report in zip(names, (one, other), strict=True):
        if metric not in report.per_query:
            known = ", ".join(report.per_query)
            raise UserError(
                f"{name!r} has no metric {metric!r} per query (it has {known}): add it to metrics"
            )
    row = {query: i for i, query in enumerate(other.query_ids)}
    first = one.per_query[metric]
    second = other.per_query[metric][[row[query] for query in one.query_ids]]
    table = pd.DataFrame(
        {"query": one.query_ids, "first": first, "second": second, "difference": first - second}
    )
    known_rows = table[~np.isnan(table["difference"])]
    return known_rows.sort_values("difference", ascending=False, ignore_index=True, kind="stable")
