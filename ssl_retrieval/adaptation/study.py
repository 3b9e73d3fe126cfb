"""The study: every setting on every set of photos, scored on labelled tasks that training never saw.

One folder per cell, whole or absent; what is finished is never done again, and several processes may work on
the same study. A cell's network is scored and thrown away.
"""

import shutil
import time
import traceback
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ssl_retrieval import devices
from ssl_retrieval.adaptation import cell_files
from ssl_retrieval.adaptation.cells import Cell, cells_of
from ssl_retrieval.adaptation.plan import Setting, pretrain_config
from ssl_retrieval.adaptation.probe import take
from ssl_retrieval.adaptation.scoring import TaskScores, score_set, starting_network, trained_network
from ssl_retrieval.adaptation.study_config import (
    SetConfig,
    StartConfig,
    StudyConfig,
    check,
    sets_of,
    starts_of,
)
from ssl_retrieval.adaptation.study_images import StudySet, open_set
from ssl_retrieval.atomic import atomic_path, require_writable
from ssl_retrieval.console import say
from ssl_retrieval.errors import UserError
from ssl_retrieval.locking import hold
from ssl_retrieval.train import PretrainConfig, pretrain
from ssl_retrieval.types import digest_of

PROBE_SEED = 0
"""All cells of a set show the same photos, altered in the same way."""


@dataclass(frozen=True)
class Progress:
    """How far a study is.

    Attributes:
        finished: Cells that are done, now or before.
        total: Cells of the study.
        broken: Names of cells that failed.
    """

    finished: int
    total: int
    broken: tuple[str, ...]


def study(cfg: StudyConfig) -> Progress:
    """Do what is left of a study, until its time is over.

    Args:
        cfg: See `StudyConfig`.

    Raises:
        UserError: A mistake in the config or in a set's data.
    """
    check(cfg)
    sets, starts = sets_of(cfg), starts_of(cfg)
    out = Path(cfg.out).expanduser()
    require_writable(out)
    cells = cells_of(cfg, list(sets), list(starts))
    say(f"{len(cells)} cells: {len(sets)} sets, {len(starts)} starts")
    worker = _Worker(cfg, out, sets, starts)
    deadline = time.monotonic() + 60 * cfg.budget_minutes if cfg.budget_minutes else float("inf")
    for number, cell in enumerate(cells, 1):
        if time.monotonic() >= deadline:
            say(f"the {cfg.budget_minutes:g} minutes are over: the same command goes on")
            break
        worker.do(cell, f"[{number}/{len(cells)}] {cell.name}")
    if worker.broken:
        say(
            f"{len(worker.broken)} cells failed, see {out / 'broken'}; retry_broken=true tries them again: "
            + ", ".join(worker.broken)
        )
    return Progress(worker.num_finished, len(cells), tuple(worker.broken))


class _Worker:
    """One process at work on a study."""

    def __init__(
        self, cfg: StudyConfig, out: Path, sets: dict[str, SetConfig], starts: dict[str, StartConfig]
    ) -> None:
        self.cfg, self.out, self.sets, self.starts = cfg, out, sets, starts
        self.device = devices.pick(cfg.device)
        self.opened: dict[str, StudySet] = {}
        self.digests: dict[str, str] = {}
        self.num_finished = 0
        self.broken: list[str] = []

    def folder(self, cell: Cell) -> Path:
        """Say where a finished cell is kept; the key in its name tells it from one of other data."""
        return self.out / "cells" / f"{cell.name}--{self._key(cell)}"

    def broken_file(self, cell: Cell) -> Path:
        """Say where it is noted that a cell failed."""
        return self.out / "broken" / f"{self.folder(cell).name}.txt"

    def do(self, cell: Cell, title: str) -> None:
        """Do a cell unless it is done, has failed, or another process is at it."""
        folder, broken = self.folder(cell), self.broken_file(cell)
        if broken.is_file() and not self.cfg.retry_broken:
            say(f"{title}: failed before; left out")
            self.broken.append(cell.name)
            return
        lock = self.out / "locks" / folder.name
        with ExitStack() as stack:
            try:
                stack.enter_context(hold(lock, "another process is at it"))
            except UserError:
                return
            if folder.is_dir() or self._succeeds(cell, folder, broken, title):
                self.num_finished += 1
            else:
                self.broken.append(cell.name)
            lock.unlink(missing_ok=True)

    def _succeeds(self, cell: Cell, folder: Path, broken: Path, title: str) -> bool:
        say(title)
        try:
            scores = self._make(cell, folder)
        except Exception as error:
            with atomic_path(broken) as partial:
                partial.write_text(traceback.format_exc(), "utf-8")
            say(f"{title}: failed: {error}")
            return False
        broken.unlink(missing_ok=True)
        means = {task: float(np.nanmean(found.per_query["mAP"])) for task, found in scores.items()}
        say(f"{title}: " + ", ".join(f"{task} {mean:.3f}" for task, mean in means.items()))
        return True

    def _make(self, cell: Cell, folder: Path) -> dict[str, TaskScores]:
        work = self.out / "working" / folder.name
        started, cpu_before = time.monotonic(), time.process_time()
        if cell.is_start:
            network, spec = starting_network(self._training(cell, work))
            train_s, steps = 0.0, 0
        else:
            file = pretrain(self._training(cell, work))
            network, spec, card = trained_network(file)
            train_s, steps = card.train_s, card.step
        trained = time.monotonic()
        network = network.to(self.device)
        images = self._set(cell)
        scores = score_set(network, images, self.device, self.cfg.precision)
        scored = time.monotonic()
        probe = take(
            network, spec, images.photos, limit=self.cfg.probe_photos, seed=PROBE_SEED, device=self.device
        )
        info = {
            "setting": asdict(self._setting(cell)),
            "key": self._key(cell),
            "num_photos": len(images.photos.paths),
            "steps": steps,
            "train_s": train_s,
            "train_wall_s": round(trained - started, 1),
            "score_s": round(scored - trained, 1),
            "probe_s": round(time.monotonic() - scored, 1),
            "cpu_s": round(time.process_time() - cpu_before, 1),
        }
        if self.cfg.keep_weights and not cell.is_start:
            target = self.out / "weights" / f"{folder.name}.safetensors"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        cell_files.write(folder, cell, scores, probe, info)
        shutil.rmtree(work, ignore_errors=True)
        return scores

    def _set(self, cell: Cell) -> StudySet:
        if cell.set not in self.opened:
            self.opened[cell.set] = open_set(cell.set, self.sets[cell.set], self.cfg.image_size, self.out)
        return self.opened[cell.set]

    def _training(self, cell: Cell, work: Path) -> PretrainConfig:
        data = {"name": "packed", "root": str(self._set(cell).photos_file)}
        made = pretrain_config(self._setting(cell), data, work)
        # Not tried out: all cells are to compute alike.
        return replace(made, device=self.cfg.device, precision="fp32", memory_format="channels_last")

    def _setting(self, cell: Cell) -> Setting:
        start = self.starts[cell.start]
        return Setting(
            start=start.name,
            weights=start.weights,
            method=cell.method or self.cfg.methods[0],
            jitter=cell.jitter,
            anchor=cell.anchor,
            image_size=self.cfg.image_size,
            steps=self.cfg.steps,
            batch_size=self.cfg.batch_size,
            seed=cell.seed,
        )

    def _key(self, cell: Cell) -> str:
        setting = asdict(self._setting(cell)) if not cell.is_start else {"image_size": self.cfg.image_size}
        scoring = [self.cfg.precision, self.cfg.probe_photos]
        return digest_of([setting, self._start_digest(cell), self._set(cell).key, scoring])

    def _start_digest(self, cell: Cell) -> str:
        if cell.start not in self.digests:
            network, _ = starting_network(self._training(cell, self.out))
            self.digests[cell.start] = network.network_digest
        return self.digests[cell.start]
