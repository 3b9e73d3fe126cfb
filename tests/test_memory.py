"""glibc's allocator is told to keep memory on CPU runs, and only there."""

import ctypes
import sys

import pytest
import torch

from ssl_retrieval.memory import keep_freed


def test_only_for_the_cpu() -> None:
    assert keep_freed(torch.device("meta")) is False


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"),
    reason="glibc alone has these parameters",
)
def test_glibc_takes_it() -> None:
    assert keep_freed(torch.device("cpu")) is True
    blocks = [torch.ones(2**22) for _ in range(3)]
    assert sum(float(block.sum()) for block in blocks) == 3 * 2**22
