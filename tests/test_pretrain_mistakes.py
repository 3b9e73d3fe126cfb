"""Mistakes and mishaps around a training run: one clear line, exit status 2, nothing lost."""

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import ONE_THREAD, Command
from safetensors.torch import load_file

from ssl_retrieval import checkpoint, config, run_folder, train, train_step
from ssl_retrieval.errors import UserError

BASE: dict[str, Any] = {
    "data": {"name": "folder", "labels": "none"},
    "model": {"name": "test_resnet", "image_size": 32, "stem": "standard"},
    "method": {"name": "simclr", "output_dim": 16},
    "optimizer": {"name": "adamw", "lr": 0.002},
    "epochs": 2,
    "batch_size": 8,
    "precision": "fp32",
    "memory_format": "contiguous",
    "monitor": {"every_epochs": 0},
    "save_every_s": 0,
}


@pytest.fixture
def job(tmp_path: Path, photos: Path) -> Path:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(BASE | {"data": {**BASE["data"], "root": str(photos)}}))
    return file


def go(job: Path, out: Path, *overrides: str) -> Path:
    return train.pretrain(config.load(train.PretrainConfig, job, [f"out={out}", *overrides]))


def make_longer(out: Path) -> None:
    """Let a finished run of one epoch look like one that was stopped halfway through two."""
    stored = yaml.safe_load((out / "config.yaml").read_text()) | {"epochs": 2}
    (out / "config.yaml").write_text(yaml.safe_dump(stored))


VIT = ["model.name=test_vit", "model.stem=auto"]


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (["batch_size=41"], ["batch_size=41", "40 readable training images"]),
        (["batch_size=8", "accumulate=3"], ["batch_size=8", "accumulate=3"]),
        ([*VIT, "model.patch_size=16", "model.image_size=40"], ["model.image_size=40", "32 or 48"]),
        ([*VIT, "model.patch_size=64"], ["64", "patch"]),
        (["model.patch_size=8"], ["patch_size", "test_resnet"]),
        (["model.name=resnet10"], ["unknown backbone 'resnet10'", "did you mean", "resnet10t"]),
        (["model.name=vit_tiny_patch16", "model.stem=auto"], ["did you mean", "vit_tiny_patch16_224"]),
        (["method.name=moco"], ["moco", "moco_v2"]),
        (["method.name=byol", "method.export=both"], ["method.export='both'", "student"]),
        (["method.name=ibot"], ["method.name=ibot", "vit_small_patch16_224"]),
        (["method.name=mae"], ["method.name=mae", "vit_small_patch16_224"]),
        (["model.name=resnet18.a1_in1"], ["resnet18.a1_in1", "did you mean", "resnet18.a1_in1k"]),
        (["model.name=vgg11", "model.drop_path=0.1"], ["drop_path"]),
        (["optimizer.clip_mode=norm"], ["optimizer.clip_mode='norm'"]),
        (["monitor.every_steps=-1"], ["monitor.every_steps=-1"]),
        (["monitor.max_images=1"], ["monitor.max_images=1"]),
        (
            ["validation.name=folder", "validation.root=/nowhere", "monitor.every_epochs=1"],
            ["validation.root='/nowhere'"],
        ),
        (["validation.name=foldr"], ["foldr", "folder"]),
        (["model.weights=/nowhere/run"], ["/nowhere/run"]),
    ],
)
def test_a_mistake_is_one_line(
    cli: Command, job: Path, tmp_path: Path, overrides: list[str], names: list[str]
) -> None:
    # What comes before the line is said aloud; the mistake itself is the last line, and alone.
    outcome = cli("pretrain", job, f"out={tmp_path / 'run'}", *overrides)
    assert outcome.code == 2, outcome.err
    *before, last = outcome.err.splitlines()
    assert last.startswith("error: ")
    assert not any("error" in line or "Traceback" in line for line in before)
    for name in names:
        assert name in last
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()


def test_a_folder_of_another_run_is_left_as_it_was(job: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    go(job, out, "epochs=1", "monitor.every_epochs=1")
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}

    def refused(*overrides: str) -> str:
        with pytest.raises(UserError) as caught:
            go(job, out, "epochs=1", "monitor.every_epochs=1", *overrides)
        return str(caught.value)

    assert "method.name='simclr', now it is 'dcl'" in refused("method.name=dcl")
    assert "model.name='test_resnet'" in refused("model.name=test_efficientnet")
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    # A checkpoint alone is worth as much: its run's state may have been removed to save room.
    (out / "state.pt").rename(tmp_path / "state.pt")
    assert "optimizer.lr=0.002, now it is 0.1" in refused("optimizer.lr=0.1")
    (tmp_path / "state.pt").rename(out / "state.pt")
    (out / "config.yaml").rename(tmp_path / "config.yaml")
    assert "holds state.pt but not its config.yaml" in refused("method.name=dcl")
    (tmp_path / "config.yaml").rename(out / "config.yaml")
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


def test_a_state_of_another_method_or_backbone_is_refused(job: Path, tmp_path: Path) -> None:
    go(job, tmp_path / "one", "epochs=1")
    for number, (override, now) in enumerate(
        [("method.name=dcl", "dcl on test_resnet"), ("model.name=test_efficientnet", "simclr on test_effic")]
    ):
        other = tmp_path / f"other{number}"
        go(job, other, "epochs=1", override)
        (other / "state.pt").write_bytes((tmp_path / "one" / "state.pt").read_bytes())
        with pytest.raises(UserError) as caught:
            go(job, other, "epochs=1", override)
        assert "is of simclr on test_resnet, not of " + now in str(caught.value)


def test_two_processes_do_not_train_in_one_folder(job: Path, tmp_path: Path) -> None:
    with (
        run_folder.lock(tmp_path / "run"),
        pytest.raises(UserError, match="another process is training here"),
    ):
        go(job, tmp_path / "run")
    go(job, tmp_path / "run", "epochs=1")


def test_a_broken_line_in_a_log_stops_nothing(job: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    go(job, out, "epochs=1", "log_every=1")
    make_longer(out)
    log = out / "metrics.jsonl"
    log.write_text("no json\n{}\n" + log.read_text())
    go(job, out, "log_every=1")
    assert [yaml.safe_load(line)["step"] for line in log.read_text().splitlines()] == list(range(1, 11))


def test_what_was_timed_holds_for_the_same_job_alone(job: Path, tmp_path: Path) -> None:
    for override, kept in ((), True), (("optimizer.lr=0.01",), False):
        out = tmp_path / f"run{kept}"
        go(job, out, "epochs=1", "precision=auto")
        for name in ("state.pt", "checkpoint.safetensors"):
            (out / name).unlink()
        # As a run looks that was killed before it saved anything; written by hand to know it again.
        (out / "runtime.json").write_text('{"precision": "bf16", "memory_format": "contiguous"}')
        go(job, out, "epochs=1", "precision=auto" if kept else "precision=fp32", *override)
        assert ("bf16" in (out / "runtime.json").read_text()) == kept


def test_running_out_of_memory_names_the_way_out(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(train_step, "forward", run_out)
    with pytest.raises(UserError, match="with 8 images at a time: set accumulate=2"):
        go(job, tmp_path / "run")


@pytest.mark.parametrize("name", ["state.pt", "choices.json", "runtime.json"])
def test_a_damaged_file_of_the_run_is_named(job: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "run"
    go(job, out, "epochs=1")
    make_longer(out)
    (out / name).write_bytes(b"{half of")
    with pytest.raises(UserError, match=f"{name} is damaged: remove it"):
        go(job, out)


def test_a_full_disk_loses_nothing(job: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    go(job, out, "epochs=1")
    state = torch.load(out / "state.pt", weights_only=True)
    weights = load_file(out / "checkpoint.safetensors")
    make_longer(out)

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))

    done = subprocess.run(
        [sys.executable, "-m", "ssl_retrieval", "pretrain", str(job), f"out={out}"],
        env={**os.environ, **ONE_THREAD},
        preexec_fn=no_room,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: {out}: could not save")
    assert "make room" in last
    assert "Traceback" not in done.stderr
    kept = torch.load(out / "state.pt", weights_only=True)
    assert kept["step"] == state["step"] == 5
    torch.testing.assert_close(load_file(out / "checkpoint.safetensors"), weights, rtol=0, atol=0)
    assert not list(out.glob(".*.partial"))
    go(job, out)
    assert checkpoint.read_card(out / "checkpoint.safetensors").step == 10
