"""Keep freed memory within the process: networks on the CPU ask for the same large blocks again and again."""

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt(3)."""


def keep_freed(device: torch.device) -> bool:
    """Stop glibc from handing every large activation back to the kernel and fetching it anew.

    Page faults then cost more than the arithmetic: on two virtual cores EfficientNet-lite0 at 224 px makes
    59 images/s without this and 168 with it (``benchmarks/cpu_memory.py``). The price is that the process
    keeps its peak memory.

    Args:
        device: Where the network runs; only the CPU profits.

    Returns:
        Whether the C library took it; other libraries than glibc are left alone.
    """
    if device.type != "cpu" or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def reset_peak() -> None:
    """Give freed memory back and start counting `peak_rss_mib` anew; only Linux can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_rss_mib() -> float:
    """Give the largest memory since `reset_peak`; of the whole run on macOS, NaN on Windows."""
    if sys.platform == "win32":
        return float("nan")
    # Some kernels that only look like Linux do not tell.
    with suppress(OSError, IndexError):
        status = Path("/proc/self/status").read_text()
        return round(int(status.partition("VmHWM:")[2].split()[0]) / 2**10, 1)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, other systems KiB.
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
