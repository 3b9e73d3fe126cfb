"""Every method, killed for real in the middle of an epoch, ends with the very same weights."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import ONE_THREAD
from method_makers import NEEDS_VIT, OPTIONS, network_of
from safetensors.torch import load_file

from ssl_retrieval import config, plugins, train

pytestmark = pytest.mark.slow

STEPS = 15


def write_job(folder: Path, photos: Path, name: str) -> Path:
    model: dict[str, Any] = {"name": network_of(name), "image_size": 32, "stem": "standard"}
    if name in NEEDS_VIT:
        model |= {"patch_size": 8, "drop_path": 0.2}
    job = {
        "data": {"name": "folder", "root": str(photos), "labels": "none"},
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


def command(job: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "ssl_retrieval", "pretrain", str(job), f"out={out}"]


def kill_after(lines: int, job: Path, out: Path) -> None:
    """Start a run in a process of its own and kill it, wherever it is, once it noted so many steps."""
    process = subprocess.Popen(
        command(job, out),
        env=ONE_THREAD,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    deadline, log = time.monotonic() + 120, out / "metrics.jsonl"
    while not log.is_file() or len(log.read_text().splitlines()) < lines:
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("name", plugins.known("method"))
def test_a_killed_run_ends_as_if_nothing_had_happened(name: str, photos: Path, tmp_path: Path) -> None:
    job = write_job(tmp_path, photos, name)
    train.pretrain(config.load(train.PretrainConfig, job, [f"out={tmp_path / 'whole'}"]))
    kill_after(7, job, tmp_path / "killed")
    done = subprocess.run(
        command(job, tmp_path / "killed"), env=ONE_THREAD, check=True, capture_output=True, text=True
    )
    assert "going on at step" in done.stderr
    for file in ("checkpoint.safetensors", "best.safetensors"):
        ours, theirs = (load_file(tmp_path / run / file) for run in ("killed", "whole"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), file
    states = [torch.load(tmp_path / run / "state.pt", weights_only=True) for run in ("killed", "whole")]
    for state in states:
        assert state.pop("seconds") > 0
        assert state["step"] == STEPS
    for key in ("images", "job", "best", "scores", "monitor"):
        assert states[0].pop(key) == states[1].pop(key)
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    for file in ("metrics.jsonl", "monitor.jsonl"):
        runs = [(tmp_path / run / file).read_text().splitlines() for run in ("killed", "whole")]
        rows = [[yaml.safe_load(line) for line in lines] for lines in runs]
        for row in (*rows[0], *rows[1]):
            row.pop("images_per_s", None)
        assert rows[0] == rows[1]
