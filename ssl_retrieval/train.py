"""The only training loop: views on the device, one step, checkpoints, exact resume, retrieval watched."""

import dataclasses
import json
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssl_retrieval import (
    checkpoint,
    config,
    devices,
    distributed,
    memory,
    optim,
    plugins,
    precision,
    run_folder,
)
from ssl_retrieval.atomic import atomic_path, require_writable
from ssl_retrieval.augment import make_views
from ssl_retrieval.console import say
from ssl_retrieval.defaults import given
from ssl_retrieval.errors import UserError
from ssl_retrieval.images import Packed, pack, report_skipped
from ssl_retrieval.methods.base import BaseMethod
from ssl_retrieval.monitor import Monitor
from ssl_retrieval.network_input import InputSpec
from ssl_retrieval.run_log import RunLog
from ssl_retrieval.run_state import RunState
from ssl_retrieval.sampler import Sampler
from ssl_retrieval.train_config import ModelConfig as ModelConfig
from ssl_retrieval.train_config import PretrainConfig as PretrainConfig
from ssl_retrieval.train_config import check
from ssl_retrieval.train_setup import build_backbone, settle

TRIAL_IMAGES = 64
"""Images per step while precision and layout are chosen: enough to tell, and soon done."""


def pretrain(cfg: PretrainConfig) -> Path:
    """Train, or go on with a run that was stopped.

    Under ``torchrun`` every process calls it, and the first one writes.

    Args:
        cfg: See `PretrainConfig`.

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
        packed = _pack(cfg, out)
        try:
            return _Run(cfg, out, device, packed, share).finish()
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"out of memory on {device} with {share} images at a time: set "
                f"accumulate={2 * cfg.accumulate}, or a smaller batch_size or model.image_size"
            ) from error


def _pack(cfg: PretrainConfig, out: Path) -> Packed:
    images = plugins.find("dataset", cfg.data.name).images(cfg.data)

    def read() -> Packed:
        return pack(images, cfg.pack_size or cfg.model.image_size, out / "images.npy", cfg.data.on_error)

    if distributed.rank() == 0:
        packed = read()
        report_skipped(packed.skipped, str(images.root))
    distributed.barrier()
    packed = packed if distributed.rank() == 0 else read()
    if len(packed.paths) < cfg.batch_size:
        raise UserError(
            f"batch_size={cfg.batch_size} is larger than the {len(packed.paths)} readable training images: "
            "lower batch_size or add images"
        )
    distributed.require_same(packed.key, "the training images")
    return packed


class _Run:
    """One training run: everything that changes from step to step."""

    def __init__(
        self, cfg: PretrainConfig, out: Path, device: torch.device, packed: Packed, share: int
    ) -> None:
        self.out, self.device, self.packed, self.share = out, device, packed, share
        self.first = distributed.rank() == 0
        module = plugins.find("method", cfg.method.name)
        backbone, self.card = build_backbone(cfg, module)
        self.cfg = cfg = settle(cfg, module, len(packed.paths), backbone, out)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cfg.seed)
            method: BaseMethod = module.Method(cfg.method, backbone)
        if cfg.sync_batchnorm:
            distributed.synchronise_batchnorm(method, device)
        self.method = method.to(device)
        self.input = InputSpec.from_dict(self.card.input)
        self.optimizer = optim.make(cfg.optimizer, method, cfg.batch_size, device.type)
        self.sampler = Sampler(len(packed.paths), cfg.batch_size, cfg.seed)
        self.total = self.sampler.steps_per_epoch * given(cfg.epochs)
        self.state = RunState(out, packed.key, f"{cfg.method.name} on {cfg.model.name}")
        self.scaler = torch.amp.GradScaler(device.type, enabled=cfg.precision == "fp16")
        self.pixels = torch.from_numpy(np.asarray(packed.pixels))
        self.monitor = self._make_monitor()

    @property
    def step(self) -> int:
        """Count the steps done."""
        return self.state.step

    def finish(self) -> Path:
        """Run what is left of the training."""
        self.state.resume(self.method, self.optimizer, self.scaler, self.device)
        distributed.require_same(f"{self.step} of {self.total}", "the step to go on from")
        file = self.out / run_folder.CHECKPOINT
        if self.step >= self.total:
            if not file.is_file() and self.first:
                self._export(file)
            say(f"{self.out}: already trained ({self.step} steps); nothing to do")
            return file
        if self.monitor is not None and self.state.monitor:
            self.monitor.load_state_dict(self.state.monitor)
        if self.step:
            say(f"{self.out}: going on at step {self.step} of {self.total}")
        runtime = self._runtime()
        runtime.place(self.method)
        say(
            f"training on {len(self.packed.paths)} images: {self.cfg.epochs} epochs of "
            f"{self.sampler.steps_per_epoch} steps, batch {self.cfg.batch_size}, {runtime.precision} "
            f"{runtime.memory_format}, {self.device}"
            + (f", {distributed.world_size()} processes" if distributed.world_size() > 1 else "")
        )
        self._loop(runtime)
        self._say_end()
        return file

    def _loop(self, runtime: precision.Runtime) -> None:
        started, saved = time.monotonic() - self.state.seconds, time.monotonic()
        stepper = self._stepper()
        with RunLog(
            self.out,
            self.step,
            self.total,
            self.sampler.steps_per_epoch,
            self.cfg.batch_size,
            writes=self.first,
        ) as log:
            if self.step == 0:
                self._watch(log)
            while self.step < self.total:
                loss, logs, rates = self._train_step(stepper, runtime)
                self.state.step += 1
                value = float(distributed.mean(loss))
                if not np.isfinite(value):
                    raise UserError(self._not_finite(f"the loss is {value}"))
                last = self.step == self.total
                save = last or time.monotonic() - saved > self.cfg.save_every_s
                if self.step % self.cfg.log_every == 0 or save or self.step == 1:
                    log.write(self.step, {"loss": value} | rates | {k: float(v) for k, v in logs.items()})
                log.advance(self.step, value)
                self.state.seconds = time.monotonic() - started
                self._watch(log)
                if save and self.first:
                    self._save()
                    saved = time.monotonic()
            distributed.barrier()

    def _stepper(self) -> nn.Module:
        if distributed.world_size() == 1:
            return self.method
        return distributed.parallel(self.method)

    def _train_step(
        self, stepper: nn.Module, runtime: precision.Runtime
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, float]]:
        cfg, progress = self.cfg, self.step / self.total
        lr, decay = optim.schedule(cfg.optimizer, self.optimizer, progress)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for part in range(cfg.accumulate):
            self._seed_dropout(part)
            views = runtime.arrange(self._views(self.step, part))
            waits = part + 1 < cfg.accumulate and isinstance(stepper, DistributedDataParallel)
            with stepper.no_sync() if waits else nullcontext():  # type: ignore[operator]
                loss, logs = self._forward(stepper, self.method, views, runtime, progress)
                self.scaler.scale(loss / cfg.accumulate).backward()
            total += loss.detach() / cfg.accumulate
        self.scaler.unscale_(self.optimizer)
        optim.clip_gradients(cfg.optimizer, self.method)
        self.method.before_update(progress)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.method.after_step((self.step + 1) / self.total)
        return total, logs, {"lr": lr, "weight_decay": decay}

    def _seed_dropout(self, part: int) -> None:
        # Dropout and stochastic depth draw from torch's generator: seeded by the step, a resume repeats it.
        place = (self.step * distributed.world_size() + distributed.rank()) * self.cfg.accumulate + part
        torch.manual_seed(self.cfg.seed * 1_000_003 + place)

    def _forward(
        self,
        stepper: nn.Module,
        method: BaseMethod,
        views: list[Tensor],
        runtime: precision.Runtime,
        progress: float,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        method.set_mode(self.cfg.model.batchnorm)
        with runtime.autocast(self.device):
            loss, logs = stepper(views, progress)
        return loss, logs

    def _views(self, step: int, part: int = 0) -> list[Tensor]:
        """Make this process's views of one part of a step's batch."""
        begin = (distributed.rank() * self.cfg.accumulate + part) * self.share
        numbers = self.sampler.batch(step)[begin : begin + self.share]
        return make_views(
            self.pixels[numbers].to(self.device, non_blocking=True),
            self.method.views(self.cfg.model.image_size),
            seed=self.cfg.seed,
            step=step,
            samples=numbers.to(self.device),
            mean=self.input.mean,
            std=self.input.std,
        )

    def _runtime(self) -> precision.Runtime:
        """Read the stored choice of precision and layout, or make and store it.

        A resumed run must compute as before, or it would end with other weights.
        """
        file = self.out / run_folder.RUNTIME
        stored = run_folder.read_json(file)
        if stored is not None:
            return precision.Runtime(**stored)
        distributed.barrier()
        if distributed.world_size() > 1:
            chosen = precision.without_trial(self.cfg.precision, self.cfg.memory_format, self.device)
        else:
            views = [view[:TRIAL_IMAGES] for view in self._views(0)]

            def trial(method: nn.Module, runtime: precision.Runtime) -> None:
                assert isinstance(method, BaseMethod)
                method.zero_grad(set_to_none=True)
                self._forward(method, method, runtime.arrange(views), runtime, 0.0)[0].backward()

            chosen = precision.choose(self.cfg.precision, self.cfg.memory_format, self.method, trial, say)
        if self.first:
            with atomic_path(file) as partial:
                partial.write_text(json.dumps(dataclasses.asdict(chosen)))
        return chosen

    def _make_monitor(self) -> Monitor | None:
        if not self.first:
            return None
        return Monitor(
            self.cfg.monitor,
            self.input,
            self.device,
            out=self.out,
            packed=self.packed,
            validation=self.cfg.validation,
            seed=self.cfg.seed,
            advice=self.method.advice,
        )

    def _watch(self, log: RunLog) -> None:
        """Look at retrieval when it is time to, and keep the best weights."""
        monitor = self.monitor
        if monitor is None or not monitor.due(
            self.step, self.sampler.steps_per_epoch, self.total, self.cfg.batch_size
        ):
            return
        self._require_finite()
        result = monitor.check(self.method.networks()[self.method.kept], self.step)
        log.watch(self.step, result.values, monitor.key)
        if result.warning:
            say(f"step {self.step}: {result.warning}")
        self.state.scores = {"step": float(self.step)} | result.values
        self.state.monitor = monitor.state_dict()
        value = result.values[monitor.key]
        if np.isfinite(value) and (self.state.best is None or value > self.state.best[0]):
            self.state.best = (value, self.step)
            self._export(self.out / run_folder.BEST)

    def _say_end(self) -> None:
        if self.monitor is None or self.state.best is None:
            return
        key, (value, step) = self.monitor.key, self.state.best
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
        if not all(t.isfinite().all() for t in self.method.state_dict().values()):
            raise UserError(self._not_finite("weights are infinite or NaN"))

    def _export(self, file: Path) -> None:
        card = dataclasses.replace(
            self.card,
            network=self.method.kept,
            step=self.step,
            train_s=round(self.state.seconds, 1),
            scores=self.state.scores,
            recipe=config.to_dict(self.cfg),
            images=len(self.packed.paths),
            data=self.packed.key,
        )
        with run_folder.writing(self.out):
            checkpoint.save(self.method.networks()[self.method.kept], card, file)

    def _not_finite(self, what: str) -> str:
        paths = [self.packed.paths[i] for i in self.sampler.batch(self.step - 1).tolist()]
        if self.first:
            with atomic_path(self.out / "not_finite.json") as partial:
                partial.write_text(json.dumps({"step": self.step, "batch": paths}, indent=1))
        kept = self.out / run_folder.CHECKPOINT
        good = f"{kept} is the last good checkpoint" if kept.is_file() else "nothing was saved before"
        return (
            f"{self.out}: {what} at step {self.step} (batch with {', '.join(paths[:3])}, …: all in "
            "not_finite.json): start in another out with a lower optimizer.lr, optimizer.clip or "
            f"precision=fp32; {good}"
        )
