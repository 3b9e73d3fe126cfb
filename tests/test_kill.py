"""Every method, killed for real in the middle of an epoch, ends with the very same weights."""

import signal
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from method_makers import NEEDS_VIT, OPTIONS, needs_labels, network_of
from safetensors.torch import load_file

from ssl_retrieval import config, plugins, train

pytestmark = pytest.mark.slow

STEPS = 15


def write_job(folder: Path, photos: Path, name: str) -> Path:
    model: dict[str, Any] = {"name": network_of(name), "image_size": 32, "stem": "standard"}
    if name in NEEDS_VIT:
        model |= {"patch_size": 8, "drop_path": 0.2}
    job = {
        "data": {
            "name": "folder",
            "root": str(photos),
            "labels": "folder" if needs_labels(name) else "none",
        },
        "model": model,
        "method": {"name": name, **OPTIONS.get(name, {})},
        "optimizer": {"name": "adamw", "lr": 0.002, "weight_decay": 0.04, "weight_decay_end": 0.4},
        "epochs": 3,
        "batch_size": 8,
        "precision": "fp32",
        "memory_format": "contiguous",
        "log_every": 1,
        "save_every_s": 0,
        "monitor": {"every_epochs": 1, "max_images": 20},
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(job))
    return file


def run(job: Path, out: Path) -> None:
    torch.set_num_threads(1)
    train.pretrain(config.load(train.PretrainConfig, job, [f"out={out}"]))


def kill_after(lines: int, job: Path, out: Path) -> None:
    """Start a run in a process of its own and kill it, wherever it is, once it noted so many steps."""
    # Forked from a server that has imported everything once: test_train.py kills the command itself.
    context = get_context("forkserver")
    context.set_forkserver_preload(["ssl_retrieval.train", "lightly.loss"])
    process = context.Process(target=run, args=(job, out))
    process.start()
    deadline, log = time.monotonic() + 120, out / "metrics.jsonl"
    while not log.is_file() or len(log.read_text().splitlines()) < lines:
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("name", plugins.known("method"))
def test_a_killed_run_ends_as_if_nothing_had_happened(
    name: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = write_job(tmp_path, photos, name)
    run(job, tmp_path / "whole")
    kill_after(7, job, tmp_path / "killed")
    capsys.readouterr()
    run(job, tmp_path / "killed")
    assert "going on at step" in capsys.readouterr().err
    for file in ("checkpoint.safetensors", "best.safetensors"):
        ours, theirs = (load_file(tmp_path / run / file) for run in ("killed", "whole"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), file
    states = [torch.load(tmp_path / run / "state.pt", weights_only=True) for run in ("killed", "whole")]
    for state in states:
        assert state.pop("seconds") > 0
        assert state["step"] == STEPS
    for key in ("images", "job", "start", "best", "scores", "monitor"):
        assert states[0].pop(key) == states[1].pop(key)
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    for file in ("metrics.jsonl", "monitor.jsonl"):
        runs = [(tmp_path / run / file).read_text().splitlines() for run in ("killed", "whole")]
        rows = [[yaml.safe_load(line) for line in lines] for lines in runs]
        for row in (*rows[0], *rows[1]):
            row.pop("images_per_s", None)
        assert rows[0] == rows[1]
