"""Image lists of different folders under one root, which a task's queries and gallery must share."""

import os
from pathlib import Path

from ssl_retrieval.errors import UserError
from ssl_retrieval.types import ImageSet


def common_root(first: Path, second: Path, second_key: str) -> Path:
    """Find the lowest folder that holds both.

    Args:
        first: The folder given as ``data.root``.
        second: Another one.
        second_key: The config key that gives it.

    Raises:
        UserError: They lie on different drives.
    """
    try:
        return Path(os.path.commonpath([first.resolve(), second.resolve()]))
    except ValueError:
        raise UserError(
            f"data.root={str(first)!r} and {second_key}={str(second)!r} share no parent folder: "
            "put both on one drive"
        ) from None


def paths_below(root: Path, images: ImageSet) -> tuple[str, ...]:
    """Give the images' paths relative to a folder that holds their own root."""
    prefix = images.root.resolve().relative_to(root)
    return tuple((prefix / path).as_posix() for path in images.paths)
