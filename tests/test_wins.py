"""Differences query by query."""

from dataclasses import replace

import numpy as np
import pytest

from ssl_retrieval.errors import UserError
from ssl_retrieval.types import Report
from ssl_retrieval.wins import differences


def report(name: str, values: dict[str, float], task: str = "photos") -> Report:
    return Report(
        task=task,
        representation={"name": name},
        protocol={"hash": "0"},
        query_ids=tuple(values),
        per_query={"mAP": np.array(list(values.values()))},
    )


ONE = report("one", {"a": 0.5, "b": 1.0, "c": 0.25, "d": np.nan})
OTHER = report("other", {"d": np.nan, "c": 0.75, "b": 0.25, "a": 0.5})


def test_queries_are_matched_by_name_and_sorted_by_difference() -> None:
    table = differences(ONE, OTHER, "mAP")
    assert table.to_numpy().tolist() == [
        ["b", 1.0, 0.25, 0.75],
        ["a", 0.5, 0.5, 0.0],
        ["c", 0.25, 0.75, -0.5],
    ]


@pytest.mark.parametrize(
    ("other", "metric", "complaint"),
    [
        (report("other", {"a": 0.5}, task="birds"), "mAP", "on two tasks, or under two protocols"),
        (replace(OTHER, protocol={"hash": "1"}), "mAP", "on two tasks, or under two protocols"),
        (report("other", {"a": 0.5}), "mAP", "scored on different queries"),
        (OTHER, "mrr", r"'one' has no metric 'mrr' per query \(it has mAP\)"),
    ],
)
def test_what_cannot_be_compared_is_refused(other: Report, metric: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        differences(ONE, other, metric)
