"""torch.compile where it works: the first failure is said in one line, and plain torch goes on."""

import shutil
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

from ssl_retrieval.console import say

_P = ParamSpec("_P")
_R = TypeVar("_R")

PARTS = ("none", "views", "all", "graphs")
"""What is compiled: nothing, the views, the network too, and that with CUDA graphs."""

_FEW = {"cpu": 1e9, "views": 2e8, "all": 5e9}
"""Pixels of a run's views below which compiling costs more than it saves: on the CPU per thread (compiled,
a thread is two minutes faster on 10⁹), on a GPU for the views and for the network."""

_failed = False


def choose(requested: str, device: torch.device, pixels: float, is_costly: bool) -> tuple[str, str]:
    """Choose what to compile.

    Args:
        requested: ``auto``, or the answer.
        device: Where training runs.
        pixels: Pixels of all views of the whole run.
        is_costly: Whether views need more than crops: jitter or blur, which a compiler makes faster.

    Returns:
        One of `PARTS`, and the reason in words.

    >>> choose("auto", torch.device("cpu"), 1e8, True)
    ('none', 'a short run')
    """
    if requested != "auto":
        return requested, "as asked for"
    if device.type == "cuda":
        if pixels < _FEW["views"]:
            return "none", "a short run"
        return ("all", "a long run") if pixels >= _FEW["all"] else ("views", "a run of middle length")
    if not is_costly:
        return "none", "views are crops alone"
    if pixels < _FEW["cpu"] * torch.get_num_threads():
        return "none", "a short run"
    if not any(map(shutil.which, ("g++", "clang++", "c++", "cl"))):
        return "none", "no C++ compiler on the path"
    return "views", "a long run"


def works() -> bool:
    """Tell whether nothing has failed to compile so far in this process."""
    return not _failed


def compiled(
    function: Callable[_P, _R], dynamic: bool | None = True, mode: str | None = None
) -> Callable[_P, _R]:
    """Compile a function at its first call; where that fails, call it as it is from then on.

    Args:
        function: Of tensors.
        dynamic: Whether one compilation serves all sizes (see ``torch.compile``).
        mode: See ``torch.compile``.
    """
    fast = torch.compile(function, dynamic=dynamic, mode=mode)

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if _failed:
            return function(*args, **kwargs)
        try:
            return fast(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers fail in many ways, and none of them stops a run
            give_up(error)
            return function(*args, **kwargs)

    return call


def give_up(error: Exception) -> None:
    """Stop compiling in this process and say why, in one line."""
    global _failed
    if not _failed:
        text = " ".join(str(error).split()) or type(error).__name__
        say(f"torch.compile does not work here, going on without it: {text[:200]}")
    _failed = True
