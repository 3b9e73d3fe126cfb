"""Images that ``ssl-retrieval data pack`` decoded beforehand, for pretraining.

Nothing is decoded when a run starts::

    ssl-retrieval data pack photos photos.npy size=256
    ssl-retrieval pretrain configs/pretrain/simclr.yaml data.name=packed data.root=photos.npy out=runs/simclr

A pack has no image files, so the stages that read those (embed, evaluate, a validation task) refuse it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from omegaconf import MISSING

from ssl_retrieval.data.base import DataConfig, check
from ssl_retrieval.errors import UserError
from ssl_retrieval.packed import Packed
from ssl_retrieval.packed import open_pack as open_file


@dataclass
class Config(DataConfig):
    """Options of the loader; ``root`` is the ``.npy`` file."""

    name: str = "packed"


def open_pack(cfg: Config) -> Packed:
    """Open the pack; a stage that finds this function in a dataset need not decode anything.

    Raises:
        UserError: The file is missing, cut short, of another version or no pack, or images were left out
            when it was made and ``on_error`` is ``fail``.
    """
    check(cfg)
    if cfg.root in ("", MISSING):
        raise UserError("data.root is not set: give the .npy file that `ssl-retrieval data pack` wrote")
    packed = open_file(Path(cfg.root).expanduser())
    if packed.skipped and cfg.on_error == "fail":
        path, reason = packed.skipped[0]
        raise UserError(
            f"{cfg.root!r} was packed without {path!r} ({reason}): repair it and pack again, or set "
            "data.on_error=skip"
        )
    return packed


def load(cfg: Config) -> NoReturn:
    """Refuse: a task needs image files.

    Raises:
        UserError: Always.
    """
    raise _no_files(cfg)


def images(cfg: Config) -> NoReturn:
    """Refuse: there are no image files; see `open_pack`.

    Raises:
        UserError: Always.
    """
    raise _no_files(cfg)


def _no_files(cfg: Config) -> UserError:
    return UserError(
        f"data.root={cfg.root!r} holds packed pixels, which serve for pretraining only: give the images "
        "themselves here, as data.name=folder data.root=DIR"
    )
