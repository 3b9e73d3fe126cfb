"""Real training of a tiny network on tiny pictures: it learns, survives being killed, explains itself."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from command_line import ONE_THREAD, Command, Outcome
from made_up_photos import photo, write_flat_photos
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from ssl_retrieval import backbones, checkpoint, config, train
from ssl_retrieval.errors import UserError
from ssl_retrieval.extractors.checkpoint import Config as ExtractorConfig
from ssl_retrieval.extractors.checkpoint import Extractor
from ssl_retrieval.run_log import RunLog

NETWORK = "test_resnet"
"""timm's smallest ResNet, made for tests: half a million weights."""

BASE = {
    "data": {"name": "folder", "labels": "none"},
    "model": {"name": NETWORK, "image_size": 32, "stem": "standard"},
    "method": {
        "name": "simclr",
        "temperature": 0.5,
        "output_dim": 16,
        "augment": {"blur": 0.5, "crop_min": 0.5},
    },
    "optimizer": {"name": "adamw", "lr": 0.002, "weight_decay": 1e-4},
    "epochs": 4,
    "batch_size": 8,
    "device": "cpu",
    "precision": "fp32",
    "memory_format": "contiguous",
    "log_every": 1,
    "monitor": {"every_epochs": 0},
}
STEPS = 20  # 40 pictures: 5 steps per epoch


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    file = tmp_path_factory.mktemp("train") / "pretrain.yaml"
    file.write_text(yaml.safe_dump(BASE | {"data": {**BASE["data"], "root": str(photos)}}))  # type: ignore[dict-item]
    return file


def go(job: Path, out: Path, *overrides: str) -> Path:
    return train.pretrain(config.load(train.PretrainConfig, job, [f"out={out}", *overrides]))


def user_error(job: Path, out: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        go(job, out, *overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run end, as a kill does it, right after it has noted this step."""
    write = RunLog.write

    def write_and_die(self: RunLog, at: int, values: dict[str, float]) -> None:
        write(self, at, values)
        if at == step:
            raise KilledError

    monkeypatch.setattr(RunLog, "write", write_and_die)


def assert_same_end(out: Path, reference: Path) -> None:
    """Everything but the time taken must be equal to the last bit."""
    ours, theirs = (load_file(folder / "checkpoint.safetensors") for folder in (out, reference))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    states = [torch.load(folder / "state.pt", weights_only=True) for folder in (out, reference)]
    for state in states:
        del state["seconds"]
    for key in ("images", "job", "start", "best", "scores", "monitor"):
        assert states[0].pop(key) == states[1].pop(key)
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    kept = [[(r["step"], r["loss"], r["lr"]) for r in rows(folder)] for folder in (out, reference)]
    assert kept[0] == kept[1]
    assert [step for step, _, _ in kept[0]] == list(range(1, STEPS + 1))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, job: Path) -> Path:
    """A run that nothing has interrupted; read only."""
    out = tmp_path_factory.mktemp("finished") / "run"
    go(job, out)
    return out


def test_what_a_run_leaves(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        ".lock",
        "checkpoint.safetensors",
        "choices.json",
        "config.yaml",
        "images.json",
        "images.npy",
        "metrics.jsonl",
        "monitor.jsonl",
        "runtime.json",
        "source.json",
        "state.pt",
        "tensorboard",
    }
    cfg = config.load(train.PretrainConfig, finished / "config.yaml")
    assert cfg.model.name == NETWORK
    assert cfg.method.augment.blur == 0.5
    found = rows(finished)
    assert [row["step"] for row in found] == list(range(1, STEPS + 1))
    assert found[4]["epoch"] == 1.0
    card = checkpoint.read_card(finished / "checkpoint.safetensors")
    assert (card.backbone, card.method, card.start, card.step, card.images) == (
        NETWORK,
        "simclr",
        "random",
        STEPS,
        40,
    )
    assert card.train_s > 0


def test_the_learning_rate_follows_its_schedule(finished: Path) -> None:
    rates = [row["lr"] for row in rows(finished)]
    assert rates[:3] == pytest.approx([0.0, 0.001, 0.002])
    assert rates[11] == pytest.approx(0.002 * 0.5)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 0 < rates[-1] < 0.002 * 0.02


def test_the_loss_falls_on_an_easy_set(job: Path, tmp_path: Path) -> None:
    # Four colours, and nothing that changes colours.
    go(job, tmp_path / "run", "epochs=8", "method.augment.jitter=0", "method.augment.grayscale=0")
    losses = torch.tensor([row["loss"] for row in rows(tmp_path / "run")])
    assert losses.isfinite().all()
    assert losses[-10:].mean() < losses[:10].mean() - 0.2


def test_the_checkpoint_embeds_as_the_trained_encoder(finished: Path) -> None:
    extractor = Extractor(ExtractorConfig(path=str(finished)))
    state = torch.load(finished / "state.pt", weights_only=True)["method"]
    encoder = backbones.make(NETWORK, seed=77)
    prefix = "encoder."
    encoder.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    batch = torch.stack([extractor.preprocess(photo((200, 40, 40), seed)) for seed in range(3)])
    with torch.inference_mode():
        own = backbones.own_pooling(encoder, extractor.normalize(batch))
        # To rounding: the extractor's network has its batch normalisation folded.
        torch.testing.assert_close(extractor(batch), own, rtol=1e-3, atol=1e-5)
    assert extractor.dim == 96
    assert extractor.weights_digest == backbones.weights_digest(encoder)
    assert extractor.weights_digest != backbones.weights_digest(backbones.make(NETWORK))


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_weights(job: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "ssl_retrieval", "pretrain", str(job), f"out={out}", "save_every_s=0"]
    # Its own session, and a signal that it cannot catch, wherever it happens to be.
    process = subprocess.Popen(
        command, env=ONE_THREAD, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    deadline = time.monotonic() + 120
    log = out / "metrics.jsonl"
    while not log.is_file() or len(log.read_text().splitlines()) < 7:
        assert process.poll() is None, process.communicate()[0].decode()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 7 <= len(log.read_text().splitlines()) < STEPS
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "going on at step" in done.stderr
    assert "Warning" not in done.stderr
    assert done.stdout.strip() == str(out / "checkpoint.safetensors")
    assert_same_end(out, finished)


@pytest.mark.parametrize("step", [1, 6, 7, STEPS])
def test_a_resumed_run_is_exact_wherever_it_stopped(
    job: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    with monkeypatch.context() as patch:
        stop_at(step, patch)
        with pytest.raises(KilledError):
            go(job, tmp_path / "run", "save_every_s=0")
    assert len(rows(tmp_path / "run")) == step
    go(job, tmp_path / "run")
    assert_same_end(tmp_path / "run", finished)


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer.name=lars", "memory_format=channels_last"],
        ["optimizer.name=sgd", "precision=bf16", "model.freeze=2"],
    ],
)
def test_resume_is_exact_with_other_settings(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    go(job, tmp_path / "whole", *overrides)
    with monkeypatch.context() as patch:
        stop_at(8, patch)
        with pytest.raises(KilledError):
            go(job, tmp_path / "run", "save_every_s=0", *overrides)
    go(job, tmp_path / "run", *overrides)
    assert_same_end(tmp_path / "run", tmp_path / "whole")


def test_what_was_chosen_by_timing_holds_on_resume(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    auto = ["precision=auto", "memory_format=auto"]
    with monkeypatch.context() as patch:
        stop_at(8, patch)
        with pytest.raises(KilledError):
            go(job, tmp_path / "run", "save_every_s=0", *auto)
    assert "one trial step takes" in capsys.readouterr().err
    # Written by hand, so that the test tells it apart from what another timing would give.
    (tmp_path / "run" / "runtime.json").write_text('{"precision": "bf16", "memory_format": "contiguous"}')
    go(job, tmp_path / "run", *auto)
    said = capsys.readouterr().err
    assert "one trial step takes" not in said
    assert "bf16 contiguous" in said


def test_killed_in_the_middle_of_writing(
    job: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(12, patch)
        with pytest.raises(KilledError):
            go(job, out, "save_every_s=0")
    for name in ("state.pt", "checkpoint.safetensors", "metrics.jsonl", "runtime.json", "config.yaml"):
        (out / f".{name}.partial").write_bytes(b"half of")
    with (out / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 13, "lo')
    go(job, out)
    assert_same_end(out, finished)


@pytest.mark.parametrize("step", [9, STEPS])
@pytest.mark.parametrize(("module", "name"), [(torch, "save"), (checkpoint, "save")])
def test_killed_between_the_files_of_a_save(
    job: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    name: str,
    step: int,
) -> None:
    save, num_calls = getattr(module, name), 0

    def die(*arguments: Any) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls == step:
            raise KilledError
        save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, die)
        with pytest.raises(KilledError):
            go(job, tmp_path / "run", "save_every_s=0")
    go(job, tmp_path / "run")
    assert_same_end(tmp_path / "run", finished)


def test_tensorboard_shows_each_step_once_after_a_resume(
    job: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(8, patch)
        with pytest.raises(KilledError):
            go(job, out, "save_every_s=0")
    go(job, out)
    for folder in (out, finished):
        events = EventAccumulator(str(folder / "tensorboard")).Reload().Scalars("train/loss")
        assert [event.step for event in events] == list(range(1, STEPS + 1))
        assert [event.value for event in events] == pytest.approx([row["loss"] for row in rows(folder)])


def test_a_finished_run_has_nothing_to_do(
    job: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    assert go(job, finished) == finished / "checkpoint.safetensors"
    assert "already trained (20 steps); nothing to do" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before


def test_a_finished_run_without_its_checkpoint_gives_it_again(
    job: Path, finished: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    (out / "checkpoint.safetensors").unlink()
    go(job, out)
    assert_same_end(out, finished)


def test_another_config_in_the_same_out_is_a_users_mistake(cli: Command, job: Path, finished: Path) -> None:
    outcome: Outcome = cli("pretrain", job, f"out={finished}", "method.temperature=0.2")
    text = outcome.user_error()
    assert "method.temperature=0.5, now it is 0.2" in text
    assert "another out" in text


def test_what_may_change_between_two_starts(job: Path, finished: Path) -> None:
    go(job, finished, "save_every_s=5", "log_every=3", "device=auto")


def test_a_run_that_saved_nothing_does_not_hold_its_folder(
    job: Path, tmp_path: Path, cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    text = cli("pretrain", job, f"out={out}", "batch_size=41").user_error()
    assert "batch_size=41 is larger than the 40 readable training images" in text
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        with pytest.raises(KilledError):
            go(job, out, "epochs=1", "precision=bf16")
    # Neither the mistaken config nor the number format of the stopped one may stay behind.
    go(job, out, "epochs=1")
    assert json.loads((out / "runtime.json").read_text())["precision"] == "fp32"
    assert config.load(train.PretrainConfig, out / "config.yaml").precision == "fp32"
    assert [row["step"] for row in rows(out)] == [1, 2, 3, 4, 5]


def test_other_images_are_not_trained_on_under_the_old_name(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_flat_photos(tmp_path / "flat", 16)
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        with pytest.raises(KilledError):
            go(job, tmp_path / "run", f"data.root={root}", "save_every_s=0")
    (root / "0.png").rename(root / "new.png")
    text = user_error(job, tmp_path / "run", f"data.root={root}")
    assert "other images than those found now" in text


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        (["optimizer.lr=1e20"], "the loss is nan at step 3"),
        (["optimizer.lr=1e38", "optimizer.weight_decay=1e4"], "weights are infinite or NaN at step 2"),
    ],
)
def test_numbers_that_are_not_finite_are_never_saved(
    cli: Command, job: Path, tmp_path: Path, settings: list[str], what: str
) -> None:
    out = tmp_path / "run"
    outcome = cli("pretrain", job, f"out={out}", "save_every_s=0", "optimizer.name=sgd", *settings)
    assert outcome.code == 2
    text = outcome.err.splitlines()[-1]
    assert text.startswith(f"error: {out}: {what}")
    assert "optimizer.lr" in text
    assert "Traceback" not in outcome.err
    saved, _, _ = checkpoint.load(out / "checkpoint.safetensors")
    assert all(value.isfinite().all() for value in saved.state_dict().values())
    state = torch.load(out / "state.pt", weights_only=True)
    assert all(value.isfinite().all() for value in state["method"].values())
    assert all(row["loss"] == row["loss"] for row in rows(out))
    assert f"{out / 'checkpoint.safetensors'} is the last good checkpoint" in text
    batch = json.loads((out / "not_finite.json").read_text())["batch"]
    assert len(batch) == 8
    assert batch[0] in text


def test_a_loss_that_is_not_finite_is_noticed_at_its_step(job: Path, tmp_path: Path) -> None:
    settings = ["optimizer.name=sgd", "optimizer.lr=1e20", "optimizer.warmup=0", "log_every=1000"]
    assert "the loss is nan at step 2 (batch with " in user_error(job, tmp_path / "run", *settings)


def test_a_flat_folder_of_unlabelled_pictures(job: Path, tmp_path: Path) -> None:
    root = write_flat_photos(tmp_path / "flat", 16)
    go(job, tmp_path / "run", f"data.root={root}", "data.labels=auto", "epochs=1")
    assert len(rows(tmp_path / "run")) == 2


def test_broken_pictures_are_left_out_and_listed(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_flat_photos(tmp_path / "flat", 17)
    (root / "3.png").write_bytes(b"no picture")
    (root / "5.png").write_bytes(b"")
    go(job, tmp_path / "run", f"data.root={root}", "epochs=1", "batch_size=5")
    said = capsys.readouterr().err
    assert "2 unreadable images left out of" in said
    assert "3.png: not an image" in said
    assert "5.png: empty file" in said
    assert checkpoint.read_card(tmp_path / "run" / "checkpoint.safetensors").images == 15
    text = user_error(job, tmp_path / "other", f"data.root={root}", "data.on_error=fail")
    assert "3.png" in text


def test_frozen_stages_and_statistics_stay(job: Path, tmp_path: Path) -> None:
    settings = ["model.freeze=2", "epochs=1", "optimizer.warmup=0"]
    file = go(job, tmp_path / "run", *settings)
    before, after = backbones.make(NETWORK).state_dict(), load_file(file)
    changed = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"layer3", "layer4"}


def test_training_goes_on_from_the_weights_of_another_run(job: Path, finished: Path, tmp_path: Path) -> None:
    start = finished / "checkpoint.safetensors"
    file = go(job, tmp_path / "run", f"model.weights={start}", "epochs=1", "optimizer.lr=1e-9")
    weights = {k: v for k, v in load_file(file).items() if k.endswith("weight")}
    torch.testing.assert_close(weights, {k: load_file(start)[k] for k in weights}, atol=1e-6, rtol=0)
    assert checkpoint.read_card(file).start == str(start)


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("epochs=0", "epochs=0"),
        ("batch_size=1", "batch_size=1"),
        ("log_every=0", "log_every=0"),
        ("model.image_size=4", "model.image_size=4"),
        ("pack_size=0", "pack_size=0"),
        ("model.name=resnet_10t", "did you mean"),
        ("model.batchnorm=of", "model.batchnorm='of'"),
        ("model.freeze=9", "model.freeze=9"),
        ("model.stem=tiny", "model.stem='tiny'"),
        ("precision=fp8", "precision='fp8'"),
        ("memory_format=nhwc", "memory_format='nhwc'"),
        ("optimizer.name=adam", "unknown optimizer 'adam'"),
        ("device=tpu", "device='tpu'"),
    ],
)
def test_mistakes_are_named(job: Path, tmp_path: Path, override: str, names: str) -> None:
    assert names in user_error(job, tmp_path / "run", override)
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()
