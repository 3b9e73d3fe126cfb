"""How a run computes: precision, memory layout and compilation, chosen at its start and kept with it."""

import dataclasses
import json
from pathlib import Path

import torch
from torch import nn

from ssl_retrieval import compiling, distributed, precision, run_folder
from ssl_retrieval.atomic import atomic_path
from ssl_retrieval.augment import Output
from ssl_retrieval.console import say
from ssl_retrieval.methods.base import BaseMethod
from ssl_retrieval.train_batches import Batches
from ssl_retrieval.train_config import PretrainConfig
from ssl_retrieval.train_step import forward, view_pixels

TRIAL_IMAGES = 64
"""Images per step while precision and layout are chosen: enough to tell, and soon done."""


def settle_runtime(
    cfg: PretrainConfig, out: Path, method: BaseMethod, batches: Batches, output: Output, device: torch.device
) -> precision.Runtime:
    """Read the stored choice, or make and store it.

    A resumed run must compute as before, or it would end with other weights.

    Args:
        cfg: The run's settled config.
        out: The run's folder.
        method: On the device.
        batches: Give the images of a trial.
        output: What their views are like.
        device: Where the method is.
    """
    file = out / run_folder.RUNTIME
    stored = run_folder.read_json(file)
    if stored is not None:
        return precision.Runtime(**stored)
    distributed.barrier()
    if distributed.world_size() > 1 or "auto" not in (cfg.precision, cfg.memory_format):
        chosen = precision.without_trial(cfg.precision, cfg.memory_format, device)
    else:
        chosen = _try_out(cfg, method, batches, output)
    pixels, is_costly = view_pixels(cfg, method, len(batches.feed.source.paths))
    what, reason = compiling.choose(cfg.compile, device, pixels, is_costly)
    if what != "none":
        say(f"torch.compile: {what} ({reason}); it takes half a minute or more at the start")
    chosen = dataclasses.replace(chosen, compile=what)
    if distributed.rank() == 0:
        with atomic_path(file) as partial:
            partial.write_text(json.dumps(dataclasses.asdict(chosen)))
    return chosen


def _try_out(cfg: PretrainConfig, method: BaseMethod, batches: Batches, output: Output) -> precision.Runtime:
    views = batches.of_numbers(batches.numbers(0)[:TRIAL_IMAGES], output)

    def trial(method: nn.Module, runtime: precision.Runtime) -> None:
        assert isinstance(method, BaseMethod)
        method.zero_grad(set_to_none=True)
        laid_out = [v.contiguous(memory_format=runtime.layout) if v.ndim == 4 else v for v in views]
        forward(method, method, laid_out, cfg, runtime, 0.0)[0].backward()

    return precision.choose(cfg.precision, cfg.memory_format, method, trial, say)
