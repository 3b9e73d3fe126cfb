"""One candidate: a short training on the photos, and the probe of what it left."""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ssl_retrieval import checkpoint
from ssl_retrieval.adaptation import probe
from ssl_retrieval.adaptation.plan import Pace, Setting, pretrain_config
from ssl_retrieval.adaptation.probe import Probe
from ssl_retrieval.atomic import atomic_path
from ssl_retrieval.packed import Packed
from ssl_retrieval.run_folder import CHECKPOINT, read_json
from ssl_retrieval.train import pretrain

_RECORD = "trial.json"
_PACE_STEPS = 3


@dataclass(frozen=True)
class Judge:
    """What every candidate is looked at with: the same photos, altered in the same way.

    Attributes:
        photos: Packed photos.
        file: The pack that holds them.
        limit: How many of them are drawn.
        seed: Of the draw.
        device: Where networks run.
    """

    photos: Packed
    file: Path
    limit: int
    seed: int
    device: torch.device

    @property
    def data(self) -> dict[str, Any]:
        """The photos as a dataset section."""
        return {"name": "packed", "root": str(self.file)}

    def take(self, file: Path) -> Probe:
        """Embed the photos and their altered versions by the network of a checkpoint."""
        model, _, spec = checkpoint.load(file)
        return probe.take(
            model.to(self.device), spec, self.photos, limit=self.limit, seed=self.seed, device=self.device
        )


@dataclass(frozen=True)
class Trial:
    """A candidate that was trained.

    Attributes:
        name: What it is called.
        setting: What it was meant to be.
        folder: Its run, with the probe.
        steps: Steps that were made; fewer than those of the setting where the time was over.
        train_s: Seconds of the steps.
        total_s: Seconds of everything, the probe included.
    """

    name: str
    setting: Setting
    folder: Path
    steps: int
    train_s: float
    total_s: float

    @property
    def file(self) -> Path:
        """The trained network."""
        return self.folder / CHECKPOINT

    def probe(self) -> Probe:
        """Read what the judge saw."""
        return Probe.load(self.folder)


def run(name: str, setting: Setting, folder: Path, judge: Judge, deadline: float) -> Trial:
    """Train and look at a candidate, or read what an earlier process finished.

    Args:
        name: What it is called.
        setting: What to train.
        folder: Where.
        judge: The photos, and how it is looked at.
        deadline: Reading of ``time.monotonic`` after which training stops.
    """
    stored = read_json(folder / _RECORD)
    if stored is None:
        started = time.monotonic()
        file = pretrain(pretrain_config(setting, judge.data, folder), deadline)
        card = checkpoint.read_card(file)
        judge.take(file).save(folder)
        total_s = time.monotonic() - started
        stored = {"steps": card.step, "train_s": card.train_s, "total_s": round(total_s, 1)}
        with atomic_path(folder / _RECORD) as partial:
            partial.write_text(json.dumps(stored))
    return Trial(name, setting, folder, **stored)


def measure_pace(setting: Setting, folder: Path, judge: Judge, probe_s: float) -> Pace:
    """Train a few steps to see how fast it goes.

    Args:
        setting: What is to be trained; the anchor, which costs more, is laid on.
        folder: Where; of no further use.
        judge: The photos.
        probe_s: Seconds that the probe of the start took.
    """
    anchored = dataclasses.replace(setting, anchor=setting.anchor or 1.0)
    # Whatever a process prepares in its first step is not prepared again.
    pretrain(pretrain_config(dataclasses.replace(anchored, steps=1), judge.data, folder / "cold"))
    started = time.monotonic()
    short = dataclasses.replace(anchored, steps=_PACE_STEPS)
    file = pretrain(pretrain_config(short, judge.data, folder / "warm"))
    train_s = checkpoint.read_card(file).train_s
    setup_s = max(0.0, time.monotonic() - started - train_s)
    return Pace(setup_s, train_s / (_PACE_STEPS * setting.batch_size), probe_s)
