"""From image files to pixels: listing, decoding, and packing a training set into one array file."""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ssl_retrieval.atomic import atomic_path
from ssl_retrieval.console import progress_bar, say
from ssl_retrieval.errors import ImageError, UserError
from ssl_retrieval.types import ImageSet, digest_of

MAX_PIXELS = 200_000_000
"""Larger images are refused before they are decoded."""

# Pillow's own limit warns from 89 megapixels on, once per process and in the middle of a progress bar;
# `load_image` checks every image against MAX_PIXELS instead.
Image.MAX_IMAGE_PIXELS = None

# Named, because Pillow would otherwise try every format it knows, EPS through an external program too.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")

_SUFFIXES = "jpg jpeg jpe jfif png webp bmp gif tif tiff ppm pgm pbm avif jp2"
IMAGE_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())
"""What an image's file name ends with, in lower case; the comparison ignores case."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_CHUNK = 256


def load_image(path: Path) -> Image.Image:
    """Decode one image file to upright 8-bit RGB.

    Transparency is composited on white, an animation gives its first frame, the EXIF orientation is
    applied, colour profiles are not. Grey images of more than 8 bits are scaled: 16-bit from 0..65535,
    floating point from 0..1 (or 0..255 when it fits that), anything else from its own minimum and
    maximum; what is not finite becomes 0.

    Args:
        path: The file. Its content decides the format, not its suffix.

    Returns:
        A PIL image of mode RGB.

    Raises:
        ImageError: The file is missing, empty, no image, damaged or larger than ``MAX_PIXELS``. The text
            is the reason, without the path.
    """
    try:
        with path.open("rb") as file:
            return _decode(file)
    except FileNotFoundError:
        raise ImageError("file does not exist") from None
    except PermissionError:
        raise ImageError("permission denied") from None
    except IsADirectoryError:
        raise ImageError("is a folder") from None
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from None


def _decode(file: BinaryIO) -> Image.Image:
    if os.fstat(file.fileno()).st_size == 0:
        raise ImageError("empty file (0 bytes)")
    try:
        image = Image.open(file, formats=_FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ImageError(f"too large: {width}x{height} pixels (at most {MAX_PIXELS})")
        image.load()
        return _to_rgb(_turn_upright(image))
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise ImageError("not an image") from None
    except Exception as error:  # decoders meet arbitrary bytes and raise nearly any type
        reason = str(error) or type(error).__name__
        is_cut_short = isinstance(error, EOFError) or "truncated" in reason.lower()
        raise ImageError(f"{'truncated' if is_cut_short else 'cannot be decoded'}: {reason}") from None


def _turn_upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata, of any kind, leaves the pixels readable
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_grey_to_uint8(image)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _grey_to_uint8(image: Image.Image) -> NDArray[np.uint8]:
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    nominal = (1.0, 255.0) if image.mode == "F" else (65535.0,)
    white = next((limit for limit in nominal if low >= 0 and high <= limit), None)
    if white is None:
        values, white = values - low, (high - low) or 1.0
    return np.rint(values * (255.0 / white)).astype(np.uint8)


def shrink(image: Image.Image, short_side: int | None) -> Image.Image:
    """Reduce an image, antialiased, so that its short side is at most ``short_side`` pixels.

    Args:
        image: Any RGB image.
        short_side: The limit; None leaves every image as it is.

    Returns:
        The reduced image, or the very same one when it is small enough.

    >>> shrink(Image.new("RGB", (400, 300)), 150).size
    (200, 150)
    >>> shrink(Image.new("RGB", (400, 300)), 600).size
    (400, 300)
    """
    shortest = min(image.size)
    if short_side is None or shortest <= short_side:
        return image
    width, height = (round(side * short_side / shortest) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def list_images(root: Path) -> list[str]:
    """Find the image files under a folder, at any depth.

    Hidden files and folders and ``__MACOSX`` are left out; linked folders, and linked files that lie
    outside ``root``, are not followed (which is said).

    Args:
        root: The folder.

    Returns:
        POSIX paths relative to ``root``, in natural order: ``a/2.jpg`` before ``a/10.jpg``.

    Raises:
        UserError: The folder does not exist, is a file, cannot be read, or holds no image.
    """
    if not root.exists():
        raise UserError(f"image folder {str(root)!r} does not exist: check the path")
    if not root.is_dir():
        raise UserError(f"{str(root)!r} is a file: give the folder of images (unpack archives)")
    paths: list[str] = []
    other_suffixes: Counter[str] = Counter()
    num_links = num_unnameable = 0
    real_root = root.resolve()
    for folder, subfolders, names in os.walk(root, onerror=_refuse_folder):
        here = Path(folder)
        num_links += sum((here / name).is_symlink() for name in subfolders if not _is_hidden(name))
        subfolders[:] = [name for name in subfolders if not _is_hidden(name)]
        for name in names:
            file = here / name
            if _is_hidden(name):
                continue
            if file.suffix.lower() not in IMAGE_SUFFIXES:
                other_suffixes[file.suffix.lower() or "(none)"] += 1
            elif not _is_unicode(file.relative_to(root).as_posix()):
                num_unnameable += 1
            elif file.is_symlink() and not file.resolve().is_relative_to(real_root):
                num_links += 1
            else:
                paths.append(file.relative_to(root).as_posix())
    links = f"{num_links} links not followed (folders, or files outside the root)" if num_links else ""
    unnameable = f"{num_unnameable} files left out: names not in UTF-8, rename them" if num_unnameable else ""
    if not paths:
        seen = ", ".join(f"{count} {suffix}" for suffix, count in other_suffixes.most_common(5))
        found = "; ".join(part for part in (seen and f"suffixes seen: {seen}", links, unnameable) if part)
        raise UserError(
            f"no image in {str(root)!r} ({found or 'it has no files'}): "
            f"image files end with {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    for note in filter(None, (links, unnameable)):
        say(f"{str(root)!r}: {note}")
    return sorted(paths, key=_natural_key)


def _is_unicode(name: str) -> bool:
    """Tell whether a file name can be written to files; other bytes come as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _refuse_folder(error: OSError) -> None:
    raise UserError(f"cannot list the folder {str(error.filename)!r}: {error.strerror}")


def _natural_key(path: str) -> tuple[list[str | int], str]:
    pieces = re.split(r"([0-9]+)", path)
    return [int(piece) if i % 2 else piece for i, piece in enumerate(pieces)], path


def content_digests(images: ImageSet) -> list[str]:
    """Hash every file's bytes, so that a cache can tell whether the images are still the same.

    Args:
        images: N images.

    Returns:
        N strings of 32 hex digits; ``missing`` for a file that cannot be read.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(_content_digest, (images.file(i) for i in range(len(images)))))


def _content_digest(file: Path) -> str:
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError:
        return "missing"


@dataclass(frozen=True, eq=False)
class Packed:
    """Images decoded once, all of one size, in one memory-mapped file.

    Attributes:
        pixels: uint8 [N, 3, size, size], RGB, read-only, on disk.
        paths: Their N ids.
        skipped: (id, reason) of the images that could not be decoded.
        key: Hash of their paths, contents and size.
    """

    pixels: NDArray[np.uint8]
    paths: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    key: str = ""

    def __post_init__(self) -> None:
        """Check that every path has its pixels."""
        assert self.pixels.dtype == np.uint8
        assert self.pixels.shape[:2] == (len(self.paths), 3)


def pack(images: ImageSet, size: int, file: Path, on_error: str) -> Packed:
    """Decode images into one ``.npy`` file of squares, or reuse the file when nothing has changed.

    The short side becomes ``size`` pixels (bicubic, antialiased), the centre is kept. Beside ``file``
    stands a ``.json`` with the ids, the skipped images, and the key: a hash of paths, contents and size.

    Args:
        images: What to pack.
        size: Side of the squares in pixels.
        file: The ``.npy`` file to write.
        on_error: ``skip`` leaves unreadable images out, ``fail`` refuses them.

    Returns:
        The images that could be read, in the order of ``images``.

    Raises:
        UserError: An image cannot be read and ``on_error`` is ``fail``, or none can be read.
    """
    assert len(images) > 0
    assert on_error in ("skip", "fail")
    assert file.suffix == ".npy"
    key = digest_of([size, images.paths, content_digests(images)])
    index_file = file.with_suffix(".json")
    index = _read_index(index_file) if file.exists() else {}
    if index.get("key") != key:
        # A run killed between the two writes must not leave an old index beside new pixels.
        index_file.unlink(missing_ok=True)
        with atomic_path(file) as partial:
            kept, skipped = _write_pixels(images, size, partial, on_error)
        index = {"key": key, "size": size, "paths": kept, "skipped": skipped}
        with atomic_path(index_file) as partial:
            partial.write_text(json.dumps(index))
    packed = Packed(
        # Copy-on-write, for torch warns about read-only memory; the file itself never changes.
        pixels=np.load(file, mmap_mode="c"),
        paths=tuple(index["paths"]),
        skipped=tuple((path, reason) for path, reason in index["skipped"]),
        key=key,
    )
    if packed.skipped and on_error == "fail":
        raise _unreadable(images, *packed.skipped[0])
    return packed


def _read_index(file: Path) -> dict:
    try:
        index = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return index if isinstance(index, dict) else {}


def _write_pixels(
    images: ImageSet, size: int, file: Path, on_error: str
) -> tuple[list[str], list[tuple[str, str]]]:
    kept: list[str] = []
    skipped: list[tuple[str, str]] = []
    with file.open("wb") as out, progress_bar() as progress:
        _write_npy_header(out, len(images), size)
        steps = progress.track(_squares(images, size), total=len(images), description="decoding")
        for path, square in zip(images.paths, steps, strict=True):
            if isinstance(square, str):
                if on_error == "fail":
                    raise _unreadable(images, path, square)
                skipped.append((path, square))
            else:
                kept.append(path)
                out.write(square.tobytes())
        # numpy pads the header so that the number of rows can change without moving the rows.
        _write_npy_header(out, len(kept), size)
    if not kept:
        path, reason = skipped[0]
        raise UserError(
            f"none of the {len(images)} images in {str(images.root)!r} can be read: check the files; "
            f"the first, {path!r}: {reason}"
        )
    return kept, skipped


def _write_npy_header(out: BinaryIO, rows: int, size: int) -> None:
    out.seek(0)
    header = {"descr": "|u1", "fortran_order": False, "shape": (rows, 3, size, size)}
    np.lib.format.write_array_header_1_0(out, header)


def _squares(images: ImageSet, size: int) -> Iterator[NDArray[np.uint8] | str]:
    def square(index: int) -> NDArray[np.uint8] | str:
        try:
            image = load_image(images.file(index))
        except ImageError as error:
            return str(error)
        # `fit` cuts before it scales: a 20000 x 20 image never becomes a giant one.
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
        return np.asarray(image).transpose(2, 0, 1)

    # Pillow decodes and scales without the interpreter's lock, so threads are enough. Chunks bound what
    # waits in memory when one image is slow.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(images), _CHUNK):
            yield from pool.map(square, range(start, min(start + _CHUNK, len(images))))


def _unreadable(images: ImageSet, path: str, reason: str) -> UserError:
    return UserError(
        f"cannot read {str(images.root / path)!r}: {reason}; repair or remove it, or set data.on_error=skip"
    )


def report_skipped(skipped: Sequence[tuple[str, str]], where: str) -> None:
    """Say which images were left out: how many, the first ten with their reasons.

    Args:
        skipped: (id, reason) pairs; nothing is said when empty.
        where: What they were left out of, e.g. ``the gallery``.
    """
    if not skipped:
        return
    say(f"{len(skipped)} unreadable image{'s' if len(skipped) > 1 else ''} left out of {where}:")
    for path, reason in skipped[:10]:
        say(f"  {path}: {reason}")
    if len(skipped) > 10:
        say(f"  … and {len(skipped) - 10} more")
