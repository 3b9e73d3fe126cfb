"""Runs that are watched, whose settings were left open, or that compute in another way."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from made_up_photos import write_photos
from safetensors.torch import load_file

from ssl_retrieval import checkpoint, config, defaults, monitor, train
from ssl_retrieval.run_log import RunLog


class KilledError(Exception):
    """Stands for the end of the process."""


BASE: dict[str, Any] = {
    "data": {"name": "folder", "labels": "none"},
    "model": {"name": "test_resnet", "image_size": 32, "stem": "standard"},
    "method": {"name": "byol"},
    "optimizer": {"name": "adamw", "lr": 0.002, "weight_decay": 1e-4},
    "epochs": 3,
    "batch_size": 8,
    "precision": "fp32",
    "memory_format": "contiguous",
    "log_every": 1,
    "monitor": {"every_epochs": 1, "max_images": 40},
}


@pytest.fixture
def job(tmp_path: Path, photos: Path) -> Path:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(BASE | {"data": {**BASE["data"], "root": str(photos)}}))
    return file


def go(job: Path, out: Path, *overrides: str) -> Path:
    return train.pretrain(config.load(train.PretrainConfig, job, [f"out={out}", *overrides]))


def passes(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "monitor.jsonl").read_text().splitlines()]


def test_the_best_and_the_last_weights_are_kept(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    go(job, out)
    seen = passes(out)
    assert [row["step"] for row in seen] == [0, 5, 10, 15]
    best = max(seen, key=lambda row: row["self_mAP"])
    card = checkpoint.read_card(out / "best.safetensors")
    assert card.step == best["step"]
    assert card.scores["self_mAP"] == best["self_mAP"]
    last = checkpoint.read_card(out / "checkpoint.safetensors")
    assert (last.step, last.scores["self_mAP"]) == (15, seen[-1]["self_mAP"])
    said = capsys.readouterr().err
    assert f"best {best['self_mAP']:.3f} at step {best['step']}" in said
    assert f"last {seen[-1]['self_mAP']:.3f}" in said


def test_watching_changes_nothing(job: Path, tmp_path: Path) -> None:
    watched = load_file(go(job, tmp_path / "watched"))
    alone = load_file(go(job, tmp_path / "alone", "monitor.every_epochs=0"))
    assert all(torch.equal(watched[key], alone[key]) for key in alone)
    assert not (tmp_path / "alone" / "best.safetensors").exists()


def test_a_labelled_set_is_searched_when_there_is_one(job: Path, tmp_path: Path) -> None:
    held_out = write_photos(tmp_path / "held-out", per_class=6)
    go(job, tmp_path / "run", "validation.name=folder", f"validation.root={held_out}", "epochs=1")
    start, end = passes(tmp_path / "run")
    for row in (start, end):
        assert 0 < row["val_mAP"] <= 1
        assert {
            "val_hit_rate@1",
            "val_knn@20",
            "std",
            "effective_rank",
            "alignment",
            "uniformity",
        } <= row.keys()
    card = checkpoint.read_card(tmp_path / "run" / "checkpoint.safetensors")
    assert card.scores["val_mAP"] == end["val_mAP"]


def test_collapse_is_said_in_words_with_what_to_try(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # An encoder whose last scale is zero says the same of every image.
    check = monitor.Monitor.check

    def check_collapsed(
        self: monitor.Monitor, encoder: Any, step: int, head: Any = None
    ) -> monitor.MonitorResult:
        if step:
            with torch.no_grad():
                for parameter in encoder.parameters():
                    parameter.zero_()
        return check(self, encoder, step)

    monkeypatch.setattr(monitor.Monitor, "check", check_collapsed)
    go(job, tmp_path / "run", "epochs=1")
    said = capsys.readouterr().err
    assert "step 5: embeddings collapse" in said
    assert "a higher method.momentum" in said


def test_what_was_chosen_is_said_stored_and_used_again(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"

    def die_at_step_7(self: RunLog, step: int, loss: float) -> None:
        if step == 7:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "advance", die_at_step_7)
        with pytest.raises(KilledError):
            go(job, out, "save_every_s=0")
    stored = json.loads((out / "choices.json").read_text())
    momentum = stored["method.momentum"][0]
    assert 0.5 < momentum < 1
    assert f"method.momentum={momentum} (" in capsys.readouterr().err
    assert all(isinstance(reason, str) for _, reason in stored.values())
    # As if a later version chose otherwise: the run keeps what it began with.
    monkeypatch.setattr(defaults.Facts, "momentum", lambda self, usual: 0.5)
    go(job, out)
    recipe = checkpoint.read_card(out / "checkpoint.safetensors").recipe
    assert recipe["method"]["momentum"] == momentum
    assert checkpoint.read_card(go(job, tmp_path / "new")).recipe["method"]["momentum"] == 0.5


def test_epochs_left_open_follow_the_number_of_images(job: Path, tmp_path: Path) -> None:
    raw = yaml.safe_load(job.read_text())
    del raw["epochs"]
    job.write_text(yaml.safe_dump(raw))
    start = go(job, tmp_path / "start", "epochs=1")
    file = go(job, tmp_path / "run", f"model.weights={start}")
    # 40 images from learned weights: 20 passes at most.
    assert checkpoint.read_card(file).step == 20 * 5


def test_an_accumulated_batch_is_the_whole_batch(job: Path, tmp_path: Path) -> None:
    # Nothing in MAE around a ViT looks at other images, so parts add up exactly.
    settings = ["method.name=mae", "model.name=test_vit", "model.stem=auto", "model.patch_size=8", "epochs=1"]
    whole = load_file(go(job, tmp_path / "whole", *settings))
    parts = load_file(go(job, tmp_path / "parts", *settings, "accumulate=4"))
    before = load_file(go(job, tmp_path / "before", *settings, "optimizer.lr=1e-12"))
    moved = max(float((whole[key] - before[key]).abs().max()) for key in whole)
    assert moved > 1e-3
    for key, value in whole.items():
        assert float((parts[key] - value).abs().max()) < 0.02 * moved, key


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_types_train_to_nearly_the_same(job: Path, tmp_path: Path, precision: str) -> None:
    def losses(out: Path, *overrides: str) -> torch.Tensor:
        go(job, out, "monitor.every_epochs=0", *overrides)
        lines = (out / "metrics.jsonl").read_text().splitlines()
        return torch.tensor([json.loads(line)["loss"] for line in lines])

    full = losses(tmp_path / "full")
    half = losses(tmp_path / "half", f"precision={precision}")
    assert half.isfinite().all()
    assert float(half[0]) == pytest.approx(float(full[0]), rel=0.01)
    # The loss scale of fp16 begins too high, so that its first steps are skipped; then it learns as well.
    assert float(half[-5:].mean()) == pytest.approx(float(full[-5:].mean()), rel=0.2)
    state = torch.load(tmp_path / "half" / "state.pt", weights_only=True)
    assert bool(state["scaler"]) == (precision == "fp16")


def test_multi_crop_runs_around_a_vit_and_its_teacher_is_exported(job: Path, tmp_path: Path) -> None:
    settings = [
        "method.name=dino",
        "model.name=test_vit",
        "model.stem=auto",
        "model.patch_size=8",
        "epochs=1",
    ]
    file = go(job, tmp_path / "run", *settings, "method.local_crops=2", "method.output_dim=32", "epochs=1")
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["method"]
    weights = load_file(file)
    assert checkpoint.read_card(file).network == "teacher"
    assert all(torch.equal(value, state[f"teacher.{key}"]) for key, value in weights.items())
    assert any(not torch.equal(value, state[f"encoder.{key}"]) for key, value in weights.items())
