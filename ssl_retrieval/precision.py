"""Choose number format and memory layout by timing real steps: the best differs by machine and network."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ssl_retrieval.errors import UserError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
AUTOMATIC = ("fp32", "bf16")
"""What ``auto`` tries: fp16 needs its loss scaled, and is for GPUs without bf16."""
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Runtime:
    """How a step computes.

    Attributes:
        precision: Of the autocast region.
        memory_format: Of weights and views.
        compile: One of `compiling.PARTS`.
    """

    precision: str
    memory_format: str
    compile: str = "none"

    @property
    def layout(self) -> torch.memory_format:
        """Give ``memory_format`` as torch has it."""
        return LAYOUTS[self.memory_format]

    def autocast(self, device: torch.device) -> torch.autocast:
        """Open the region in which the network computes in ``precision``."""
        return torch.autocast(device.type, PRECISIONS[self.precision], enabled=self.precision != "fp32")

    def place(self, module: nn.Module) -> None:
        """Lay out a module's weights."""
        module.to(memory_format=self.layout)


def without_trial(precision: str, memory_format: str, device: torch.device) -> Runtime:
    """Choose by the device alone: several processes cannot time steps each for itself.

    Args:
        precision: ``auto`` = bf16 on GPUs that compute in it, else fp32.
        memory_format: ``auto`` = ``channels_last``.
        device: Where the network runs.

    Raises:
        UserError: Unknown values.
    """
    allowed(precision, memory_format)
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return Runtime(
        ("bf16" if fast else "fp32") if precision == "auto" else precision,
        "channels_last" if memory_format == "auto" else memory_format,
    )


def choose(
    precision: str,
    memory_format: str,
    method: nn.Module,
    step: Callable[[nn.Module, Runtime], None],
    say: Callable[[str], None],
) -> Runtime:
    """Time one warm and two counted steps of every allowed combination and take the fastest.

    The combinations take turns: whatever else the machine does for a second then slows down a step of each,
    not all steps of one.

    Args:
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        memory_format: ``auto``, ``contiguous`` or ``channels_last``.
        method: What is trained; the trials run on copies of it.
        step: Runs forward and backward once.
        say: Prints a line.

    Raises:
        UserError: Unknown values.
    """
    precisions, layouts = allowed(precision, memory_format)
    options = [Runtime(p, layout) for p in precisions for layout in layouts]
    if len(options) == 1:
        return options[0]
    seconds = {option: _seconds(step, method, option) for option in options}
    # The first step pays for set-up; only what is slower by far is not worth two more.
    promising = [option for option in options if seconds[option] <= 20 * min(seconds.values())]
    rounds = [{option: _seconds(step, method, option) for option in promising} for _ in range(2)]
    seconds |= {option: min(found[option] for found in rounds) for option in promising}
    best = min(options, key=lambda option: seconds[option])
    timings = ", ".join(f"{o.precision} {o.memory_format} {seconds[o]:.2f} s" for o in options)
    say(f"one trial step takes: {timings}; chosen: {best.precision} {best.memory_format}")
    return best


def allowed(precision: str, memory_format: str) -> tuple[list[str], list[str]]:
    """List the precisions and layouts that a config leaves to choose from.

    Raises:
        UserError: Unknown values.
    """
    precisions = list(AUTOMATIC) if precision == "auto" else [precision]
    layouts = list(LAYOUTS) if memory_format == "auto" else [memory_format]
    if not set(precisions) <= set(PRECISIONS) or not set(layouts) <= set(LAYOUTS):
        raise UserError(
            f"precision={precision!r}, memory_format={memory_format!r}: one of auto, "
            f"{', '.join(PRECISIONS)} and of auto, {', '.join(LAYOUTS)}"
        )
    return precisions, layouts


def _seconds(step: Callable[[nn.Module, Runtime], None], method: nn.Module, option: Runtime) -> float:
    trial = copy.deepcopy(method)
    option.place(trial)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    step(trial, option)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
