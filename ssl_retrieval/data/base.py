"""What every dataset's config shares, and the checks on it."""

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from omegaconf import MISSING

from ssl_retrieval.errors import UserError


@dataclass
class DataConfig:
    """The part of a config under ``data``; each dataset's ``Config`` adds its own options.

    Attributes:
        name: The loader: the name of a file in ``ssl_retrieval/data``.
        root: The folder with the images; ``~`` is expanded.
        on_error: What to do with an unreadable image: ``skip`` leaves it out and lists it, ``fail`` stops.
    """

    name: str = MISSING
    root: str = MISSING
    on_error: str = "skip"


def check(cfg: DataConfig) -> None:
    """Refuse values that mean nothing.

    Raises:
        UserError: ``on_error`` or ``limit_per_class`` is wrong.
    """
    one_of("data.on_error", cfg.on_error, ("skip", "fail"))
    limit = getattr(cfg, "limit_per_class", None)
    if limit is not None and limit < 1:
        raise UserError(f"data.limit_per_class={limit}: must be at least 1, or null for all images")


def one_of(key: str, value: str, options: tuple[str, ...]) -> None:
    """Refuse a config value that is not among its options.

    Raises:
        UserError: Names the options, and the nearest one when the value looks misspelt.

    >>> one_of("data.split", "tets", ("train", "test"))
    Traceback (most recent call last):
    ssl_retrieval.errors.UserError: data.split='tets': use one of train, test (did you mean 'test'?)
    """
    if value in options:
        return
    near = get_close_matches(value, options, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise UserError(f"{key}={value!r}: use one of {', '.join(options)}{hint}")


def existing_folder(key: str, value: str) -> Path:
    """Expand ``~`` in a folder given under ``key`` of the config, and insist that it exists.

    Raises:
        UserError: It is not given, does not exist, or is no folder.
    """
    if value in ("", MISSING):
        raise UserError(f"{key} is not set: give the folder, e.g. {key}=~/data/photos")
    folder = Path(value).expanduser()
    if not folder.exists():
        raise UserError(f"{key}={value!r} does not exist: check the path")
    if not folder.is_dir():
        raise UserError(f"{key}={value!r} is a file: give a folder (unpack archives)")
    return folder


def nearby(root: Path, name: str) -> Path | None:
    """Find the folder one level above or below ``root`` that holds an entry ``name``, for hints."""
    near = [root.parent, *sorted(folder for folder in root.iterdir() if folder.is_dir())]
    return next((folder for folder in near if (folder / name).exists()), None)
