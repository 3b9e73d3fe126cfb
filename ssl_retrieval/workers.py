"""Helper processes: how many, and that they end when their parent does."""

import multiprocessing
import os
import signal
import threading


def usable_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def own_cores() -> int:
    """Count this process's share of the cores, at least 1: ``torchrun``'s processes work side by side."""
    return max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def start_worker(_: int = 0) -> None:
    """Prepare a helper process: Ctrl-C is the parent's business, and its end is ours too.

    A parent that is killed tells nobody. Its helpers would wait for work for ever, or hold its locks.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
