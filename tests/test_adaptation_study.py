"""A tiny study from end to end: it resumes, does nothing twice, outlives a broken cell, and gives a table."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from command_line import Command
from small_study import NETWORK, settings, small, start

from ssl_retrieval.adaptation import cell_files, predictors, study
from ssl_retrieval.adaptation.cells import Cell, cells_of
from ssl_retrieval.adaptation.signals import signals, stability
from ssl_retrieval.adaptation.study_config import sets_of, starts_of
from ssl_retrieval.adaptation.study_images import limited, lowest
from ssl_retrieval.adaptation.study_table import collect, effects
from ssl_retrieval.data import emoji
from ssl_retrieval.locking import hold
from ssl_retrieval.resampling import choose
from ssl_retrieval.statistics import bootstrap_mean
from ssl_retrieval.train import pretrain

__all__ = ["start"]


def job(out: Path, start: Path, **changes: Any) -> Path:
    file = out.parent / f"{out.name}.yaml"
    file.write_text(yaml.safe_dump(small(out, start, **changes)))
    return file


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, start: Path) -> Path:
    """A study of a start and two seeds; read only."""
    out = tmp_path_factory.mktemp("studies") / "finished"
    progress = study.study(settings(out, start))
    assert (progress.finished, progress.total, progress.broken) == (3, 3, ())
    return out


def times(out: Path) -> dict[str, int]:
    return {file.parent.name: file.stat().st_mtime_ns for file in out.glob("cells/*/cell.json")}


def test_each_cell_leaves_scores_and_vectors_and_no_weights(finished: Path) -> None:
    cells = {found.cell.name: found for found in cell_files.read_all(finished)}
    trained = "emoji--own--simclr--no-jitter--anchor-0"
    assert set(cells) == {"emoji--own", f"{trained}--seed-0", f"{trained}--seed-1"}
    before, after = cells["emoji--own"], cells[f"{trained}--seed-0"]
    assert set(after.scores) == {"instance", "category", "copies"}
    for task, scores in after.scores.items():
        values = scores.per_query["mAP"]
        assert len(values) == len(scores.groups) <= 30
        assert np.isfinite(values).all()
        assert (values != before.scores[task].per_query["mAP"]).any(), "training changed nothing"
    assert len(np.unique(after.scores["copies"].groups)) <= 4, "copies of one photo are one group"
    assert after.probe().photos.shape == before.probe().photos.shape
    assert len(after.probe()) == 16
    assert (before.info["steps"], after.info["steps"]) == (0, 2)
    assert not list(finished.rglob("*.safetensors"))
    assert not list((finished / "working").iterdir())


def test_the_scores_are_those_of_evaluate(finished: Path, start: Path, tmp_path: Path, cli: Command) -> None:
    """With no image left out, the start scores what the product says it scores."""
    out = tmp_path / "whole"
    sets = small(out, start)["sets"]
    sets["emoji"] |= {"max_queries": 5000, "max_gallery": 5000, "tasks": {"instance": {"task": "instance"}}}
    study.study(settings(out, start, sets=sets, rounds=[{"seeds": [0]}], budget_minutes=1e-9))
    assert not times(out), "no time, no cell"
    worker = study.study(settings(out, start, sets=sets, rounds=[{"seeds": [0]}]))
    assert worker.finished == 2
    ours = next(f for f in cell_files.read_all(out) if f.cell.is_start).scores["instance"].per_query["mAP"]
    told = cli("evaluate", _evaluation(tmp_path, start), f"out={tmp_path / 'evaluated'}")
    assert told.code == 0, told.err
    report = json.loads((tmp_path / "evaluated" / "report.json").read_text())
    # Pillow's resize and torchvision's differ by rounding, and the network was given pixels of both.
    assert ours.mean() == pytest.approx(report["metrics"]["mAP"]["mean"], abs=0.01)


def _evaluation(folder: Path, start: Path) -> Path:
    file = folder / "evaluate.yaml"
    model = {"name": "checkpoint", "path": str(start)}
    file.write_text(yaml.safe_dump({"data": {"name": "emoji"}, "model": model}))
    return file


def test_the_same_command_does_nothing_twice_and_goes_on(finished: Path, start: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    first = settings(out, start, rounds=[{"seeds": [0]}])
    assert study.study(first).finished == 2
    before = times(out)
    assert study.study(settings(out, start)).finished == 3
    after = times(out)
    assert len(after) == 3
    assert before.items() <= after.items()
    theirs = {f.cell: f.scores["category"].per_query["mAP"].tolist() for f in cell_files.read_all(finished)}
    ours = {f.cell: f.scores["category"].per_query["mAP"].tolist() for f in cell_files.read_all(out)}
    assert ours == theirs, "the same cells in another folder score the same"


def test_a_broken_cell_is_reported_and_skipped(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"

    def fails(cfg: Any) -> Path:
        if cfg.seed == 0:
            raise RuntimeError("the loss is nan")
        return pretrain(cfg)

    monkeypatch.setattr(study, "pretrain", fails)
    name = "emoji--own--simclr--no-jitter--anchor-0--seed-0"
    progress = study.study(settings(out, start))
    assert (progress.finished, progress.total, progress.broken) == (2, 3, (name,))
    assert "failed: the loss is nan" in capsys.readouterr().err
    (note,) = (out / "broken").iterdir()
    assert "RuntimeError: the loss is nan" in note.read_text()
    assert len(collect(out)) == 3, "one seed on three tasks"
    monkeypatch.undo()
    assert study.study(settings(out, start)).broken == (name,), "not tried again unasked"
    assert study.study(settings(out, start, retry_broken=True)).finished == 3
    assert not list((out / "broken").iterdir())


def test_a_cell_that_another_process_is_at_is_left_to_it(start: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    cfg = settings(out, start, rounds=[{"seeds": [0]}])
    study.study(settings(out, start, rounds=[{"seeds": [0]}], budget_minutes=1e-9))
    worker = study._Worker(cfg, out, sets_of(cfg), starts_of(cfg))
    busy = Cell("emoji", "own")
    with hold(out / "locks" / worker.folder(busy).name, "busy"):
        assert study.study(cfg).finished == 1
        assert not worker.folder(busy).exists()
    assert study.study(cfg).finished == 2
    assert not list((out / "locks").glob("emoji*"))


def test_the_table_compares_each_cell_with_its_start(finished: Path) -> None:
    table = collect(finished)
    assert len(table) == 2 * 3
    stored = pd.read_parquet(finished / "table.parquet")
    pd.testing.assert_frame_equal(stored, table)
    assert len(pd.read_csv(finished / "table.csv")) == len(table)
    row = table[(table.task == "category") & (table.seed == 1)].iloc[0]
    cells = {found.cell: found for found in cell_files.read_all(finished)}
    before_cell, after_cell = Cell("emoji", "own"), Cell("emoji", "own", "simclr", seed=1)
    before, after = cells[before_cell].scores["category"], cells[after_cell].scores["category"]
    change = after.per_query["mAP"] - before.per_query["mAP"]
    groups = choose(before.groups, change, "category").groups
    interval = bootstrap_mean(change, groups=groups)
    assert row.delta_map == pytest.approx(change.mean())
    assert (row.low, row.high) == pytest.approx((interval.low, interval.high))
    assert row["map"] - before.per_query["mAP"].mean() == pytest.approx(row.delta_map)
    known = signals(cells[before_cell].probe(), cells[after_cell].probe())
    assert predictors.signal_names(predictors.read(finished / "table.parquet")) == [
        *known,
        "seed_stability",
    ]
    other = cells[Cell("emoji", "own", "simclr", seed=0)].probe()
    assert row["seed_stability"] == pytest.approx(stability(cells[after_cell].probe(), other))
    np.testing.assert_allclose([row[name] for name in known], list(known.values()))


def test_seeds_are_joined(finished: Path) -> None:
    found = {effect.task: effect for effect in effects(cell_files.read_all(finished))}
    assert {effect.num_seeds for effect in found.values()} == {2}
    table = collect(finished)
    mean = table[table.task == "instance"].delta_map.mean()
    assert found["instance"].difference.mean == pytest.approx(mean)


def test_two_cells_of_one_name_are_refused(start: Path, tmp_path: Path, cli: Command) -> None:
    out = tmp_path / "study"
    study.study(settings(out, start, rounds=[{"seeds": [0]}]))
    told = cli("study", job(out, start), "steps=3", "rounds=[{seeds: [0]}]")
    assert told.code == 2
    assert "are the same cell of different data or settings" in told.err


def test_the_order_is_that_of_the_rounds(start: Path, tmp_path: Path) -> None:
    cfg = settings(
        tmp_path,
        start,
        jitter=[False, True],
        anchors=[0, 3],
        rounds=[{"seeds": [1], "anchors": [3]}, {"seeds": [1]}],
    )
    cells = cells_of(cfg, ["a", "b"], ["own"])
    assert [cell.name.replace("--own", "") for cell in cells] == [
        "a",
        "a--simclr--no-jitter--anchor-3--seed-1",
        "b",
        "b--simclr--no-jitter--anchor-3--seed-1",
        "a--simclr--jitter--anchor-3--seed-1",
        "b--simclr--jitter--anchor-3--seed-1",
        "a--simclr--no-jitter--anchor-0--seed-1",
        "b--simclr--no-jitter--anchor-0--seed-1",
        "a--simclr--jitter--anchor-0--seed-1",
        "b--simclr--jitter--anchor-0--seed-1",
    ]


def test_tasks_that_share_images_keep_the_same_ones() -> None:
    task = emoji.load(emoji.Config(task="category"))
    small_task = limited(task, 20, 60)
    assert (len(small_task.queries), len(small_task.gallery)) == (20, 60)
    assert min(map(len, small_task.relevant)) > 0
    elsewhere = lowest(tuple(f"elsewhere/{path}" for path in task.queries.paths), 20)
    assert {f"elsewhere/{path}" for path in small_task.queries.paths} == elsewhere
    likeliest = lowest(task.gallery.paths, 40)
    assert likeliest <= set(small_task.gallery.paths), "answers for 20 leave room for 40 others"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"sets": {}}, "sets is empty: give at least one"),
        ({"sets": {"a/b": {}}}, "'a/b': names of sets and starts name folders"),
        ({"sets": {"a": 3}}, "'sets.a' must be a section of keys"),
        ({"sets": {"a": {"photo": {}}}}, "unknown key 'sets.a.photo'; did you mean 'sets.a.photos'?"),
        ({"sets": {"a": {"photos": {"name": "emoji"}}}}, "sets.a: give photos and at least one task"),
        ({"sets": {"a": {"needs": ["b"]}}}, "sets.a.needs: 'b' is not among roots: none"),
        (
            {"sets": {"a": {"needs": ["b"]}}, "roots": {"b": ""}},
            "no set of photos is left: give the folders, as roots.NAME=DIR",
        ),
        (
            {"starts": {"a": {"name": NETWORK, "needs": ["b"]}}, "roots": {"b": ""}},
            "no start is left: give the files, as roots.NAME=FILE",
        ),
        ({"anchors": [-1]}, "anchors=[-1.0]: weights are 0 or more"),
        ({"steps": 0}, "steps=0: must be at least 1"),
        ({"budget_minutes": -1}, "budget_minutes=-1.0: must be 0"),
        ({"rounds": [{"seeds": [7]}]}, "rounds[0].seeds: 7 is not among seeds of the study: 0, 1"),
        ({"precision": "int8"}, "precision='int8'"),
        ({"starts": {"a": {"name": "no_such_network"}}}, "unknown backbone 'no_such_network'"),
        ({"methods": ["simcler"]}, "unknown method 'simcler'; did you mean"),
        ({"methods": ["arcface"]}, "methods: 'arcface' learns from labels, and the photos have none"),
    ],
)
def test_mistakes_are_one_clear_line(
    changes: dict[str, Any], line: str, start: Path, tmp_path: Path, cli: Command
) -> None:
    told = cli("study", job(tmp_path / "study", start, **changes))
    assert told.code == 2
    assert told.err.splitlines()[-1].startswith(f"error: {line}")
    assert not (tmp_path / "study").exists(), "before anything is decoded"
