"""The only training loop: views on the device, one step, checkpoints, exact resume."""

import dataclasses
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from ssl_retrieval import backbones, checkpoint, config, devices, memory, optim, plugins, precision
from ssl_retrieval.atomic import atomic_path
from ssl_retrieval.augment import make_views
from ssl_retrieval.config import plugin
from ssl_retrieval.console import say
from ssl_retrieval.errors import UserError
from ssl_retrieval.images import Packed, pack, report_skipped
from ssl_retrieval.methods.base import BaseMethod
from ssl_retrieval.network_input import InputSpec
from ssl_retrieval.run_log import RunLog
from ssl_retrieval.types import digest_of

TRIAL_IMAGES = 64
"""Images per step while precision and layout are chosen: enough to tell, and soon done."""


@dataclass
class ModelConfig:
    """The network that is trained.

    Attributes:
        name: timm name.
        weights: Where training starts: ``random``, ``pretrained``, ``offline`` or a weights file.
        image_size: Side of the views in pixels.
        stem: ``auto``, ``small`` or ``standard``.
        freeze: Stages (after the stem) that keep their weights.
        batchnorm: ``train``, or ``eval`` to keep all running statistics.
    """

    name: str = "???"
    weights: str = "random"
    image_size: int = 224
    stem: str = "auto"
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
        optimizer: How weights are updated.
        epochs: Passes over the images.
        batch_size: Images per step.
        pack_size: Side in pixels at which images are kept for training; None = ``model.image_size``.
        precision: ``auto`` (timed at the start), ``fp32`` or ``bf16``.
        memory_format: ``auto``, ``contiguous`` or ``channels_last``.
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
    epochs: int = 100
    batch_size: int = 256
    pack_size: int | None = None
    precision: str = "auto"
    memory_format: str = "auto"
    save_every_s: float = 60.0
    log_every: int = 10


def pretrain(cfg: PretrainConfig) -> Path:
    """Train, or go on with a run that was stopped.

    Args:
        cfg: See `PretrainConfig`.

    Returns:
        The path of ``checkpoint.safetensors``.

    Raises:
        UserError: A mistake in the config, in the data, or a loss that is not finite.
    """
    _check(cfg)
    out = Path(cfg.out).expanduser()
    _claim(out, cfg)
    device = devices.pick(cfg.device)
    memory.keep_freed(device)
    images = plugins.find("dataset", cfg.data.name).images(cfg.data)
    packed = pack(images, cfg.pack_size or cfg.model.image_size, out / "images.npy", cfg.data.on_error)
    report_skipped(packed.skipped, str(images.root))
    if len(packed.paths) < cfg.batch_size:
        raise UserError(
            f"batch_size={cfg.batch_size} is larger than the {len(packed.paths)} readable training images: "
            "lower batch_size or add images"
        )
    return _Run(cfg, out, device, packed).finish()


class _Run:
    """One training run: everything that changes from step to step."""

    def __init__(self, cfg: PretrainConfig, out: Path, device: torch.device, packed: Packed) -> None:
        self.cfg, self.out, self.device, self.packed = cfg, out, device, packed
        self.stem, why = backbones.choose_stem(
            cfg.model.stem, cfg.model.image_size, cfg.model.name, cfg.model.weights
        )
        backbone = backbones.make(
            cfg.model.name,
            cfg.model.weights,
            image_size=cfg.model.image_size,
            stem=self.stem,
            seed=cfg.seed,
        )
        say(f"{cfg.model.name}, {cfg.model.weights} weights; {self.stem} stem: {why}")
        backbones.freeze(backbone, cfg.model.freeze)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cfg.seed)
            self.method: BaseMethod = plugins.find("method", cfg.method.name).Method(cfg.method, backbone)
        self.method.to(device)
        normal: Any = backbone.pretrained_cfg
        self.input = InputSpec(cfg.model.image_size, tuple(normal["mean"]), tuple(normal["std"]))
        self.optimizer = optim.make(cfg.optimizer, self.method, cfg.batch_size)
        self.peak = optim.peak_lr(cfg.optimizer, cfg.batch_size)
        self.steps_per_epoch = len(packed.paths) // cfg.batch_size
        self.total = self.steps_per_epoch * cfg.epochs
        self.step = 0
        self.seconds = 0.0
        self.order, self.order_epoch = torch.empty(0, dtype=torch.int64), -1
        self.pixels = torch.from_numpy(np.asarray(packed.pixels))

    def finish(self) -> Path:
        """Run what is left of the training."""
        self._resume()
        file = self.out / "checkpoint.safetensors"
        if self.step >= self.total:
            if not file.is_file():
                self._export(file)
            say(f"{self.out}: already trained ({self.step} steps); nothing to do")
            return file
        runtime = self._runtime()
        runtime.place(self.method)
        say(
            f"training on {len(self.packed.paths)} images: {self.cfg.epochs} epochs of "
            f"{self.steps_per_epoch} steps, batch {self.cfg.batch_size}, {runtime.precision} "
            f"{runtime.memory_format}, {self.device}"
        )
        started, saved = time.monotonic() - self.seconds, time.monotonic()
        with RunLog(self.out, self.step, self.total, self.steps_per_epoch, self.cfg.batch_size) as log:
            while self.step < self.total:
                loss, logs, lr = self._train_step(runtime)
                self.step += 1
                value = float(loss)
                if not np.isfinite(value):
                    raise UserError(self._not_finite(f"the loss is {value}"))
                last = self.step == self.total
                save = last or time.monotonic() - saved > self.cfg.save_every_s
                if self.step % self.cfg.log_every == 0 or save or self.step == 1:
                    log.write(self.step, {"loss": value, "lr": lr} | {k: float(v) for k, v in logs.items()})
                log.advance(self.step)
                self.seconds = time.monotonic() - started
                if save:
                    self._save()
                    saved = time.monotonic()
        return file

    def _train_step(self, runtime: precision.Runtime) -> tuple[Tensor, dict[str, Tensor], float]:
        progress = self.step / self.total
        lr = self.peak * optim.lr_factor(progress, self.cfg.optimizer.warmup, self.cfg.optimizer.final_lr)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # Dropout and stochastic depth draw from torch's generator: seeded by the step, a resume repeats it.
        torch.manual_seed(self.cfg.seed * 1_000_003 + self.step)
        self.optimizer.zero_grad(set_to_none=True)
        views = runtime.arrange(self._views(self.step))
        loss, logs = self._forward(self.method, views, runtime, progress)
        loss.backward()
        if self.cfg.optimizer.clip > 0:
            nn.utils.clip_grad_norm_(self.method.parameters(), self.cfg.optimizer.clip)
        self.optimizer.step()
        self.method.after_step((self.step + 1) / self.total)
        return loss.detach(), logs, lr

    def _forward(
        self, method: BaseMethod, views: list[Tensor], runtime: precision.Runtime, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        method.train()
        backbones.train_mode(method.encoder, self.cfg.model.batchnorm)
        with runtime.autocast(self.device):
            output = method.step(views, progress)
        return output.loss, output.logs

    def _batch(self, step: int) -> Tensor:
        """Give the int64 [B] image numbers of a step: a fixed shuffle per epoch."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self.order_epoch:
            generator = torch.Generator().manual_seed(self.cfg.seed * 1_000_003 + epoch)
            self.order = torch.randperm(len(self.packed.paths), generator=generator)
            self.order_epoch = epoch
        return self.order[place * self.cfg.batch_size : (place + 1) * self.cfg.batch_size]

    def _views(self, step: int) -> list[Tensor]:
        numbers = self._batch(step)
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
        file = self.out / "runtime.json"
        if file.is_file():
            return precision.Runtime(**json.loads(file.read_text()))
        views = [view[:TRIAL_IMAGES] for view in self._views(0)]

        def trial(method: nn.Module, runtime: precision.Runtime) -> None:
            assert isinstance(method, BaseMethod)
            method.zero_grad(set_to_none=True)
            self._forward(method, runtime.arrange(views), runtime, 0.0)[0].backward()

        chosen = precision.choose(self.cfg.precision, self.cfg.memory_format, self.method, trial, say)
        with atomic_path(file) as partial:
            partial.write_text(json.dumps(dataclasses.asdict(chosen)))
        return chosen

    def _save(self) -> None:
        if not all(t.isfinite().all() for t in self.method.state_dict().values()):
            raise UserError(self._not_finite("weights are infinite or NaN"))
        # state.pt comes last: once it says that step k is done, the checkpoint of step k is there.
        self._export(self.out / "checkpoint.safetensors")
        state = {
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "images": digest_of(self.packed.paths),
        }
        with atomic_path(self.out / "state.pt") as partial:
            torch.save(state, partial)

    def _export(self, file: Path) -> None:
        card = checkpoint.Card(
            backbone=self.cfg.model.name,
            stem=self.stem,
            input=self.input.to_dict(),
            method=self.cfg.method.name,
            start=self.cfg.model.weights,
            step=self.step,
            train_s=round(self.seconds, 1),
            images=len(self.packed.paths),
            seed=self.cfg.seed,
        )
        checkpoint.save(self.method.encoder, card, file)

    def _resume(self) -> None:
        file = self.out / "state.pt"
        if not file.is_file():
            return
        state = torch.load(file, map_location=self.device, weights_only=True)
        if state["images"] != digest_of(self.packed.paths):
            raise UserError(
                f"{self.out}: the run began with other images than the {len(self.packed.paths)} found now: "
                "use another out, or bring the old images back"
            )
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        if self.step < self.total:
            say(f"{self.out}: going on at step {self.step} of {self.total}")

    def _not_finite(self, what: str) -> str:
        paths = [self.packed.paths[i] for i in self._batch(self.step - 1)[:3].tolist()]
        return (
            f"{self.out}: {what} at step {self.step} (batch with {', '.join(paths)}, …): start in another "
            "out with a lower optimizer.lr, optimizer.clip or precision=fp32; what was saved is kept"
        )


def _check(cfg: PretrainConfig) -> None:
    config.require_sections(cfg, "data", "method")
    for name in ("epochs", "batch_size", "log_every"):
        if getattr(cfg, name) < 1:
            raise UserError(f"{name}={getattr(cfg, name)}: must be at least 1")
    if cfg.batch_size < 2:
        raise UserError("batch_size=1: contrastive training and batch normalisation need at least 2")
    if cfg.model.image_size < 8:
        raise UserError(f"model.image_size={cfg.model.image_size}: must be at least 8")
    if cfg.pack_size is not None and cfg.pack_size < 8:
        raise UserError(f"pack_size={cfg.pack_size}: must be at least 8, or null for model.image_size")
    backbones.check_name(cfg.model.name)


def _claim(out: Path, cfg: PretrainConfig) -> None:
    """Store the config in the run's folder; refuse to go on with another one.

    A run that never came to save anything claims nothing: what stopped it may be the config's mistake.
    """
    file = out / "config.yaml"
    free = {"out", "device", "save_every_s", "log_every"}
    if file.is_file() and (out / "state.pt").is_file():
        before = yaml.safe_load(file.read_text())
        old, new = _flat(before), _flat(config.to_dict(cfg))
        changed = [k for k in sorted(old | new) if old.get(k) != new.get(k) and k not in free]
        if changed:
            key = changed[0]
            more = f" and {len(changed) - 1} more keys" if len(changed) > 1 else ""
            raise UserError(
                f"{out} holds a run with {key}={old.get(key)!r}, now it is {new.get(key)!r}{more}: use "
                "another out, or the old values to resume"
            )
        return
    (out / "runtime.json").unlink(missing_ok=True)
    with atomic_path(file) as partial:
        config.save(cfg, partial)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
