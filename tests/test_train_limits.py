"""Runs that are given steps rather than epochs, or an hour at which to stop."""

import time
from pathlib import Path

import pytest
from short_runs import STEPS, go, rows, same, user_error, write_job, write_many_sizes

from ssl_retrieval import checkpoint, config, train


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return write_job(tmp_path, write_many_sizes(tmp_path / "photos"))


def test_as_many_steps_as_in_two_epochs_are_the_same_run(job: Path, tmp_path: Path) -> None:
    by_epochs = go(job, tmp_path / "epochs")
    by_steps = go(job, tmp_path / "steps", "epochs=null", f"steps={STEPS}")
    assert same(by_epochs, by_steps)


def test_a_run_may_end_within_an_epoch(job: Path, tmp_path: Path) -> None:
    go(job, tmp_path / "run", "epochs=null", "steps=6")
    assert checkpoint.read_card(tmp_path / "run" / "checkpoint.safetensors").step == 6
    written = rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in written] == [1, 2, 3, 4, 5, 6]
    assert written[-1]["lr"] < written[-2]["lr"], "the schedule ends with the steps"


def test_epochs_and_steps_are_not_both_given(job: Path, tmp_path: Path) -> None:
    assert "epochs=2 and steps=6" in user_error(job, tmp_path / "run", "steps=6")
    assert "steps=0" in user_error(job, tmp_path / "run", "epochs=null", "steps=0")


def test_a_run_that_is_late_stops_and_can_be_gone_on_with(job: Path, tmp_path: Path) -> None:
    out = tmp_path / "late"
    cfg = config.load(train.PretrainConfig, job, [f"out={out}"])
    file = train.pretrain(cfg, deadline=time.monotonic() - 1)
    assert checkpoint.read_card(file).step == 1
    assert same(go(job, out), go(job, tmp_path / "at once"))


def test_a_deadline_that_is_met_changes_nothing(job: Path, tmp_path: Path) -> None:
    cfg = config.load(train.PretrainConfig, job, [f"out={tmp_path / 'early'}"])
    train.pretrain(cfg, deadline=time.monotonic() + 1000)
    assert same(go(job, tmp_path / "early"), go(job, tmp_path / "none"))
