"""Files and folders that are either whole or absent, whenever the process is killed."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ssl_retrieval.errors import UserError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it takes ``path``'s place in one step.

    The temporary name is fixed (``.NAME.partial``), so that a killed run leaves at most one leftover,
    which the next run overwrites.

    Args:
        path: Where the finished file will stand. Its folder is made when missing.

    Yields:
        The path to write to.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "a.txt"
    >>> with atomic_path(target) as partial:
    ...     _ = partial.write_text("whole")
    >>> target.read_text(), partial.exists()
    ('whole', False)
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        with partial.open("r+b") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``folder``; on success it takes ``folder``'s place in one step.

    Of two processes that make the same folder at once one wins, and the other's work is dropped.

    Args:
        folder: Where the finished folder will stand; it does not exist yet. Its parent is made when missing.

    Yields:
        The folder to fill.

    Raises:
        OSError: The parent cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    try:
        yield partial
        partial.chmod(0o755)
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written, before hours of work end there; makes nothing.

    Args:
        folder: It may be missing, as may its parents.

    Raises:
        UserError: It, or the nearest parent that exists, is no folder or may not be written.
    """
    nearest = next(place for place in (folder, *folder.resolve().parents) if place.exists())
    if not nearest.is_dir():
        raise UserError(f"cannot write to {str(folder)!r}: {str(nearest)!r} is a file; choose another out")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(
            f"cannot write to {str(folder)!r}: no permission in {str(nearest)!r}; choose another out"
        )
