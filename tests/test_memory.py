"""glibc's allocator is told to keep memory on CPU runs, and only there; how large it was at most."""

import ctypes
import mmap
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_retrieval.memory import keep_freed, peak_rss_mib, reset_peak


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


def test_the_peak_is_counted_anew() -> None:
    def touch(mebibytes: int) -> None:
        # Straight from the kernel, and given back to it: allocators may keep what is freed.
        with mmap.mmap(-1, mebibytes * 2**20) as block:
            block[:: mmap.PAGESIZE] = bytes(len(block) // mmap.PAGESIZE)

    touch(400)
    high = peak_rss_mib()
    assert high > 400
    reset_peak()
    low = peak_rss_mib()
    if low > high - 200:
        pytest.skip("this kernel does not count anew")
    touch(200)
    assert low + 150 < peak_rss_mib() < high


def test_the_peak_is_that_of_the_run_where_the_kernel_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "VmRSS: 5 kB")
    assert peak_rss_mib() > 10

    def refuse(*_: Any, **__: Any) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", refuse)
    assert peak_rss_mib() > 10
    monkeypatch.setattr(sys, "platform", "win32")
    assert np.isnan(peak_rss_mib())


def test_a_kernel_that_does_not_count_anew_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refuse)
    reset_peak()
