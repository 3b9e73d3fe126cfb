"""One process at a time."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

from ssl_retrieval.console import say
from ssl_retrieval.errors import UserError

_POLL_S = 0.5


@contextmanager
def hold(file: Path, refusal: str) -> Iterator[None]:
    """Keep other processes out of a region that asks for the same lock file.

    The system lets go of the lock when the process ends, however that happens. Windows has no such lock.
    The file stays; whoever holds the lock may remove it.

    Args:
        file: The lock file; it and its folder are made when missing.
        refusal: What to tell the second process.

    Raises:
        UserError: Another process holds it.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    file.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = file.open("a")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.close()
            raise UserError(refusal) from None
        except OSError:
            # Some network disks have no locks; going on is allowed all the same.
            break
        if _is_at(handle, file):
            break
        # The holder before removed the file between our opening and locking it.
        handle.close()
    with handle:
        yield


@contextmanager
def in_turn(file: Path, what: str) -> Iterator[None]:
    """Like `hold`, but wait for a process that holds the lock, and say so.

    Args:
        file: The lock file.
        what: What the other process does: ``decoding photos``.
    """
    waits = False
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(hold(file, what))
                break
            except UserError:
                if not waits:
                    say(f"another process is {what}: waiting for it")
                waits = True
                time.sleep(_POLL_S)
        yield


def _is_at(handle: TextIO, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle.fileno()), file.stat())
    except FileNotFoundError:
        return False
