"""The choice of number format and layout follows the clock, not what else happens meanwhile."""

import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

from ssl_retrieval import precision
from ssl_retrieval.precision import Runtime

SECONDS = {("fp32", "contiguous"): 4.0, ("fp32", "channels_last"): 3.0}
SECONDS |= {("bf16", "contiguous"): 2.0, ("bf16", "channels_last"): 1.0}
Step = Callable[[nn.Module, Runtime], None]


class Clock:
    """Time that passes only when a step is taken; ``slow`` lists the steps that take ten times as long."""

    def __init__(self, slow: set[int], seconds: dict[tuple[str, str], float]) -> None:
        self.now, self.slow, self.seconds = 0.0, slow, seconds
        self.taken: list[tuple[str, str]] = []

    def perf_counter(self) -> float:
        return self.now

    def step(self, method: nn.Module, runtime: Runtime) -> None:
        kind = (runtime.precision, runtime.memory_format)
        self.now += self.seconds[kind] * (10 if len(self.taken) in self.slow else 1)
        self.taken.append(kind)


def chosen(
    monkeypatch: pytest.MonkeyPatch, slow: set[int], seconds: dict[tuple[str, str], float] = SECONDS
) -> tuple[Runtime, Clock]:
    clock = Clock(slow, seconds)
    monkeypatch.setattr(time, "perf_counter", clock.perf_counter)
    found = precision.choose("auto", "auto", nn.Conv2d(3, 4, 3), clock.step, lambda line: None)
    return found, clock


@pytest.mark.parametrize("begin", range(12))
def test_a_busy_moment_does_not_decide(monkeypatch: pytest.MonkeyPatch, begin: int) -> None:
    # As long as three steps in a row: before there were turns, all of one combination's.
    found, _ = chosen(monkeypatch, set(range(begin, begin + 3)))
    assert found == Runtime("bf16", "channels_last")


def test_what_is_slower_by_far_gets_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    found, clock = chosen(monkeypatch, set(), SECONDS | {("bf16", "channels_last"): 100.0})
    assert found == Runtime("bf16", "contiguous")
    assert clock.taken.count(("bf16", "channels_last")) == 1


def test_the_network_itself_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = nn.Conv2d(3, 4, 3)
    seen: list[bool] = []

    def step(method: nn.Module, runtime: Runtime) -> None:
        assert method is not conv
        weight = next(method.parameters())
        seen.append(weight.is_contiguous(memory_format=torch.channels_last))
        weight.data.zero_()

    precision.choose("fp32", "auto", conv, step, lambda line: None)
    assert seen == [False, True] * 3
    assert conv.weight.is_contiguous()
    assert conv.weight.abs().sum() > 0
