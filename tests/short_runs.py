"""Training runs of a few steps on a few photos."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from made_up_photos import photo
from safetensors.torch import load_file
from torch import Tensor

from ssl_retrieval import config, train
from ssl_retrieval.errors import UserError
from ssl_retrieval.run_log import RunLog

BASE: dict[str, Any] = {
    "data": {"name": "folder"},
    "model": {"name": "test_resnet", "image_size": 32, "stem": "standard"},
    "method": {"name": "simclr", "output_dim": 16, "augment": {"blur": 0.5, "crop_min": 0.3}},
    "optimizer": {"name": "adamw", "lr": 0.002, "weight_decay": 1e-4},
    "epochs": 2,
    "batch_size": 4,
    "device": "cpu",
    "num_workers": 0,
    "precision": "fp32",
    "memory_format": "contiguous",
    "compile": "none",
    "log_every": 1,
    "monitor": {"every_epochs": 0},
}
STEPS = 8
"""Sixteen photos, four a step, twice."""

SIZES = [(40, 30), (64, 64), (33, 90), (150, 100), (24, 50), (48, 36), (36, 48), (300, 70)]


class KilledError(Exception):
    """Stands for the end of the process."""


def write_many_sizes(root: Path, count: int = 16) -> Path:
    """Write photos of many shapes, some as PNG and some as JPEG, in one folder."""
    root.mkdir(parents=True)
    for number in range(count):
        colour = (60 + 10 * number, 120, 200 - 10 * number)
        suffix = "jpg" if number % 3 == 0 else "png"
        photo(colour, number, SIZES[number % len(SIZES)]).save(root / f"{number}.{suffix}")
    return root


def write_job(folder: Path, root: Path, **changes: Any) -> Path:
    """Write the config of a short run on ``root``."""
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(BASE | {"data": {**BASE["data"], "root": str(root)}} | changes))
    return file


def go(job: Path, out: Path, *overrides: str) -> dict[str, Tensor]:
    """Run it; give the weights it ends with."""
    return load_file(train.pretrain(config.load(train.PretrainConfig, job, [f"out={out}", *overrides])))


def user_error(job: Path, out: Path, *overrides: str) -> str:
    """Insist that the run ends with a user's mistake, said in one line."""
    with pytest.raises(UserError) as caught:
        go(job, out, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def go_until(step: int, job: Path, out: Path, *overrides: str) -> None:
    """Let a run end, as a kill does it, right after it has noted and saved this step."""
    write = RunLog.write

    def write_and_die(self: RunLog, at: int, values: dict[str, float]) -> None:
        write(self, at, values)
        if at == step + 1:
            raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "write", write_and_die)
        with pytest.raises(KilledError):
            go(job, out, "save_every_s=0", *overrides)


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    """Compare to the last bit."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)


def rows(file: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines."""
    return [json.loads(line) for line in file.read_text().splitlines()]
