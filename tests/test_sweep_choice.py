"""Which point is recommended, against a loop over the rule in words."""

from typing import Any

import numpy as np
import pytest

from ssl_retrieval.resampling import StatisticsOptions
from ssl_retrieval.statistics import paired_test
from ssl_retrieval.sweep_choice import Judged, Tried, cheapest, judge
from ssl_retrieval.types import Report

NUM = 400
OPTIONS = StatisticsOptions()
BASE = np.random.default_rng(0).uniform(0.3, 0.7, NUM)


def point(label: str, values: Any, dim: int = 100, size: int | None = 128, speed: float = 10.0) -> Tried:
    report = Report(
        task="made-up",
        representation={"name": label, "family": "random", "dim": dim},
        protocol={},
        query_ids=tuple(map(str, range(NUM))),
        per_query={"mAP": np.asarray(values, np.float64)},
        costs={"bytes_per_image": 4.0 * dim, "embed_images_per_s": speed},
        info={"level": "instance"},
    )
    return Tried(label, "place", label, "", None, (), size, report)


def noisy(shift: float, seed: int) -> Any:
    return BASE + shift + np.random.default_rng(seed).normal(0, 0.05, NUM)


def chosen(points: list[Tried], max_loss: float = 0.01) -> str:
    return cheapest(judge(points, OPTIONS, max_loss)).tried.label


def test_the_cheapest_of_those_about_as_good_is_taken() -> None:
    best, alike, worse = (
        point("best", noisy(0.1, 1), dim=512),
        point("alike", noisy(0.1, 2), dim=64),
        point("worse", noisy(0.0, 3), dim=8),
    )
    assert chosen([worse, best, alike]) == "alike"


def test_a_difference_that_is_small_but_certain_is_no_tie() -> None:
    best, certain = point("best", BASE, dim=512), point("certain", BASE - 0.002, dim=64)
    judged = judge([best, certain], OPTIONS, 0.01)
    assert [one.is_tied for one in judged] == [True, False]


def test_a_difference_that_is_uncertain_but_large_is_no_tie() -> None:
    wild = BASE - 0.02 + np.random.default_rng(4).normal(0, 0.5, NUM)
    points = [point("best", BASE, dim=512), point("wild", wild - wild.mean() + BASE.mean() - 0.02, dim=8)]
    judged = judge(points, OPTIONS, 0.01)
    assert judged[1].behind_best is not None
    assert judged[1].behind_best.p_value > 0.05
    assert not judged[1].is_tied
    assert judge(points, OPTIONS, 0.05)[1].is_tied


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"dim": 32, "size": 224, "speed": 1.0}, {"dim": 64, "size": 96, "speed": 9.0}),
        ({"dim": 32, "size": 96, "speed": 1.0}, {"dim": 32, "size": 128, "speed": 9.0}),
        ({"dim": 32, "size": 96, "speed": 9.0}, {"dim": 32, "size": 96, "speed": 1.0}),
        ({"dim": 32, "size": 96, "speed": 1.0}, {"dim": 32, "size": 96, "speed": float("nan")}),
        ({"dim": 32, "size": None}, {"dim": 33, "size": None}),
    ],
)
def test_cost_is_bytes_then_pixels_then_time(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert chosen([point("one", BASE, **one), point("other", BASE, **other)]) == "one"
    assert chosen([point("other", BASE, **other), point("one", BASE, **one)]) == "one"


def test_at_equal_cost_the_better_is_taken() -> None:
    assert chosen([point("lower", noisy(0.0, 1)), point("higher", noisy(0.001, 1))], 1.0) == "higher"


def test_differences_are_those_of_the_paired_test() -> None:
    points = [
        point("default", noisy(0.0, 1)),
        point("second", noisy(0.05, 2)),
        point("third", noisy(0.02, 3)),
    ]
    judged: list[Judged] = judge(points, OPTIONS, 0.01)
    assert judged[0].against_default is None
    assert judged[1].behind_best is None
    for one in judged[1:]:
        values = one.tried.report.per_query["mAP"]
        assert one.against_default == paired_test(values, points[0].report.per_query["mAP"])
        assert one.score.mean == pytest.approx(values.mean())
    behind = judged[2].behind_best
    assert behind is not None
    assert behind.mean == pytest.approx(points[1].score - points[2].score)


def test_queries_without_anything_to_find_do_not_count() -> None:
    values = np.where(np.arange(NUM) % 2, np.nan, BASE)
    assert point("some", values).score == pytest.approx(np.nanmean(values))
