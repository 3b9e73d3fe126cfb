"""The document of a study: its tables agree with the cells, and a study in its beginnings has one too."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from small_study import settings, start
from tool_scripts import load_tool

from ssl_retrieval.adaptation import cell_files, evidence_table
from ssl_retrieval.adaptation.cell_files import read_all
from ssl_retrieval.adaptation.cells import Cell
from ssl_retrieval.adaptation.rule import STEADINESS
from ssl_retrieval.adaptation.rule_fit import known_runs
from ssl_retrieval.adaptation.study import study
from ssl_retrieval.adaptation.study_table import effect_of

__all__ = ["start"]


@pytest.fixture(scope="module")
def tool() -> Any:
    return load_tool("adaptation_study")


def test_document_and_figures(tool: Any, start: Path, tmp_path: Path) -> None:
    tool.RESAMPLES = 10
    out, docs = tmp_path / "study", tmp_path / "docs"
    docs.mkdir()
    cfg = settings(out, start, jitter=[False, True], anchors=[0, 3], seeds=[0])
    assert study(cfg).finished == 5
    tool.write(out, docs)
    text = (docs / "adaptation_results.md").read_text()
    for figure in ("adaptation_grid.png", "adaptation_signals.png"):
        assert f"({figure})" in text
        assert (docs / figure).read_bytes().startswith(b"\x89PNG")
    header = next(line for line in text.splitlines() if line.startswith("| photos | task"))
    assert header.count("λ = 3") == header.count("free") == 2
    by_cell = {found.cell: found for found in read_all(out)}
    before = by_cell[Cell("emoji", "own")]
    effect = effect_of(before, [by_cell[Cell("emoji", "own", "simclr", anchor=3.0)]], "category")
    row = next(line for line in text.splitlines() if line.startswith("| emoji | category"))
    assert f"| {effect.start:.3f} |" in row
    column = header.split(" | ").index("λ = 3, no colour changes")
    found = row.split(" | ")[column].replace("*", "")
    assert (
        found
        == f"{effect.difference.mean:+.3f} [{effect.difference.low:+.3f}, {effect.difference.high:+.3f}]"
    )
    levels = re.findall(r"^### (.*)", text, re.MULTILINE)
    assert levels == ["The same object (instance-level)", "The same kind (category-level)"]
    assert "It takes two sets." in text

    for one in by_cell.values():
        cell = dataclasses.replace(one.cell, set="others")
        cell_files.write(out / "cells" / cell.name, cell, one.scores, one.probe(), one.info)
    tool.write(out, docs)
    text = (docs / "adaptation_results.md").read_text()
    assert "6 rows: " in text
    rows = re.findall(
        r"^\| (\w+) \| (\w+) \| own \| simclr \| (.*) \| (.*) \| (.*) \| (.*) \|$", text, re.MULTILINE
    )
    assert len(rows) == 6
    trained = [found for cell, found in by_cell.items() if not cell.is_start]
    for _, task, taken, change, verdict, best in rows:
        means = [effect_of(before, [found], task).difference.mean for found in trained]
        assert best.startswith(f"{max(means):+.3f} [")
        assert (taken, change, verdict) == ("the start", "±0", "–") or verdict in ("yes", "NO")
    assert "| always the start | +0.000 |" in text
    alone, won, of_all, won_of_all = (
        int(re.search(pattern, text)[1])  # type: ignore[index]
        for pattern in (
            r"In (\d+) rows the best",
            r"above; in (\d+) of them",
            r"clearly above in (\d+) rows",
            r"what is taken in (\d+) of them",
        )
    )
    assert alone == sum(float(best.split("[")[1].split(",")[0]) > 0 for *_, best in rows)
    assert won_of_all <= min(won, of_all) <= alone
    assert of_all <= alone

    runs = evidence_table.read(docs / "adaptation_evidence.csv")
    assert {run.cell for run in runs} == {found.cell for found in read_all(out) if not found.cell.is_start}
    assert runs[0].delta == pytest.approx(known_runs(read_all(out))[0].delta, abs=1e-5)

    tool.write(out, docs, is_held_out=True)
    text = (docs / "adaptation_held_out.md").read_text()
    assert "6 rows: " in text
    assert f"(least steadiness {STEADINESS:.2f})" in text
    assert "Leave one set out" not in text


def test_a_study_of_starts_alone_has_nothing_to_show(tool: Any, start: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    study(settings(out, start, seeds=[0]))
    (trained,) = out.glob("cells/*simclr*")
    trained.rename(tmp_path / "elsewhere")
    with pytest.raises(SystemExit, match="no training is finished"):
        tool.write(out, tmp_path)
