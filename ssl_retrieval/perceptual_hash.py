"""Fingerprints of pictures that survive resizing and recompression: 64 bits from low frequencies.

The hash of Zauner ("Implementation and benchmarking of perceptual image hash functions", 2010): reduce to
32 x 32 grey values, take the 8 x 8 lowest frequencies of the discrete cosine transform without the constant
ones, and note for each whether it lies above their median. Copies differ in few of the 64 bits; unrelated
pictures in about 32.

A mirrored picture has the same frequencies, the odd horizontal ones with the other sign. So its hash needs no
second look at the picture.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft

from ssl_retrieval.errors import ImageError, UserError
from ssl_retrieval.images import cut, load_image
from ssl_retrieval.types import FloatArray, ImageSet, IntArray

ByteArray = NDArray[np.uint8]

BITS = 64
SIDE = 32
FLAT = 2.0
"""Pictures whose 32 x 32 grey values, of 255, deviate less have no hash: its bits would be noise."""

MAX_PAIRS = 5_000_000
"""A search that finds more pairs is stopped: so many are no near-duplicates but a wrong threshold."""

_QUERY_BLOCK = 1024


@dataclass(frozen=True, eq=False)
class Hashes:
    """The hashes of some images.

    Attributes:
        codes: uint8 [N, 8].
        mirrored: uint8 [N, 8]: the codes that their mirror images have.
        usable: bool [N]; False where the image is flat or cannot be read, and its codes mean nothing.
    """

    codes: ByteArray
    mirrored: ByteArray
    usable: NDArray[np.bool_]


def low_frequencies(image: Image.Image) -> FloatArray | None:
    """Give the float64 [8, 8] frequencies that the hash is made of (row, column); None for a flat picture."""
    small = image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    grey = np.asarray(small, np.float64)
    if grey.std() < FLAT:
        return None
    frequencies: FloatArray = fft.dctn(grey, norm="ortho")[1:9, 1:9]
    return frequencies


def code_of(frequencies: FloatArray) -> ByteArray:
    """Note which frequencies lie above their median: uint8 [8]."""
    return np.packbits(frequencies > np.median(frequencies))


def mirror(frequencies: FloatArray) -> FloatArray:
    """Give the frequencies of the mirrored picture.

    >>> picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8))
    >>> flipped = low_frequencies(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    >>> bool(np.allclose(mirror(low_frequencies(picture)), flipped))
    True
    """
    # The first column is frequency 1, which is odd.
    return frequencies * np.where(np.arange(frequencies.shape[1]) % 2 == 0, -1.0, 1.0)


def hash_image(image: Image.Image) -> tuple[ByteArray, ByteArray] | None:
    """Hash a picture and its mirror image: two times uint8 [8]; None for a flat picture."""
    frequencies = low_frequencies(image)
    return None if frequencies is None else (code_of(frequencies), code_of(mirror(frequencies)))


def hash_images(images: ImageSet) -> Hashes:
    """Hash image files; those that cannot be read are not usable."""

    def look(index: int) -> tuple[ByteArray, ByteArray] | None:
        box = images.box(index)
        try:
            image = load_image(images.file(index), SIDE) if box is None else load_image(images.file(index))
        except ImageError:
            return None
        return hash_image(cut(image, box))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return gather(list(pool.map(look, range(len(images)))))


def gather(found: list[tuple[ByteArray, ByteArray] | None]) -> Hashes:
    """Put what `hash_image` gave for N pictures together."""
    nothing = np.zeros(BITS // 8, np.uint8)
    pairs = [(nothing, nothing) if pair is None else pair for pair in found]
    shape = (len(found), BITS // 8)
    return Hashes(
        codes=np.array([code for code, _ in pairs], np.uint8).reshape(shape),
        mirrored=np.array([code for _, code in pairs], np.uint8).reshape(shape),
        usable=np.array([pair is not None for pair in found], np.bool_),
    )


def pairs_within(first: Hashes, second: Hashes, max_distance: int) -> tuple[IntArray, IntArray]:
    """Find the pairs that differ in few bits, the second as it is or mirrored.

    Every pair is compared (a hundred million a second on one core), but only what is found takes memory.

    Args:
        first: Q images.
        second: N images.
        max_distance: Bits that may differ, 0 to 64.

    Returns:
        int64 [P] and int64 [P]: indices into the first and the second, sorted, each pair once.

    Raises:
        UserError: More than ``MAX_PAIRS``.
    """
    if not 0 <= max_distance <= BITS:
        raise UserError(f"max_hamming={max_distance}: bits of {BITS} that may differ, so 0 to {BITS}")
    columns = np.flatnonzero(second.usable)
    index = faiss.IndexBinaryFlat(BITS)
    index.add(np.concatenate([second.codes[columns], second.mirrored[columns]]))
    keys: list[IntArray] = [np.empty(0, np.int64)]
    rows = np.flatnonzero(first.usable)
    for start in range(0, len(rows) if len(columns) else 0, _QUERY_BLOCK):
        block = rows[start : start + _QUERY_BLOCK]
        # faiss finds what is nearer than the radius, not what is as near.
        limits, _, labels = index.range_search(np.ascontiguousarray(first.codes[block]), max_distance + 1)
        row = np.repeat(block, (limits[1:] - limits[:-1]).astype(np.int64))
        keys.append(np.unique(row * len(second.codes) + columns[labels % len(columns)]))
        refuse_too_many(sum(map(len, keys)), f"max_hamming={max_distance}")
    found = np.concatenate(keys)
    return found // max(1, len(second.codes)), found % max(1, len(second.codes))


def refuse_too_many(num_pairs: int, setting: str) -> None:
    """Stop a search for copies that finds nearly everything.

    Raises:
        UserError: More than ``MAX_PAIRS``.
    """
    if num_pairs > MAX_PAIRS:
        raise UserError(
            f"more than {MAX_PAIRS:,} pairs pass {setting}: they cannot all be copies; be stricter"
        )


def distances(
    first: Hashes, second: Hashes, pairs: tuple[IntArray, IntArray]
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Count the bits in which pairs differ.

    Args:
        first: Q images.
        second: N images.
        pairs: int64 [P] and int64 [P], as from `pairs_within`.

    Returns:
        float64 [P], the lower of plain and mirrored, NaN where an image has no hash; and bool [P], whether
        the mirrored one is nearer.
    """
    left, right = pairs
    plain = np.bitwise_count(first.codes[left] ^ second.codes[right]).sum(axis=1)
    mirrored = np.bitwise_count(first.codes[left] ^ second.mirrored[right]).sum(axis=1)
    usable = first.usable[left] & second.usable[right]
    nearest = np.where(usable, np.minimum(plain, mirrored), np.nan)
    return nearest, (mirrored < plain) & usable
