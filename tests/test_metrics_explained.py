"""What is said about one ranking: the golden numbers, and a reason for every difference."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import REPOSITORY, Command
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_retrieval.metrics_catalogue import catalogue
from ssl_retrieval.metrics_explained import OURS, PEERS, explain
from ssl_retrieval.metrics_one_ranking import OneRanking
from ssl_retrieval.report.files import read_report, write_report
from ssl_retrieval.types import Protocol, Report

GOLDEN = [1, 0, 1, 0, 0, 0, 0, 1, 0, 1]


def values(one: OneRanking, metric: str, k: int = 5) -> dict[str, float]:
    return {v.package: round(v.low, 4) for v in explain(one, k) if v.metric == metric}


def test_golden_fixture() -> None:
    one = OneRanking.make(GOLDEN)
    others = dict.fromkeys(("scikit-learn", "pytorch-metric-learning", "torchmetrics", "ranx"), 0.6104)
    assert values(one, "mAP") == {OURS: 0.6104, "revisitop": 0.5701, **others}
    assert values(one, "mAP@5") == {
        OURS: 0.4167,
        "pytorch-metric-learning": 0.4167,
        "open-metric-learning": 0.4167,
        "torchmetrics": 0.8333,
        "ranx": 0.4167,
    }
    assert values(one, "mAP@100") == {OURS: 0.6104, "GLDv2": 0.6104}
    assert values(one, "mAP@R") == {OURS: 0.4167, "pytorch-metric-learning": 0.4167}
    assert values(one, "precision@5") == {
        OURS: 0.4,
        "revisitop": 0.4,
        "UnED": 0.5,
        "open-metric-learning": 0.5,
        "torchmetrics": 0.4,
        "ranx": 0.4,
    }


def test_golden_fixture_with_items_that_were_never_found() -> None:
    one = OneRanking.make([1, 0, 1, 0], num_relevant=4)
    assert values(one, "mAP") == {
        OURS: 0.4167,
        "scikit-learn": 0.8333,
        "revisitop": 0.3958,
        "pytorch-metric-learning": 0.4167,
        "torchmetrics": 0.8333,
        "ranx": 0.4167,
    }


@settings(deadline=None, max_examples=200)
@given(
    items=st.lists(st.tuples(st.sampled_from([0, 1]), st.integers(-2, 3)), min_size=1, max_size=12),
    missing=st.integers(0, 4),
    k=st.integers(1, 15),
)
def test_every_difference_has_a_reason_and_only_a_difference_has(
    items: list[tuple[int, int]], missing: int, k: int
) -> None:
    hits, scores = [hit for hit, _ in items], [float(score) for _, score in items]
    one = OneRanking.make(hits, scores, sum(hits) + missing)
    ours = math.nan
    for verdict in explain(one, k):
        if verdict.package == OURS:
            ours = verdict.low
            continue
        assert verdict.low <= verdict.high or math.isnan(verdict.low)
        same = verdict.low == pytest.approx(ours, abs=1e-12) and verdict.high == pytest.approx(
            ours, abs=1e-12
        )
        assert bool(verdict.reasons) == (not same), verdict


def test_ties_give_a_range_where_the_order_is_left_open() -> None:
    one = OneRanking.make([0, 0, 1], [0.5, 0.5, 0.5])
    found = {v.package: (round(v.low, 4), v.high) for v in explain(one) if v.metric == "mAP"}
    assert found["ranx"] == found["torchmetrics"] == (0.3333, 1.0)
    assert found["scikit-learn"][1] == found[OURS][1] == pytest.approx(1 / 3)
    (ours,) = (v for v in explain(one) if v.call == "mAP")
    assert ours.reasons == ("equal scores in the order given; other orders give 0.3333 to 1.0000",)


def test_the_command_prints_numbers_and_reasons(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    done = cli("metrics", "explain", "--hits", "1,0,1,0", "--relevant", 4)
    assert done.code == 0
    assert "4 items, relevant ones at ranks 1, 3; R = 4 in all" in done.out
    for line in (
        r"revisitop .*compute_ap .*0.3958 .*trapezoids",
        r"scikit-learn .*average_precision_score .*0.8333 .*knows only the 2 relevant items .*, not all 4",
    ):
        assert any(re.match(line, row) for row in done.out.splitlines()), line
    tied = cli("metrics", "explain", "--hits", "0,1", "--scores=-0.5,-0.5", "--k", 1)
    assert "0.5000–1.0000" in tied.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--hits", "1,x"), "hits='1,x': give numbers with commas between them"),
        (("--hits", "1,2"), "hits=[1, 2]: give one 1 or 0 per item"),
        (("--hits", "1,1", "--relevant", "1"), "relevant=1, but 2 relevant items are among the hits"),
        (("--hits", "1,0", "--scores", "1"), "1 scores for 2 items"),
        (("--hits", "1,0", "--k", "0"), "k=0: must be at least 1"),
        ((), "hits='': give numbers with commas between them"),
    ],
)
def test_bad_input_is_one_line(cli: Command, options: tuple[str, ...], words: str) -> None:
    assert words in cli("metrics", "explain", *options).user_error()


@pytest.fixture
def report(tmp_path: Path) -> Path:
    found = Report(
        task="toys",
        representation={"name": "pixels", "family": "hand-crafted", "dim": 3, "key": "p"},
        protocol=Protocol().to_dict(),
        query_ids=("bear.png", "ball.png"),
        per_query={"mAP": np.array([0.6104, np.nan])},
        ranks=(np.flatnonzero(GOLDEN) + 1, np.empty(0, np.int64)),
    )
    write_report(found, tmp_path / "report.json")
    return tmp_path / "report.json"


def test_a_query_of_a_report_is_explained_as_its_hits_are(cli: Command, report: Path) -> None:
    of_hits = cli("metrics", "explain", "--hits", ",".join(map(str, GOLDEN)))
    of_report = cli("metrics", "explain", report, "--query", "bear.png")
    assert of_report.out == of_hits.out != ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ("--query", "bare.png"),
            "query 'bare.png' is not in the report: --query takes an id such as bear.png",
        ),
        (("--query", "ball.png"), "the query has nothing to find, so it has no value: choose another"),
        (("--query", "bear.png", "--hits", "1"), "give a report and --query, or --hits, not both"),
    ],
)
def test_bad_input_about_a_report_is_one_line(
    cli: Command, report: Path, options: tuple[str, ...], words: str
) -> None:
    assert cli("metrics", "explain", report, *options).user_error().startswith(words)


def test_a_report_without_ranks_says_so(cli: Command, report: Path) -> None:
    write_report(replace(read_report(report), ranks=()), report)
    line = cli("metrics", "explain", report, "--query", "bear.png").user_error()
    assert line == "the report keeps no ranks (it is old, or has too many): give --hits instead"


def test_the_command_lists_every_metric(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out = cli("metrics", "list").out
    for definition in catalogue():
        (row,) = (line for line in out.splitlines() if line.startswith(f"{definition.name} "))
        assert definition.divided_by in row
        assert definition.text in row


def test_the_documentation_shows_what_the_commands_print(
    cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (REPOSITORY / "docs" / "metrics.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\n\$ COLUMNS=120 ssl-retrieval (metrics explain .*)\n([^`]+)```$", text, re.M)
    assert len(blocks) == 2
    monkeypatch.setenv("COLUMNS", "120")
    for command, shown in blocks:
        printed = "\n".join(line.rstrip() for line in cli(*command.split()).out.splitlines())
        assert printed.startswith(shown.rstrip())


def test_every_library_is_there() -> None:
    assert {peer.package for peer in PEERS} == {
        *("scikit-learn", "revisitop", "GLDv2", "UnED"),
        *("pytorch-metric-learning", "open-metric-learning", "torchmetrics", "ranx"),
    }
