"""An inverted file of binary codes: which images have a word, and one 128-bit code for each of them.

Stored rows are fixed in size, float32 and finite, as all vectors here are: an entry takes 7 values, the
number of the word plus 1 and the code in six pieces of 24 bits, which float32 holds exactly. Zeros fill the
row.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssl_retrieval.types import FloatArray, IntArray, VectorArray

BITS = 128
ENTRY = 7
"""float32 values of an entry."""

_PIECES = ENTRY - 1
_CODE_BYTES = BITS // 8
_PADDED_BYTES = 3 * _PIECES


def pack(words: IntArray, bits: NDArray[np.bool_], num_entries: int) -> VectorArray:
    """Write the words of an image into a row.

    Args:
        words: int64 [n], unique, ascending, below 2²⁴ − 1.
        bits: bool [n, 128]: the code of each.
        num_entries: Places in the row, at least n.

    Returns:
        float32 [7 · num_entries].
    """
    padded = np.zeros((len(words), _PADDED_BYTES), np.uint8)
    padded[:, :_CODE_BYTES] = np.packbits(bits, axis=1)
    pieces = padded.reshape(-1, _PIECES, 3).astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    row = np.zeros((num_entries, ENTRY), np.float32)
    row[: len(words), 0] = words + 1
    row[: len(words), 1:] = pieces
    return row.ravel()


@dataclass(frozen=True, eq=False)
class Entries:
    """The entries of some images, image by image and within them by word.

    Attributes:
        images: int64 [E]: row of the image.
        words: int64 [E].
        codes: uint64 [E, 2].
        counts: int64 [N]: entries of each image.
    """

    images: IntArray
    words: IntArray
    codes: NDArray[np.uint64]
    counts: IntArray

    @classmethod
    def of(cls, rows: VectorArray) -> "Entries":
        """Read rows (float32 [N, 7 · num_entries]) that `pack` wrote."""
        places = rows.reshape(len(rows), rows.shape[1] // ENTRY, ENTRY)
        is_used = places[:, :, 0] > 0
        used = places[is_used].astype(np.int32)
        pieces = used[:, 1:, None] >> np.array([16, 8, 0], np.int32)
        code_bytes = (pieces & 0xFF).astype(np.uint8).reshape(len(used), _PADDED_BYTES)[:, :_CODE_BYTES]
        return cls(
            images=np.nonzero(is_used)[0],
            words=used[:, 0].astype(np.int64) - 1,
            codes=np.ascontiguousarray(code_bytes).view(np.uint64),
            counts=is_used.sum(axis=1),
        )


@dataclass(frozen=True, eq=False)
class BinaryInvertedFile:
    """Sums of ``σ(u)`` over shared words, normalised so that an image scores 1 with itself: a `Similarity`.

    ``u = 1 − 2h / 128`` for two codes with h different bits is the dot product of the ±1 codes, divided by
    their length. The sum is divided by the square root of the product of both numbers of words.

    Attributes:
        queries: Entries of the queries.
        images: int64 [E]: gallery rows, ordered by word.
        codes: uint64 [E, 2], in the same order.
        starts: int64 [K + 1]: where the list of each word starts.
        counts: int64 [N]: words of each gallery image.
        table: float64 [129]: ``σ`` for each number of different bits.
    """

    queries: Entries
    images: IntArray
    codes: NDArray[np.uint64]
    starts: IntArray
    counts: IntArray
    table: FloatArray

    @classmethod
    def of(
        cls, queries: VectorArray, gallery: VectorArray, num_words: int, table: FloatArray
    ) -> "BinaryInvertedFile":
        """Build it.

        Args:
            queries: float32 [Q, 7 · num_entries], rows that `pack` wrote.
            gallery: float32 [N, 7 · num_entries], likewise.
            num_words: K: all words are below.
            table: float64 [129]: the score of two codes by their number of different bits; 1 for none.
        """
        entries = Entries.of(gallery)
        order = np.argsort(entries.words, kind="stable")
        starts = np.searchsorted(entries.words[order], np.arange(num_words + 1))
        images, codes = entries.images[order], entries.codes[order]
        return cls(Entries.of(queries), images, codes, starts, entries.counts, table)

    @property
    def num_queries(self) -> int:
        """Count the queries."""
        return len(self.queries.counts)

    @property
    def num_gallery(self) -> int:
        """Count the gallery images."""
        return len(self.counts)

    def scores(self, rows: slice) -> VectorArray:
        """Walk the lists of the words that each query has: float32 [len(rows), N] in [0, 1]."""
        found = np.zeros((rows.stop - rows.start, self.num_gallery), np.float32)
        first, last = np.searchsorted(self.queries.images, [rows.start, rows.stop])
        ends = first + np.cumsum(self.queries.counts[rows])
        assert not len(ends) or ends[-1] == last
        for row, (end, count) in enumerate(zip(ends, self.queries.counts[rows], strict=True)):
            if count:
                found[row] = self._scores_of(slice(end - count, end))
        return found

    def _scores_of(self, entries: slice) -> FloatArray:
        """Score one query, given where its entries are: float64 [N]."""
        words = self.queries.words[entries]
        starts, lengths = self.starts[words], self.starts[words + 1] - self.starts[words]
        # The lists of all its words, one after another.
        places = np.repeat(starts - (lengths.cumsum() - lengths), lengths) + np.arange(lengths.sum())
        of_query = np.repeat(self.queries.codes[entries], lengths, axis=0)
        different = np.bitwise_count(self.codes[places] ^ of_query).sum(axis=1)
        sums = np.bincount(self.images[places], self.table[different], minlength=self.num_gallery)
        normalised: FloatArray = sums / np.sqrt(len(words) * np.maximum(self.counts, 1))
        return normalised
