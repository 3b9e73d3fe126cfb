"""Seeds of one method become one contender; what is no seed is refused."""

from dataclasses import replace

import numpy as np
import pytest

from ssl_retrieval.compare import compare
from ssl_retrieval.errors import UserError
from ssl_retrieval.report.footnotes import mark_of, statistics_notes
from ssl_retrieval.report.table import to_markdown
from ssl_retrieval.seed_groups import SEED_OF, check_seeds, contenders, method_of
from ssl_retrieval.types import FloatArray, Protocol, Report

NUM_QUERIES = 300
RNG = np.random.default_rng(0)
HARDNESS = RNG.normal(0, 0.1, NUM_QUERIES)


def make_report(name: str, values: FloatArray, method: str = "", family: str = "self-supervised") -> Report:
    representation = {"name": name, "family": family, "dim": 4, "key": name}
    return Report(
        task="toys",
        representation=representation | ({SEED_OF: method} if method else {}),
        protocol=Protocol().to_dict(),
        query_ids=tuple(f"{i}.jpg" for i in range(NUM_QUERIES)),
        per_query={"mAP": values, "hit_rate@1": (values > 0.5).astype(np.float64)},
        pooled={"uap": float(values.mean())},
        costs={"train_s": float(len(name)), "peak_rss_mib": None},
        info={"level": "instance"},
    )


def seed_of(method: str, number: int, luck: float) -> Report:
    noise = np.random.default_rng([ord(method[0]), number]).normal(0, 0.02, NUM_QUERIES)
    return make_report(f"{method} {number}", 0.5 + HARDNESS + luck + noise - noise.mean(), method)


@pytest.fixture
def twins() -> list[Report]:
    """Two methods that are the same but for their seeds, whose luck is .01 up or down."""
    return [seed_of("A", 0, 0.02), seed_of("B", 0, -0.01), seed_of("A", 1, 0.0), seed_of("B", 1, 0.01)]


def test_seeds_are_averaged_query_by_query(twins: list[Report]) -> None:
    a, b = contenders(twins)
    assert (a.name, b.name) == ("A", "B")
    assert [seed.representation["name"] for seed in a.seeds] == ["A 0", "A 1"]
    for metric in ("mAP", "hit_rate@1"):
        expected = (twins[0].per_query[metric] + twins[2].per_query[metric]) / 2
        np.testing.assert_allclose(a.report.per_query[metric], expected)
    assert a.report.pooled["uap"] == pytest.approx((twins[0].pooled["uap"] + twins[2].pooled["uap"]) / 2)
    assert a.report.costs == {"train_s": 3.0, "peak_rss_mib": None}


def test_what_differs_by_seed_only_is_a_tie_although_single_seeds_differ(twins: list[Report]) -> None:
    task = compare(twins).tasks[0]
    assert [mark_of(entry) for entry in task.ranked] == ["*", "≈"]
    assert [entry.name for entry in task.ranked] == ["A", "B"]

    alone = [replace(r, representation=r.representation | {SEED_OF: ""}) for r in twins]
    marks = [mark_of(entry) for entry in compare(alone).tasks[0].ranked]
    assert marks == ["*", "", "", ""]


def test_seed_spread_is_shown(twins: list[Report]) -> None:
    comparison = compare(twins)
    task = comparison.tasks[0]
    entry = task.entry("B")
    assert entry is not None
    mean = 0.5 + HARDNESS.mean()
    assert entry.seed_scores == pytest.approx((mean - 0.01, mean + 0.01))
    assert entry.seed_deviation == pytest.approx(np.sqrt(2) * 0.01)
    low, high = f"{mean - 0.01:.3f}", f"{mean + 0.01:.3f}"
    assert f"B: 2 seeds, mAP {low}, {high} (standard deviation 0.014)." in statistics_notes(task)
    assert "standard deviation 0.014" in to_markdown(comparison)
    # Two seeds leave one degree of freedom: far wider than the interval over queries of one seed.
    single = compare([twins[0]]).tasks[0].best.score
    assert entry.score.high - entry.score.low > 2 * (single.high - single.low)


def test_a_clearly_better_method_wins_with_its_seeds(twins: list[Report]) -> None:
    worse = make_report("pixels", 0.3 + HARDNESS, family="hand-crafted")
    third = [seed_of("A", 2, 0.01), seed_of("B", 2, 0.0)]
    task = compare([*twins, *third, worse]).tasks[0]
    assert [mark_of(entry) for entry in task.ranked] == ["*", "≈", ""]
    assert task.duel is not None
    assert task.duel.learned.name == "A"
    assert task.duel.difference.p_value < 0.05


def test_two_seeds_are_too_few_for_much(twins: list[Report]) -> None:
    """One degree of freedom: even a distance of twenty standard errors does not survive two tests."""
    task = compare([*twins, make_report("pixels", 0.3 + HARDNESS, family="hand-crafted")]).tasks[0]
    assert all(entry.in_best_group for entry in task.entries)
    assert "Two seeds say little about their spread: give three or more." in statistics_notes(task)


def test_a_lone_seed_goes_by_the_name_of_its_method(twins: list[Report]) -> None:
    (alone,) = contenders(twins[:1])
    assert alone.name == "A"
    assert len(alone.seeds) == 1
    assert compare(twins[:1]).representations == ("A",)


def test_what_is_no_seed_is_refused(twins: list[Report]) -> None:
    named_alike = make_report("A", 0.5 + HARDNESS)
    with pytest.raises(UserError, match="'A' is both a representation and what other reports are seeds of"):
        compare([*twins, named_alike])
    stranger = make_report("A 2", 0.5 + HARDNESS, "A", family="random")
    with pytest.raises(UserError, match=r"seeds of 'A' are of the families .* and 'random'"):
        compare([*twins, stranger])


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ({"a": ["b", "c"]}, "seeds.a: there is a representation of that name"),
        ({"x": ["a"]}, "seeds.x: give at least two"),
        ({"x": ["a", "z"]}, "seeds.x: no representation 'z'; known: a, b, c"),
        ({"x": ["a", "b"], "y": ["b", "c"]}, "seeds.y: 'b' is already a seed of 'x'"),
        ({"x": ["a", "a"]}, "seeds.x: 'a' is already a seed of 'x'"),
        ({"x/y": ["a", "b"]}, "representation 'x/y'"),
    ],
)
def test_wrong_sections_give_one_clear_line(seeds: dict[str, list[str]], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_seeds(seeds, ["a", "b", "c"])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_right_sections_name_the_method() -> None:
    seeds = {"x": ["a", "b"]}
    check_seeds(seeds, ["a", "b", "c"])
    assert [method_of(name, seeds) for name in "abc"] == ["x", "x", ""]
