"""The only training loop: views on the device, one step, checkpoints, exact resume, retrieval watched."""

import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ssl_retrieval import (
    adapters,
    checkpoint,
    collapse,
    config,
    devices,
    distributed,
    feed,
    memory,
    optim,
    plugins,
    precision,
    run_folder,
)
from ssl_retrieval.atomic import atomic_path, require_writable
from ssl_retrieval.augment import Output
from ssl_retrieval.console import say
from ssl_retrieval.defaults import given
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods.base import BaseMethod
from ssl_retrieval.monitor import Monitor
from ssl_retrieval.network_input import InputSpec
from ssl_retrieval.packed import Packed
from ssl_retrieval.run_log import RunLog
from ssl_retrieval.run_state import RunState
from ssl_retrieval.streaming import Stream
from ssl_retrieval.train_batches import Batches
from ssl_retrieval.train_config import ModelConfig as ModelConfig
from ssl_retrieval.train_config import PretrainConfig as PretrainConfig
from ssl_retrieval.train_config import check, signal_of
from ssl_retrieval.train_images import open_images, some_packed
from ssl_retrieval.train_rounds import Rounds
from ssl_retrieval.train_runtime import settle_runtime
from ssl_retrieval.train_setup import anchored_start, build_backbone, require_classes, sampler_of, settle
from ssl_retrieval.train_step import Stepper
from ssl_retrieval.weight_interpolation import interpolated


def pretrain(cfg: PretrainConfig, deadline: float | None = None) -> Path:
    """Train, or go on with a run that was stopped.

    Under ``torchrun`` every process calls it, and the first one writes.

    Args:
        cfg: See `PretrainConfig`.
        deadline: Reading of ``time.monotonic`` after which the run stops behind the step that it is at; what
            is left of it can be gone on with later.

    Returns:
        The path of ``checkpoint.safetensors``.

    Raises:
        UserError: A mistake in the config, in the data, or a loss that is not finite.
    """
    check(cfg)
    out = Path(cfg.out).expanduser()
    require_writable(out)
    device = distributed.start(devices.pick(cfg.device))
    share = distributed.share_of(cfg.batch_size, cfg.accumulate)
    with run_folder.lock(out) if distributed.rank() == 0 else nullcontext():
        if distributed.rank() == 0:
            run_folder.claim(out, cfg)
        distributed.barrier()
        distributed.require_same(str((out / run_folder.CONFIG).is_file()), "the run's folder")
        memory.keep_freed(device)
        source, reason = open_images(cfg, out)
        try:
            return _Run(cfg, out, device, source, share, deadline).finish(reason)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"out of memory on {device} with {share} images at a time: set "
                f"accumulate={2 * cfg.accumulate}, or a smaller batch_size or model.image_size"
            ) from error


class _Run:
    """One training run: everything that changes from step to step."""

    def __init__(
        self,
        cfg: PretrainConfig,
        out: Path,
        device: torch.device,
        source: Packed | Stream,
        share: int,
        deadline: float | None,
    ) -> None:
        self.out, self.device, self.source, self.deadline = out, device, source, deadline
        self.first = distributed.rank() == 0
        module = plugins.find("method", cfg.method.name)
        backbone, self.card = build_backbone(cfg, module)
        start, self.card = anchored_start(cfg, backbone, self.card)
        adapters.add(backbone, cfg.model.adapter, cfg.model.adapter_rank, cfg.seed)
        labels = None if source.labels is None else torch.from_numpy(source.labels)
        num_classes = 0 if labels is None else int(labels.max()) + 1
        self.cfg = cfg = settle(cfg, module, len(source.paths), backbone, out, num_classes)
        require_classes(cfg, num_classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cfg.seed)
            method: BaseMethod = module.Method(cfg.method, backbone)
        if cfg.sync_batchnorm:
            distributed.synchronise_batchnorm(method, device)
        self.method = method.to(device)
        self.start = None if start is None else start.to(device)
        self.input = InputSpec.from_dict(self.card.input)
        self.optimizer = optim.make(cfg.optimizer, method, cfg.batch_size, device.type)
        # A run that makes its own labels has none yet: its epochs are as long as all images are many.
        sampler = sampler_of(cfg, len(source.paths), source.labels)
        self.steps_per_epoch = sampler.steps_per_epoch
        self.total = cfg.steps or self.steps_per_epoch * given(cfg.epochs)
        self.state = RunState(out, source.key, f"{cfg.method.name} on {cfg.model.name}")
        self.state.start = self.card.extra.get("start_digest", "")
        self.scaler = torch.amp.GradScaler(device.type, enabled=cfg.precision == "fp16")
        views = self.method.views(cfg.model.image_size)
        made, self.where = feed.make(source, views, cfg.seed, device)
        self.batches = Batches(cfg, made, sampler, share, labels)
        self.rounds = None
        if signal_of(cfg).renewed:
            self.rounds = Rounds(
                cfg, self.method, self.optimizer, self.state, self.input, self.steps_per_epoch
            )
        self.unseen: list[tuple[int, Tensor]] = []
        self.monitor = self._make_monitor()

    @property
    def step(self) -> int:
        """Count the steps done."""
        return self.state.step

    def finish(self, reason: str) -> Path:
        """Run what is left of the training.

        Args:
            reason: Why the images come in the form they have, in words.
        """
        self.state.resume(self.method, self.optimizer, self.scaler, self.device)
        distributed.require_same(f"{self.step} of {self.total}", "the step to go on from")
        file = self.out / run_folder.CHECKPOINT
        if self.step >= self.total or self._ends_early():
            if not file.is_file() and self.first:
                self._export(file)
            say(f"{self.out}: already trained ({self.step} steps); nothing to do")
            return file
        if self.monitor is not None and self.state.monitor:
            self.monitor.load_state_dict(self.state.monitor)
        if self.step == 0:
            with closing(self.batches.first_pass(Output(self.input.mean, self.input.std))) as seen:
                self.method.begin(seen)
        if self.step:
            say(f"{self.out}: going on at step {self.step} of {self.total}")
        self._enter_round()
        plain = Output(self.input.mean, self.input.std)
        runtime = settle_runtime(self.cfg, self.out, self.method, self.batches, plain, self.device)
        say(f"training images: {self.where} ({reason})")
        say(
            f"training on {len(self.source.paths)} images: {self.cfg.epochs} epochs of "
            f"{self.steps_per_epoch} steps, batch {self.cfg.batch_size}, {runtime.precision} "
            f"{runtime.memory_format}, {self.device}"
            + (f", {runtime.compile} compiled" if runtime.compile != "none" else "")
            + (f", {distributed.world_size()} processes" if distributed.world_size() > 1 else "")
        )
        self._loop(runtime)
        self._say_end()
        return file

    def _loop(self, runtime: precision.Runtime) -> None:
        started, self.saved = time.monotonic() - self.state.seconds, time.monotonic()
        stepper = Stepper(
            self.cfg, self.method, self.optimizer, self.scaler, runtime, self.device, self.start
        )
        log = RunLog(
            self.out,
            self.step,
            self.total,
            self.steps_per_epoch,
            self.cfg.batch_size,
            writes=self.first,
        )
        with log:
            if self.step == 0:
                self._watch(log)
            ended = False
            while self.step < self.total and not ended:
                end = self._enter_round()
                # Views are made ahead, and none may be made with the labels of another round.
                with closing(self.batches.of_steps(self.step, end, self._output(runtime))) as views:
                    while self.step < end and not ended:
                        ended = self._take_step(stepper, views, log, started)
            distributed.barrier()

    def _take_step(
        self, stepper: Stepper, views: Iterator[list[Tensor]], log: RunLog, started: float
    ) -> bool:
        """Take a step, with all that is due after it; tell whether the run ends early."""
        loss, logs = stepper.run(views, self.step, self.total)
        self.state.step += 1
        self.unseen.append((self.step, loss))
        last = self.step == self.total
        save = last or time.monotonic() - self.saved > self.cfg.save_every_s
        writes = self.step % self.cfg.log_every == 0 or save or self.step == 1
        # To read a number from a GPU is to wait for it: only where it is written down or said.
        if writes or self.step % self.steps_per_epoch == 0 or self._reads_every_step():
            value = self._read_losses()
            log.advance(self.step, value)
        if writes:
            values = {"loss": value, "lr": stepper.lr, "weight_decay": stepper.weight_decay}
            log.write(self.step, values | {name: float(found) for name, found in logs.items()})
        self.state.seconds = time.monotonic() - started
        self._watch(log)
        ended = self._ends_early() or self._is_late()
        if save or ended:
            if self.first:
                self._save()
            self.saved = time.monotonic()
        return ended

    def _enter_round(self) -> int:
        """Begin a round if it is time to; give the step before which this must be asked again."""
        if self.rounds is None:
            return self.total
        if self.unseen:
            self._read_losses()
        self.batches = self.rounds.of(self.batches)
        return min(self.rounds.end(), self.total)

    def _ends_early(self) -> bool:
        patience = self.cfg.monitor.patience
        return patience > 0 and distributed.from_first(self.state.passes_since_best >= patience)

    def _is_late(self) -> bool:
        return self.deadline is not None and distributed.from_first(time.monotonic() > self.deadline)

    def _reads_every_step(self) -> bool:
        return self.device.type == "cpu"

    def _read_losses(self) -> float:
        """Look at the losses of the steps since the last look; give the latest."""
        values = torch.stack([loss for _, loss in self.unseen]).tolist()
        steps = [step for step, _ in self.unseen]
        self.unseen.clear()
        for step, value in zip(steps, values, strict=True):
            if not np.isfinite(value):
                raise UserError(self._not_finite(f"the loss is {value}", step))
        return values[-1]

    def _output(self, runtime: precision.Runtime) -> Output:
        return Output(
            self.input.mean,
            self.input.std,
            memory_format=runtime.layout,
            compiled=runtime.compile != "none",
        )

    def _make_monitor(self) -> Monitor | None:
        if not self.first or self.cfg.monitor.is_off:
            return None
        return Monitor(
            self.cfg.monitor,
            self.input,
            self.device,
            out=self.out,
            packed=some_packed(self.source, self.cfg, self.cfg.monitor.max_images, self.out),
            validation=self.cfg.validation,
            seed=self.cfg.seed,
            advice=self.method.advice,
            views=collapse.colour_advice(self.method.views(self.cfg.model.image_size)),
        )

    def _watch(self, log: RunLog) -> None:
        """Look at retrieval when it is time to, and keep the best weights."""
        monitor = self.monitor
        if monitor is None or not monitor.due(
            self.step, self.steps_per_epoch, self.total, self.cfg.batch_size
        ):
            return
        self._require_finite()
        result = monitor.check(self._kept(), self.step, self.method.embedding_head())
        log.watch(self.step, result.values, monitor.key)
        if result.warning:
            say(f"step {self.step}: {result.warning}")
        self.state.scores = {"step": float(self.step)} | result.values
        self.state.monitor = monitor.state_dict()
        value = result.values[monitor.key]
        self.state.passes_since_best += 1
        if np.isfinite(value) and (self.state.best is None or value > self.state.best[0]):
            self.state.best, self.state.passes_since_best = (value, self.step), 0
            self._export(self.out / run_folder.BEST)

    def _say_end(self) -> None:
        late = self.step < self.total and self._is_late()
        if late:
            say(f"stopped at step {self.step} of {self.total}: the time is over")
        if self.monitor is None or self.state.best is None:
            return
        key, (value, step) = self.monitor.key, self.state.best
        if self.step < self.total and not late:
            say(f"ended at step {self.step}: no new best {key} in {self.cfg.monitor.patience} passes")
        say(
            f"{key}: best {value:.3f} at step {step} ({run_folder.BEST}), "
            f"last {self.state.scores[key]:.3f} ({run_folder.CHECKPOINT})"
        )

    def _save(self) -> None:
        self._require_finite()
        # The state comes last: once it says that step k is done, the checkpoint of step k is there.
        self._export(self.out / run_folder.CHECKPOINT)
        with run_folder.writing(self.out):
            self.state.save(self.method, self.optimizer, self.scaler)

    def _require_finite(self) -> None:
        if self.unseen:
            # A bad loss comes before the bad weights that it makes.
            self._read_losses()
        if not all(t.isfinite().all() for t in self.method.state_dict().values()):
            raise UserError(self._not_finite("weights are infinite or NaN", self.step))

    def _export(self, file: Path) -> None:
        card = dataclasses.replace(
            self.card,
            network=self.method.kept,
            step=self.step,
            train_s=round(self.state.seconds, 1),
            scores=self.state.scores,
            recipe=config.to_dict(self.cfg),
            images=len(self.source.paths),
            data=self.source.key,
        )
        with run_folder.writing(self.out):
            checkpoint.save(self._kept(), card, file, self.method.embedding_head())

    def _kept(self) -> nn.Module:
        """Give the network that is watched and exported: plain, and as near to the start as asked for."""
        trained = adapters.merged(self.method.networks()[self.method.kept])
        share = self.cfg.anchor.interpolate
        return trained if self.start is None or share == 1 else interpolated(self.start, trained, share)

    def _not_finite(self, what: str, step: int) -> str:
        paths = [self.source.paths[i] for i in self.batches.whole(step - 1).tolist()]
        if self.first:
            with atomic_path(self.out / "not_finite.json") as partial:
                partial.write_text(json.dumps({"step": step, "batch": paths}, indent=1))
        kept = self.out / run_folder.CHECKPOINT
        good = f"{kept} is the last good checkpoint" if kept.is_file() else "nothing was saved before"
        return (
            f"{self.out}: {what} at step {step} (batch with {', '.join(paths[:3])}, …: all in "
            "not_finite.json): start in another out with a lower optimizer.lr, optimizer.clip or "
            f"precision=fp32; {good}"
        )
