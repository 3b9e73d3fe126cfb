"""Who is best, who shares its group, and which reports refuse to be compared."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ssl_retrieval.compare import compare
from ssl_retrieval.errors import UserError
from ssl_retrieval.resampling import StatisticsOptions
from ssl_retrieval.statistics import holm, paired_test
from ssl_retrieval.types import FloatArray, IntArray, Protocol, Report

NUM_QUERIES = 200
IDS = tuple(f"{i:03}.jpg" for i in range(NUM_QUERIES))


def make_report(
    name: str,
    values: FloatArray,
    task: str = "toys",
    family: str = "hand-crafted",
    query_ids: tuple[str, ...] = IDS,
    protocol: Protocol | None = None,
    groups: IntArray | None = None,
    **info: Any,
) -> Report:
    return Report(
        task=task,
        representation={"name": name, "family": family, "dim": 4, "key": name},
        protocol=(protocol or Protocol()).to_dict(),
        query_ids=query_ids,
        per_query={"mAP": np.asarray(values, np.float64)},
        query_groups=groups,
        info={"level": "instance"} | info,
    )


def noise(seed: int, spread: float) -> FloatArray:
    """Zero-mean noise, so that means are known exactly."""
    values = np.random.default_rng(seed).normal(0, spread, NUM_QUERIES)
    return values - values.mean()


@pytest.fixture
def known_answer() -> list[Report]:
    """``best`` 0.50; ``equal`` 0.499 with large differences per query; ``worse`` 0.40, ``worst`` 0.30."""
    hardness = noise(0, 0.1)
    return [
        make_report("worst", 0.30 + hardness + noise(1, 0.02)),
        make_report("equal", 0.499 + hardness + noise(2, 0.1), family="self-supervised"),
        make_report("best", 0.50 + hardness),
        make_report("worse", 0.40 + hardness + noise(3, 0.02)),
    ]


def test_best_group_holds_the_best_and_what_cannot_be_told_apart(known_answer: list[Report]) -> None:
    task = compare(known_answer).tasks[0]

    assert task.best.name == "best"
    assert [entry.name for entry in task.entries] == ["worst", "equal", "best", "worse"]
    assert [entry.name for entry in task.ranked] == ["best", "equal", "worse", "worst"]
    assert {entry.name for entry in task.entries if entry.in_best_group} == {"best", "equal"}
    assert task.best.behind_best is None
    worse = task.entry("worse")
    assert worse is not None
    assert worse.behind_best is not None
    assert worse.behind_best.mean == pytest.approx(0.1)
    assert worse.score.low < worse.score.mean < worse.score.high


def test_p_values_are_adjusted_within_the_task(known_answer: list[Report]) -> None:
    task = compare(known_answer).tasks[0]
    best = task.best.report.per_query["mAP"]
    others = [entry for entry in task.entries if entry is not task.best]

    raw = [paired_test(best, entry.report.per_query["mAP"], seed=0).p_value for entry in others]

    assert [entry.p_holm for entry in others] == holm(raw).tolist()
    assert others[1].p_holm is not None
    assert others[1].p_holm > 0.05


def test_adjustment_can_move_a_representation_into_the_best_group() -> None:
    def behind(p_seed: int) -> FloatArray:
        return 0.5 - 0.0155 + noise(p_seed, 0.1)

    pair = [make_report("best", np.full(NUM_QUERIES, 0.5)), make_report("a", behind(1))]
    many = pair + [make_report(f"b{i}", behind(i)) for i in range(2, 8)]

    alone, crowded = (compare(reports).tasks[0].entry("a") for reports in (pair, many))

    assert alone is not None
    assert crowded is not None
    assert not alone.in_best_group
    assert crowded.in_best_group


def test_duel_sets_the_best_self_supervised_against_the_best_other(known_answer: list[Report]) -> None:
    duel = compare(known_answer).tasks[0].duel

    assert duel is not None
    assert (duel.learned.name, duel.baseline.name) == ("equal", "best")
    assert duel.difference.mean == pytest.approx(-0.001)
    assert compare([known_answer[0], known_answer[3]]).tasks[0].duel is None


def test_instance_level_comes_first_and_gaps_are_allowed() -> None:
    values = noise(0, 0.1) + 0.5
    comparison = compare(
        [
            make_report("a", values, task="kinds", level="category"),
            make_report("a", values, task="toys"),
            make_report("b", values, task="toys"),
        ]
    )

    assert [task.task for task in comparison.tasks] == ["toys", "kinds"]
    assert comparison.representations == ("a", "b")
    assert comparison.tasks[1].entry("b") is None
    assert [entry.report.task for entry in comparison.entries("b")] == ["toys"]


def test_queries_are_matched_by_id_not_by_position() -> None:
    values = noise(0, 0.1) + 0.5
    shuffled = np.random.default_rng(0).permutation(NUM_QUERIES)
    other = make_report("b", values[shuffled] - 0.1, query_ids=tuple(IDS[i] for i in shuffled))

    entry = compare([make_report("a", values), other]).tasks[0].entry("b")

    assert entry is not None
    assert entry.report.query_ids == IDS
    np.testing.assert_array_equal(entry.report.per_query["mAP"], values - 0.1)


def test_different_protocols_are_refused_unless_forced() -> None:
    values = noise(0, 0.1) + 0.5
    reports = [
        make_report("a", values, protocol=Protocol(image_size=64)),
        make_report("b", values, protocol=Protocol(image_size=128)),
    ]

    with pytest.raises(UserError, match=r"'a' and 'b'.*image_size 64 and 128") as caught:
        compare(reports)
    assert "hash" not in str(caught.value)
    assert "\n" not in str(caught.value)

    (note,) = compare(reports, force=True).notes
    assert "image_size 64 and 128" in note
    assert "not strictly comparable" in note


def test_different_galleries_are_refused() -> None:
    values = noise(0, 0.1) + 0.5
    reports = [make_report("a", values, num_gallery=900), make_report("b", values, num_gallery=899)]

    with pytest.raises(UserError, match="num_gallery 900 and 899"):
        compare(reports)


def test_different_queries_are_refused_or_intersected() -> None:
    values = noise(0, 0.1) + 0.5
    reports = [make_report("a", values), make_report("b", values[5:] - 0.1, query_ids=IDS[5:])]

    with pytest.raises(UserError, match=r"'a' has 200, 'b' has 195; 195 shared"):
        compare(reports)

    comparison = compare(reports, force=True)
    assert "195 shared" in comparison.notes[0]
    for entry in comparison.tasks[0].entries:
        assert entry.report.query_ids == IDS[5:]
    assert comparison.tasks[0].best.score.mean == pytest.approx(values[5:].mean())


def test_nothing_shared_cannot_be_forced() -> None:
    reports = [
        make_report("a", np.ones(2), query_ids=("1.jpg", "2.jpg")),
        make_report("b", np.ones(2), query_ids=("3.jpg", "4.jpg")),
    ]

    with pytest.raises(UserError, match="nothing is left to compare"):
        compare(reports, force=True)


def test_hopeless_input_gives_one_clear_line() -> None:
    twice = [make_report("a", np.ones(NUM_QUERIES)), make_report("a", np.ones(NUM_QUERIES))]

    with pytest.raises(UserError, match="nothing to compare"):
        compare([])
    with pytest.raises(UserError, match="two reports of 'a' on task 'toys'"):
        compare(twice)
    with pytest.raises(UserError, match="no query has anything to find"):
        compare([make_report("a", np.full(NUM_QUERIES, np.nan))])


def test_classes_are_resampled_and_a_difference_of_few_classes_is_a_tie() -> None:
    """The gain lies in four of forty classes: with queries as evidence it is real, with classes it is not."""
    classes = np.repeat(np.arange(40), 5)
    gain = np.where(classes < 4, 0.2, 0.0) + noise(1, 0.01)
    reports = [
        make_report("a", 0.5 + gain, groups=classes, level="category"),
        make_report("b", np.full(NUM_QUERIES, 0.5), groups=classes, level="category"),
    ]

    by_class = compare(reports).tasks[0]
    by_query = compare(reports, options=StatisticsOptions(resample="queries")).tasks[0]

    assert by_class.resampling == "resample the 40 classes with all their queries"
    assert by_query.resampling == "resample the 200 queries"
    assert all(entry.in_best_group for entry in by_class.entries)
    assert not by_query.entries[1].in_best_group
    assert by_class.detectable > 1.5 * by_query.detectable
    widths = [task.best.score.high - task.best.score.low for task in (by_class, by_query)]
    assert widths[0] > 1.5 * widths[1]


def test_groups_follow_their_queries_and_are_borrowed_from_a_report_that_has_them() -> None:
    classes = np.repeat(np.arange(40), 5)
    order = np.random.default_rng(0).permutation(NUM_QUERIES)
    values = noise(0, 0.1) + 0.5
    known = make_report("a", values[order], query_ids=tuple(IDS[i] for i in order), groups=classes[order])
    old = make_report("b", values - 0.1 + noise(1, 0.1))

    borrowed = compare([old, known]).tasks[0]
    both = compare([replace(old, query_groups=classes), known]).tasks[0]

    assert "40 objects" in borrowed.resampling
    assert borrowed.entries[1].behind_best == both.entries[1].behind_best
    assert borrowed.entries[0].score == both.entries[0].score


def test_the_bootstrap_test_can_be_chosen(known_answer: list[Report]) -> None:
    chosen = compare(known_answer, options=StatisticsOptions(test="bootstrap")).tasks[0]
    best, worse = chosen.best, chosen.entry("worse")
    assert worse is not None
    assert worse.behind_best is not None
    pair = (best.report.per_query["mAP"], worse.report.per_query["mAP"])
    assert worse.behind_best.p_value == paired_test(*pair, seed=0, test="bootstrap").p_value
    with pytest.raises(UserError, match=r"statistics\.test='t'"):
        compare(known_answer, options=StatisticsOptions(test="t"))


def test_too_few_units_for_so_many_tests_are_said() -> None:
    """Six objects: the smallest p-value is 2 / 64, and two tests double it above 0.05."""
    objects = np.repeat(np.arange(6), 34)[:NUM_QUERIES]
    means = {"a": 0.9, "b": 0.2, "c": 0.1}
    reports = [make_report(name, np.full(NUM_QUERIES, m), groups=objects) for name, m in means.items()]

    forced = compare(reports, options=StatisticsOptions(resample="groups")).tasks[0]
    by_choice = compare(reports).tasks[0]

    assert "2 comparisons are too many for 6 resampled units" in forced.remarks[0]
    assert all(entry.in_best_group for entry in forced.entries)
    assert "6 objects, too few" in by_choice.remarks[0]
    assert not by_choice.entries[1].in_best_group


def test_nothing_to_compare_with_leaves_no_detectable_difference() -> None:
    assert np.isnan(compare([make_report("a", noise(0, 0.1) + 0.5)]).tasks[0].detectable)
