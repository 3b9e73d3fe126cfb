"""The file of packed images: squares of one size, memory-mapped, with an index beside it."""

import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssl_retrieval.errors import UserError

if TYPE_CHECKING:
    import torch

FORMAT = "ssl_retrieval pack"
VERSION = 2

_AGAIN = "pack the images again (ssl-retrieval data pack)"


@dataclass(frozen=True, eq=False)
class Packed:
    """Images decoded once, all of one size, in one memory-mapped file.

    Attributes:
        pixels: uint8 [N, size, size, 3], RGB, on disk; what is written to it stays in memory.
        paths: Their N ids.
        skipped: (id, reason) of the images that could not be decoded.
        key: Hash of their paths, contents and size; with labels, of these too.
        labels: int64 [N]; None where they are not known, or not to be.
    """

    pixels: NDArray[np.uint8]
    paths: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    key: str = ""
    labels: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        """Check that every path has its pixels."""
        assert self.pixels.dtype == np.uint8
        assert self.pixels.ndim == 4
        assert (self.pixels.shape[0], self.pixels.shape[3]) == (len(self.paths), 3)
        assert self.labels is None or len(self.labels) == len(self.paths)

    @property
    def size(self) -> int:
        """The side of the squares in pixels."""
        return self.pixels.shape[1]

    def tensor(self) -> "torch.Tensor":
        """Give the pixels as uint8 [N, 3, size, size], channels last in memory, without a copy."""
        # Here, for decoding processes import this file and would spend seconds on importing torch.
        import torch

        return torch.from_numpy(np.asarray(self.pixels)).permute(0, 3, 1, 2)


def open_pack(file: Path) -> Packed:
    """Open what `packing.pack` wrote.

    Args:
        file: The ``.npy`` file; its ``.json`` must stand beside it.

    Raises:
        UserError: It is missing, unfinished, cut short, of another version, or no pack.
    """
    if file.is_dir():
        raise UserError(f"{str(file)!r} is a folder: give the .npy file that `ssl-retrieval data pack` wrote")
    if not file.is_file():
        if beside(file, "progress").exists():
            raise UserError(f"{str(file)!r} is not finished: run the same `ssl-retrieval data pack` again")
        raise UserError(
            f"{str(file)!r} does not exist: check the path, or make it: ssl-retrieval data pack FOLDER {file}"
        )
    if not index_file(file).is_file():
        raise UserError(
            f"{str(file)!r} has no index {index_file(file).name!r} beside it: bring it along, or {_AGAIN}"
        )
    paths, skipped, size, key = _read_index(file)
    wanted, found = len(header(len(paths), size)) + len(paths) * row_bytes(size), file.stat().st_size
    if found != wanted:
        what = "cut short" if found < wanted else "longer than its index says"
        raise UserError(f"{str(file)!r} is {what} ({found} of {wanted} bytes): copy it anew, or {_AGAIN}")
    try:
        # Copy-on-write, for torch warns about read-only memory; the file itself never changes.
        pixels = np.load(file, mmap_mode="c")
    except (ValueError, OSError):
        raise UserError(f"{str(file)!r} is damaged: copy it anew, or {_AGAIN}") from None
    if pixels.dtype != np.uint8 or pixels.shape != (len(paths), size, size, 3):
        raise UserError(f"{str(file)!r} does not fit its index {index_file(file).name!r}: {_AGAIN}")
    return Packed(pixels, paths, skipped, key)


def is_foreign(file: Path) -> bool:
    """Tell whether writing a pack to ``file`` would destroy something that is no pack."""
    if index_file(file).exists():
        index = read_json(index_file(file))
        return index is None or _version(index) is None
    return file.exists() and not beside(file, "progress").exists()


def index_file(file: Path) -> Path:
    """Name the index of a pack."""
    return file.with_suffix(".json")


def beside(file: Path, what: str) -> Path:
    """Name a file that stands beside an unfinished pack."""
    return file.with_name(f".{file.name}.{what}")


def header(rows: int, size: int) -> bytes:
    """Make the head of a pack's ``.npy`` file; its length does not depend on ``rows``, for numpy pads it."""
    out = BytesIO()
    shape = (rows, size, size, 3)
    np.lib.format.write_array_header_1_0(out, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return out.getvalue()


def row_bytes(size: int) -> int:
    """Count the bytes of one image."""
    return size * size * 3


def read_json(file: Path) -> dict[str, Any] | None:
    """Read a mapping; None when it is missing or damaged."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _read_index(file: Path) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...], int, str]:
    index = read_json(index_file(file))
    damaged = f"{str(index_file(file))!r} is damaged: bring the right one along, or {_AGAIN}"
    if index is None:
        raise UserError(damaged)
    version = _version(index)
    if version is None:
        raise UserError(
            f"{str(file)!r} is no pack, for {index_file(file).name!r} is no index of one: {_AGAIN}"
        )
    if version != VERSION:
        raise UserError(
            f"{str(file)!r} is a pack of version {version}, this program reads version {VERSION}: {_AGAIN}"
        )
    try:
        paths = tuple(map(str, index["paths"]))
        skipped = tuple((str(path), str(reason)) for path, reason in index["skipped"])
        return paths, skipped, int(index["size"]), str(index["key"])
    except (KeyError, TypeError, ValueError):
        raise UserError(damaged) from None


def _version(index: dict[str, Any]) -> object:
    """Give the version of an index; None when it is none of ours."""
    if index.get("format") == FORMAT:
        return index.get("version")
    # The first version did not name itself.
    return 1 if index.keys() == {"key", "size", "paths", "skipped"} else None
