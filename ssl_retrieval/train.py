"""The only training loop: views on the device, one step, checkpoints, exact resume, retrieval watched."""

import dataclasses
import json
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssl_retrieval import (
    backbones,
    checkpoint,
    config,
    defaults,
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
from ssl_retrieval.config import plugin
from ssl_retrieval.console import say
from ssl_retrieval.defaults import Facts, given
from ssl_retrieval.errors import UserError
from ssl_retrieval.images import Packed, pack, report_skipped
from ssl_retrieval.methods.base import BaseMethod
from ssl_retrieval.monitor import Monitor, MonitorConfig
from ssl_retrieval.multi_crop import SMALLEST_IMAGE
from ssl_retrieval.network_input import InputSpec
from ssl_retrieval.run_log import RunLog
from ssl_retrieval.run_state import RunState
from ssl_retrieval.sampler import Sampler

TRIAL_IMAGES = 64
"""Images per step while precision and layout are chosen: enough to tell, and soon done."""


@dataclass
class ModelConfig:
    """The network that is trained.

    Attributes:
        name: timm name.
        weights: Where training starts: ``random``, ``pretrained``, ``offline``, or a file: a weights file,
            or a checkpoint or run of ours.
        image_size: Side of the views in pixels.
        stem: ``auto``, ``small`` or ``standard``.
        patch_size: Side of a ViT's patches in pixels; None = its own, or a smaller one for small images.
        drop_path: Stochastic depth of the student.
        freeze: Stages (after the stem) that keep their weights.
        batchnorm: ``train``, or ``eval`` to keep all running statistics.
    """

    name: str = "???"
    weights: str = "random"
    image_size: int = 224
    stem: str = "auto"
    patch_size: int | None = None
    drop_path: float = 0.0
    freeze: int = 0
    batchnorm: str = "train"


@dataclass
class PretrainConfig:
    """The keys of ``ssl-retrieval pretrain``.

    Attributes:
        out: Folder of the run; the same folder again resumes it.
        seed: Weights, order of images and augmentations follow from it.
        device: ``auto``, ``cpu``, ``cuda``, ….
        data: Dataset section; its training images are used, without labels.
        model: The network.
        method: The objective.
        optimizer: How weights are updated; what is left open follows the method's recipe.
        epochs: Passes over the images; None = by their number.
        batch_size: Images per step, over all processes.
        accumulate: Parts into which a batch is cut, one after the other, when it does not fit in memory.
            Objectives that compare images of a batch see one part at a time.
        sync_batchnorm: In several processes, let batch normalisation see the whole batch.
        pack_size: Side in pixels at which images are kept for training; None = ``model.image_size``.
        precision: ``auto`` (timed at the start), ``fp32``, ``bf16``, or ``fp16`` with scaled loss.
        memory_format: ``auto``, ``contiguous`` or ``channels_last``.
        monitor: How retrieval is watched while training.
        validation: Dataset section of a held-out task for the monitor; without it, training images must
            find themselves.
        save_every_s: Seconds between checkpoints.
        log_every: Steps between lines of ``metrics.jsonl``.
    """

    out: str = "???"
    seed: int = 0
    device: str = "auto"
    data: Any = plugin("dataset")
    model: ModelConfig = field(default_factory=ModelConfig)
    method: Any = plugin("method")
    optimizer: optim.OptimizerConfig = field(default_factory=optim.OptimizerConfig)
    epochs: int | None = None
    batch_size: int = 256
    accumulate: int = 1
    sync_batchnorm: bool = True
    pack_size: int | None = None
    precision: str = "auto"
    memory_format: str = "auto"
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    validation: Any = plugin("dataset")
    save_every_s: float = 60.0
    log_every: int = 10


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
    _check(cfg)
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
        backbone, self.card = _backbone(cfg, _shows_several_sizes(cfg, module))
        self.cfg = cfg = _settle(cfg, module, len(packed.paths), backbone, out)
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


def _shows_several_sizes(cfg: PretrainConfig, module: Any) -> bool:
    """Tell whether the network must take small crops beside large ones."""
    if not getattr(module.Method, "multi_crop", False):
        return False
    local_crops = cfg.method.local_crops
    return local_crops > 0 if local_crops is not None else cfg.model.image_size >= SMALLEST_IMAGE


def _backbone(cfg: PretrainConfig, dynamic_size: bool) -> tuple[nn.Module, checkpoint.Card]:
    """Build the network, say how, and begin the card that goes with its weights."""
    model = cfg.model
    stem, why_stem = backbones.choose_stem(model.stem, model.image_size, model.name, model.weights)
    patch, why_patch = backbones.choose_patch(model.patch_size, model.image_size, model.name, model.weights)
    backbone = backbones.make(
        model.name,
        model.weights,
        image_size=model.image_size,
        stem=stem,
        seed=cfg.seed,
        drop_path=model.drop_path,
        patch_size=patch,
        dynamic_size=dynamic_size,
    )
    how = f"{stem} stem: {why_stem}" if patch is None else f"patches of {patch} px: {why_patch}"
    say(f"{model.name}, {model.weights} weights; {how}")
    backbones.freeze(backbone, model.freeze)
    normal: Any = backbone.pretrained_cfg
    spec = InputSpec(model.image_size, tuple(normal["mean"]), tuple(normal["std"]))
    return backbone, checkpoint.Card(
        backbone=model.name,
        stem=stem,
        patch_size=patch,
        dynamic_size=dynamic_size,
        input=spec.to_dict(),
        method=cfg.method.name,
        start=model.weights,
        seed=cfg.seed,
    )


def _settle(
    cfg: PretrainConfig, module: Any, num_images: int, backbone: nn.Module, out: Path
) -> PretrainConfig:
    """Fill what the config leaves open: as stored with the run, or by the data, announced and stored."""
    stored = run_folder.stored_choices(out)
    if stored is not None:
        return defaults.fill(cfg, stored)[0]
    facts = Facts(
        num_images=num_images,
        batch_size=cfg.batch_size,
        image_size=cfg.model.image_size,
        pretrained=cfg.model.weights != "random",
        transformer=backbones.patch_size(backbone) > 1,
    )
    common = defaults.common(facts)
    if facts.pretrained and (cfg.optimizer.name == "lars" or (cfg.epochs or 0) > 3 * common["epochs"][0]):
        say(
            "  optimizer and epochs of this config look meant for random weights: set them to null for "
            f"learned ones (epochs: {common['epochs'][0]}), or much of what was learned is lost"
        )
    cfg, used = defaults.fill(cfg, common)
    steps = given(cfg.epochs) * (num_images // cfg.batch_size)
    recipe = module.defaults(dataclasses.replace(facts, num_steps=max(1, steps)))
    cfg, more = defaults.fill(cfg, recipe | optim.choices(cfg.optimizer, recipe, facts))
    used |= more
    for key, (value, reason) in used.items():
        if reason:
            say(f"  {key}={value} ({reason})")
    distributed.barrier()
    if distributed.rank() == 0:
        run_folder.store_choices(out, used)
    return cfg


def _check(cfg: PretrainConfig) -> None:
    config.require_sections(cfg, "data", "method")
    for name in ("epochs", "batch_size", "log_every", "accumulate"):
        value = getattr(cfg, name)
        if value is not None and value < 1:
            raise UserError(f"{name}={value}: must be at least 1")
    if cfg.batch_size < 2:
        raise UserError("batch_size=1: contrastive training and batch normalisation need at least 2")
    if cfg.model.image_size < 8:
        raise UserError(f"model.image_size={cfg.model.image_size}: must be at least 8")
    if cfg.pack_size is not None and cfg.pack_size < 8:
        raise UserError(f"pack_size={cfg.pack_size}: must be at least 8, or null for model.image_size")
    backbones.check_name(cfg.model.name)
    # Before an hour goes into decoding: what can be refused without images.
    cfg.monitor.check()
    precision.allowed(cfg.precision, cfg.memory_format)
    optim.check_given(cfg.optimizer)
    if cfg.model.batchnorm not in ("train", "eval"):
        raise UserError(f"model.batchnorm={cfg.model.batchnorm!r}: one of train, eval")
    model = cfg.model
    backbones.choose_stem(model.stem, model.image_size, model.name, model.weights)
    backbones.choose_patch(model.patch_size, model.image_size, model.name, model.weights)
