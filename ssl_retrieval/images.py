"""From image files to pixels: listing and decoding."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from ssl_retrieval.console import say
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
_SWAPS_SIDES = frozenset({5, 6, 7, 8})


def load_image(path: Path, at_least: int | None = None) -> Image.Image:
    """Decode one image file to upright 8-bit RGB.

    Transparency is composited on white, an animation gives its first frame, the EXIF orientation is
    applied, colour profiles are not. Grey images of more than 8 bits are scaled: 16-bit from 0..65535,
    floating point from 0..1 (or 0..255 when it fits that), anything else from its own minimum and
    maximum; what is not finite becomes 0.

    Args:
        path: The file. Its content decides the format, not its suffix.
        at_least: The short side in pixels to which the image will be resized; None = decode it as stored.
            A much larger JPEG then comes at a half, a quarter or an eighth of its size, which is several
            times faster, but with a short side of twice ``at_least`` or more: the decoder leaves out
            frequencies block by block, and a last halving by an antialiased resize hides that.

    Returns:
        A PIL image of mode RGB.

    Raises:
        ImageError: The file is missing, empty, no image, damaged or larger than ``MAX_PIXELS``. The text
            is the reason, without the path.
    """
    if at_least is None:
        return load_reduced(path, lambda width, height: 1)[0]
    return load_reduced(path, lambda width, height: min(width, height) // (2 * at_least))[0]


def load_reduced(path: Path, factor: Callable[[int, int], int]) -> tuple[Image.Image, tuple[int, int]]:
    """Decode one image file as `load_image` does, a JPEG only as finely as is needed.

    Args:
        path: The file.
        factor: Upright width and height -> how many times smaller each side may become. It is asked for
            JPEGs only; the result is divided by 1, 2, 4 or 8, never by more than it says.

    Returns:
        The image, and the upright width and height that it would have had without reduction.

    Raises:
        ImageError: As `load_image`.
    """
    with _opened(path) as image:
        if not isinstance(image, JpegImageFile):
            image.load()
            upright = _turn_upright(image, _orientation(image))
            return _to_rgb(upright), upright.size
        orientation = _orientation(image)
        full = image.size[::-1] if orientation in _SWAPS_SIDES else image.size
        return _to_rgb(_turn_upright(_reduced(image, factor(*full)), orientation)), full


def _reduced(image: JpegImageFile, largest: int) -> Image.Image:
    divisor = next((d for d in (8, 4, 2) if d <= largest), 1)
    if divisor == 1:
        image.load()
        return image
    width, height = image.size
    image.draft(None, (max(1, width // divisor), max(1, height // divisor)))
    image.load()
    # The last column and row may stand for a part of a pixel; less than half of one is cut off.
    return image.crop((0, 0, max(1, round(width / divisor)), max(1, round(height / divisor))))


def header_size(path: Path) -> tuple[int, int]:
    """Read an image's width and height, as stored, without decoding it.

    Raises:
        ImageError: The file is missing, empty, no image or larger than ``MAX_PIXELS``.
    """
    with _opened(path) as image:
        return image.size


def header_sizes(images: ImageSet) -> list[tuple[int, int] | str]:
    """Look at every image without decoding it.

    Args:
        images: N images.

    Returns:
        For each its `header_size`, or the reason why it cannot be read.
    """

    def look(part: range) -> list[tuple[int, int] | str]:
        found: list[tuple[int, int] | str] = []
        for index in part:
            try:
                found.append(header_size(images.file(index)))
            except ImageError as error:
                found.append(str(error))
        return found

    parts = [range(i, min(i + 64, len(images))) for i in range(0, len(images), 64)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [size for part in pool.map(look, parts) for size in part]


@contextmanager
def _opened(path: Path) -> Iterator[ImageFile]:
    try:
        with path.open("rb") as file, _explained():
            if os.fstat(file.fileno()).st_size == 0:
                raise ImageError("empty file (0 bytes)")
            image = Image.open(file, formats=_FORMATS)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ImageError(f"too large: {width}x{height} pixels (at most {MAX_PIXELS})")
            yield image
    except FileNotFoundError:
        raise ImageError("file does not exist") from None
    except PermissionError:
        raise ImageError("permission denied") from None
    except IsADirectoryError:
        raise ImageError("is a folder") from None
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror or error}") from None


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise ImageError("not an image") from None
    except Exception as error:  # decoders meet arbitrary bytes and raise nearly any type
        reason = str(error) or type(error).__name__
        is_cut_short = isinstance(error, EOFError) or "truncated" in reason.lower()
        raise ImageError(f"{'truncated' if is_cut_short else 'cannot be decoded'}: {reason}") from None


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata, of any kind, leaves the pixels readable
        return 1


def _turn_upright(image: Image.Image, orientation: int) -> Image.Image:
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


def cut(image: Image.Image, box: tuple[float, float, float, float] | None) -> Image.Image:
    """Keep the part of an image within a box, at least one pixel of it.

    Args:
        image: Any RGB image.
        box: Left, top, right and bottom edge in pixels; what lies outside the image is ignored. None = all.

    >>> cut(Image.new("RGB", (400, 300)), (-5, 100.4, 200, 999)).size
    (200, 200)
    """
    if box is None:
        return image
    width, height = image.size
    left, top = (min(max(round(edge), 0), side - 1) for edge, side in zip(box[:2], image.size, strict=True))
    right, bottom = max(left + 1, min(round(box[2]), width)), max(top + 1, min(round(box[3]), height))
    return image.crop((left, top, right, bottom))


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


def contents(images: ImageSet) -> str:
    """Hash which images stand in a list, in which order, what they hold and what part of them counts."""
    return digest_of([*images.to_key(), content_digests(images)])


def _content_digest(file: Path) -> str:
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError:
        return "missing"


def unreadable(images: ImageSet, path: str, reason: str) -> UserError:
    """Put into one line that an image cannot be read where ``on_error=fail``."""
    return UserError(
        f"cannot read {str(images.root / path)!r}: {reason}; repair or remove it, or set data.on_error=skip"
    )


def none_readable(images: ImageSet, path: str, reason: str) -> UserError:
    """Put into one line that no image can be read; the first one's reason may be every one's."""
    return UserError(
        f"none of the {len(images)} images in {str(images.root)!r} can be read: check the files; "
        f"the first, {path!r}: {reason}"
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
