"""The table of a study's trainings: what is read is what was written, and that in docs bears out the rule."""

import dataclasses
import math
from pathlib import Path

import pytest
from made_up_probes import evidence, probe

from ssl_retrieval.adaptation import evidence_table
from ssl_retrieval.adaptation.cells import Cell
from ssl_retrieval.adaptation.rule import SIMILAR, STEADINESS
from ssl_retrieval.adaptation.rule_fit import KnownRun, choice, fit, limits_of_others

STUDY = Path(__file__).parent.parent / "docs" / "adaptation_evidence.csv"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    start = probe(groups=0.8, alteration=1.2)
    found = evidence(start, probe(groups=1.2, alteration=1.2))
    cell = Cell("a", "net", "simclr", jitter=True, anchor=0.5, seed=2)
    runs = [
        KnownRun(cell, found, True, 0.1, False),
        KnownRun(cell.with_seed(3), None, False, math.nan, True),
    ]
    evidence_table.write(runs, tmp_path / "table.csv")
    one, broken = evidence_table.read(tmp_path / "table.csv")
    assert (one.cell, one.keeps_colours, one.delta, one.is_worse) == (cell, True, 0.1, False)
    assert one.evidence is not None
    assert one.evidence.steadiness == pytest.approx(found.steadiness, rel=1e-5)
    for name in ("agreement", "clusters", "together", "copies"):
        ours, theirs = getattr(one.evidence, name), getattr(found, name)
        assert dataclasses.astuple(ours) == pytest.approx(dataclasses.astuple(theirs), rel=1e-5, nan_ok=True)
    assert (broken.cell, broken.evidence, broken.is_worse) == (cell.with_seed(3), None, True)
    assert math.isnan(broken.delta)


def test_the_constant_is_that_of_the_study_in_the_docs() -> None:
    runs = evidence_table.read(STUDY)
    assert len({run.cell.set for run in runs}) == 4
    assert fit(runs) == pytest.approx(STEADINESS, abs=0.006)


def test_on_sets_that_it_was_not_fitted_on_the_rule_takes_nothing_that_is_clearly_worse() -> None:
    runs = evidence_table.read(STUDY)
    limits = limits_of_others(runs)
    groups: dict[tuple[Cell, str, int], list[KnownRun]] = {}
    for run in runs:
        groups.setdefault((run.cell.of_start, run.cell.method, run.cell.seed), []).append(run)
    taken = 0
    for group in groups.values():
        cell = choice(group, SIMILAR, limits[group[0].cell.set])
        taken += cell is not None
        assert not any(run.is_worse for run in group if run.cell == cell), cell
    assert taken > len(groups) / 2
