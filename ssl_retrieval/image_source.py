"""Whether a run trains from packed squares or from a stream of photos: by size and memory, in words."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np

from ssl_retrieval.images import header_sizes
from ssl_retrieval.types import ImageSet

SOURCES = ("packed", "stream")

_SAMPLED = 200


def choose(
    requested: str,
    num_images: int,
    pack_size: int,
    view_size: int,
    short_sides: Sequence[int],
    free_bytes: int,
) -> tuple[str, str]:
    """Choose where training images come from.

    Packed images cost no decoding, but they must be decoded once and held; a stream decodes in every epoch,
    and cuts from the whole photo at full resolution.

    Args:
        requested: ``auto``, or the answer.
        num_images: N.
        pack_size: Side of the squares in pixels if they were packed.
        view_size: Side of the largest view.
        short_sides: Short sides in pixels of some of the photos, for the words; may be empty.
        free_bytes: Free memory or free disk space, whichever is less.

    Returns:
        ``packed`` or ``stream``, and the reason.

    >>> choose("auto", 50_000, 32, 32, [32], 16 * 10**9)
    ('packed', '50000 images at 32 px take 0.15 GB of 16.0 GB free')
    >>> choose("stream", 50_000, 32, 32, [32], 16 * 10**9)
    ('stream', 'as asked for')
    """
    assert requested in ("auto", *SOURCES)
    if requested != "auto":
        return requested, "as asked for"
    needed = num_images * pack_size**2 * 3
    what = f"{num_images} images at {pack_size} px"
    if needed <= free_bytes / 4:
        return "packed", f"{what} take {_gb(needed)} of {_gb(free_bytes)} free"
    photos = f"; photos have {median(short_sides):.0f} px for views of {view_size} px" if short_sides else ""
    return "stream", f"{what} would take {_gb(needed)}, more than a quarter of {_gb(free_bytes)} free{photos}"


def sample_short_sides(images: ImageSet) -> list[int]:
    """Look at up to 200 headers, evenly spread: the short sides in pixels of what can be read."""
    places = np.unique(np.linspace(0, len(images) - 1, _SAMPLED).round().astype(np.int64))
    return [min(size) for size in header_sizes(images.take(places)) if not isinstance(size, str)]


def free_bytes(folder: Path) -> int:
    """Tell how much fits both into memory and onto the disk of ``folder``, which may not exist yet."""
    nearest = next(place for place in (folder, *folder.resolve().parents) if place.exists())
    return min(_free_memory(), shutil.disk_usage(nearest).free)


def _free_memory() -> int:
    limits = []
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        limits.append(int(lines["MemAvailable"].split()[0]) * 1024)
    # A container's limit is below what the machine has.
    group = Path("/sys/fs/cgroup")
    try:
        most = int((group / "memory.max").read_text())
        limits.append(max(0, most - int((group / "memory.current").read_text())))
    except (OSError, ValueError):
        pass
    return min(limits) if limits else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gb(count: float) -> str:
    return f"{count / 1e9:.{1 if count >= 1e9 else 2}f} GB"
