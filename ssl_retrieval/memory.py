"""Keep freed memory within the process: networks on the CPU ask for the same large blocks again and again."""

import ctypes
import sys

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
