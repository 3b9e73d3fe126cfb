"""Choose number format and memory layout by timing real steps: the best differs by machine and network."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssl_retrieval.errors import UserError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Runtime:
    """How a step computes: ``precision`` of the autocast region and ``memory_format``."""

    precision: str
    memory_format: str

    def autocast(self, device: torch.device) -> torch.autocast:
        """Open the region in which the network computes in ``precision``."""
        return torch.autocast(device.type, PRECISIONS[self.precision], enabled=self.precision != "fp32")

    def place(self, module: nn.Module) -> None:
        """Lay out a module's weights."""
        module.to(memory_format=LAYOUTS[self.memory_format])

    def arrange(self, views: list[Tensor]) -> list[Tensor]:
        """Lay out float [B, 3, S, S] views."""
        return [view.contiguous(memory_format=LAYOUTS[self.memory_format]) for view in views]


def choose(
    precision: str,
    memory_format: str,
    method: nn.Module,
    step: Callable[[nn.Module, Runtime], None],
    say: Callable[[str], None],
) -> Runtime:
    """Time one warm and two counted steps of every allowed combination and take the fastest.

    Args:
        precision: ``auto``, ``fp32`` or ``bf16``.
        memory_format: ``auto``, ``contiguous`` or ``channels_last``.
        method: What is trained; the trials run on copies of it.
        step: Runs forward and backward once.
        say: Prints a line.

    Raises:
        UserError: Unknown values.
    """
    precisions = list(PRECISIONS) if precision == "auto" else [precision]
    layouts = list(LAYOUTS) if memory_format == "auto" else [memory_format]
    if not set(precisions) <= set(PRECISIONS) or not set(layouts) <= set(LAYOUTS):
        raise UserError(
            f"precision={precision!r}, memory_format={memory_format!r}: one of auto, "
            f"{', '.join(PRECISIONS)} and of auto, {', '.join(LAYOUTS)}"
        )
    options = [Runtime(p, layout) for p in precisions for layout in layouts]
    if len(options) == 1:
        return options[0]
    seconds: dict[Runtime, float] = {}
    for option in options:
        trial = copy.deepcopy(method)
        option.place(trial)
        first = _seconds(step, trial, option)
        # The first step pays for set-up; only what is slower by far is not worth two more.
        hopeless = seconds and first > 20 * min(seconds.values())
        seconds[option] = first if hopeless else min(_seconds(step, trial, option) for _ in range(2))
    best = min(options, key=lambda option: seconds[option])
    timings = ", ".join(f"{o.precision} {o.memory_format} {seconds[o]:.2f} s" for o in options)
    say(f"one trial step takes: {timings}; chosen: {best.precision} {best.memory_format}")
    return best


def _seconds(step: Callable[[nn.Module, Runtime], None], method: nn.Module, option: Runtime) -> float:
    start = time.perf_counter()
    step(method, option)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
