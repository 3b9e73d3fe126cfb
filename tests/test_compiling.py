"""A compiler that fails costs one line, not the run."""

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ssl_retrieval import compiling


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(compiling, "say", lines.append)
    monkeypatch.setattr(compiling, "_failed", False)
    return lines


def test_without_a_compiler_the_function_itself_runs_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    def no_compiler(*args: Tensor) -> Tensor:
        raise RuntimeError("Failed to find\na C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda function, **how: no_compiler)
    double, triple = compiling.compiled(lambda x: 2 * x), compiling.compiled(lambda x: 3 * x)
    assert compiling.works()
    assert double(torch.tensor(4)) == 8
    assert triple(torch.tensor(4)) == 12
    assert not compiling.works()
    assert len(said) == 1
    assert "Failed to find a C++ compiler" in said[0]


def test_running_out_of_memory_is_no_failure_to_compile(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    def full(*args: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(torch, "compile", lambda function, **how: full)
    with pytest.raises(torch.OutOfMemoryError):
        compiling.compiled(lambda x: x)(torch.tensor(4))
    assert compiling.works()
    assert not said


GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "pixels", "is_costly", "expected"),
    [
        (GPU, 1e8, True, ("none", "a short run")),
        (GPU, 1e9, True, ("views", "a run of middle length")),
        (GPU, 1e10, True, ("all", "a long run")),
        # On a GPU the network decides too, however simple the views are.
        (GPU, 1e10, False, ("all", "a long run")),
        (CPU, 1e8, True, ("none", "a short run")),
        (CPU, 1e12, False, ("none", "views are crops alone")),
        (CPU, 1e12, True, ("views", "a long run")),
    ],
)
def test_long_runs_are_compiled(
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
    pixels: float,
    is_costly: bool,
    expected: tuple[str, str],
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/c++" if name == "c++" else None)
    assert compiling.choose("auto", device, pixels, is_costly) == expected
    for wish in compiling.PARTS:
        assert compiling.choose(wish, device, pixels, is_costly) == (wish, "as asked for")


def test_each_thread_of_a_cpu_must_save_the_time_that_compiling_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    for threads, expected in ((1, "views"), (2, "views"), (8, "none")):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert compiling.choose("auto", CPU, 3e9, True)[0] == expected


def test_without_a_cpp_compiler_a_cpu_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert compiling.choose("auto", CPU, 1e12, True) == ("none", "no C++ compiler on the path")


def test_a_function_that_compiles_is_called_compiled(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    asked: list[dict[str, object]] = []

    def compiler(function: Callable[[Tensor], Tensor], **how: object) -> Callable[[Tensor], Tensor]:
        asked.append(how)
        return lambda x: function(x) + 100

    monkeypatch.setattr(torch, "compile", compiler)
    assert compiling.compiled(lambda x: 2 * x, dynamic=False, mode="some")(torch.tensor(4)) == 108
    assert asked == [{"dynamic": False, "mode": "some"}]
    assert compiling.works()
    assert not said
