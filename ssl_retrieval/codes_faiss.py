"""Compact codes of the gallery through faiss: product quantisation, with or without a rotation, and scalars.

All are asymmetric: what is searched is what its code stands for, while queries are not coded, since they are
not stored.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ssl_retrieval.types import IntArray, VectorArray

OPQ_ITERATIONS = 20
"""Alternations of rotation and code books; faiss's 50 take longer and change next to nothing."""

_LARGEST_HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True, eq=False)
class ProductCode:
    """A trained product quantiser, perhaps behind a rotation.

    Attributes:
        quantizer: ``faiss.ProductQuantizer`` of D' dimensions, D' ≥ D.
        rotation: ``faiss.OPQMatrix`` from D to D'; None = vectors are padded with zeros.
        dim: D.
        bits_per_image: Bits of a code.
        notes: What was done because data were short.
    """

    quantizer: Any
    rotation: Any
    dim: int
    bits_per_image: int
    notes: tuple[str, ...] = ()

    def apply(self, vectors: VectorArray, role: str) -> VectorArray:
        """Rotate; code and decode the gallery.

        Args:
            vectors: float32 [N, D].
            role: ``query`` or ``gallery``.

        Returns:
            float32 [N, D], or [N, D'] when rotated.
        """
        rotated = self._rotated(vectors)
        if role == "query":
            return rotated if self.rotation is not None else vectors
        decoded: VectorArray = self.quantizer.decode(self.quantizer.compute_codes(rotated))
        return decoded if self.rotation is not None else np.ascontiguousarray(decoded[:, : self.dim])

    def _rotated(self, vectors: VectorArray) -> VectorArray:
        if self.rotation is not None:
            rotated: VectorArray = self.rotation.apply(np.ascontiguousarray(vectors))
            return rotated
        return _padded(vectors, self.quantizer.d)


@dataclass(frozen=True)
class ProductQuantization:
    """Product quantisation (Jégou et al., 2011), as OPQ behind a learned rotation (Ge et al., 2013).

    A vector is cut into ``parts``, each replaced by the nearest of ``2^bits`` centroids of k-means.

    Attributes:
        parts: Number of parts, at least 1; dimensions that it does not divide are filled up with zeros.
        bits: Per part, 1 to 12; where there are fewer images than centroids, fewer.
        rotates: Whether a rotation is learned too (OPQ). Its time grows with the cube of the dimensions: put
            ``pca`` before when they are many.
    """

    parts: int
    bits: int = 8
    rotates: bool = False
    learns: bool = True
    needs_pairs: bool = False

    @property
    def name(self) -> str:
        """How it is written in a config."""
        short = f"{'opq' if self.rotates else 'pq'}:{self.parts}"
        return short if self.bits == 8 else f"{short}x{self.bits}"

    def fit(self, vectors: VectorArray, pairs: IntArray | None = None, seed: int = 0) -> ProductCode:
        """Train on vectors.

        Args:
            vectors: float32 [N, D], N at least 1.
            pairs: Not used.
            seed: Of k-means.
        """
        import faiss

        num, dim = vectors.shape
        parts = min(self.parts, dim)
        bits = max(1, min(self.bits, num.bit_length() - 1))
        width = parts * -(-dim // parts)
        notes = []
        if parts < self.parts:
            notes.append(f"{parts} parts: the vectors have only {dim} dimensions")
        if bits < self.bits:
            notes.append(f"{2**bits} centroids per part ({bits} bits): fitted on only {num} images")
        if width > dim:
            notes.append(f"{dim} dimensions were filled up with zeros to {width}, a multiple of {parts}")
        # faiss needs as many rows as centroids, and writes beyond its memory where OPQ has fewer rows than
        # dimensions (its issues 2637 and 4038). The same rows several times make the same code.
        fewest = max(2, width if self.rotates else 0)
        rows = np.ascontiguousarray(vectors if num >= fewest else np.tile(vectors, (-(-fewest // num), 1)))
        rotation = None
        if self.rotates:
            rotation = faiss.OPQMatrix(dim, parts, width)
            rotation.niter = OPQ_ITERATIONS
            inner = _quantizer(width, parts, bits, seed)
            rotation.pq = inner
            rotation.train(rows)
            # faiss keeps a bare pointer, which must not outlive what it points to.
            rotation.pq = None
        quantizer = _quantizer(width, parts, bits, seed)
        quantizer.train(rotation.apply(rows) if rotation is not None else _padded(rows, width))
        return ProductCode(quantizer, rotation, dim, parts * bits, tuple(notes))


@dataclass(frozen=True, eq=False)
class ScalarCode:
    """A scalar quantiser.

    Attributes:
        quantizer: ``faiss.ScalarQuantizer``; None = half precision.
        bits_per_image: Bits of a code.
        notes: Always empty.
    """

    quantizer: Any
    bits_per_image: int
    notes: tuple[str, ...] = ()

    def apply(self, vectors: VectorArray, role: str) -> VectorArray:
        """Code and decode the gallery.

        Args:
            vectors: float32 [N, D].
            role: ``query`` or ``gallery``.

        Returns:
            float32 [N, D]; queries as they are.
        """
        if role == "query":
            return vectors
        if self.quantizer is None:
            return vectors.clip(-_LARGEST_HALF, _LARGEST_HALF).astype(np.float16).astype(np.float32)
        decoded: VectorArray = self.quantizer.decode(
            self.quantizer.compute_codes(np.ascontiguousarray(vectors))
        )
        return decoded


@dataclass(frozen=True)
class HalfPrecision:
    """16-bit floats; values beyond ±65504 become that."""

    name: str = "fp16"
    learns: bool = False
    needs_pairs: bool = False

    def fit(self, vectors: VectorArray, pairs: IntArray | None = None, seed: int = 0) -> ScalarCode:
        """Take the number of dimensions of ``vectors`` (float32 [N, D])."""
        return ScalarCode(None, 16 * vectors.shape[1])


@dataclass(frozen=True)
class ScalarQuantization:
    """Equal steps between the smallest and the largest value of each dimension.

    Attributes:
        bits: Per value: 8 or 4.
    """

    bits: int
    learns: bool = True
    needs_pairs: bool = False

    @property
    def name(self) -> str:
        """How it is written in a config."""
        return f"sq{self.bits}"

    def fit(self, vectors: VectorArray, pairs: IntArray | None = None, seed: int = 0) -> ScalarCode:
        """Learn the ranges of ``vectors`` (float32 [N, D], N at least 1)."""
        import faiss

        kind = {8: faiss.ScalarQuantizer.QT_8bit, 4: faiss.ScalarQuantizer.QT_4bit}[self.bits]
        quantizer = faiss.ScalarQuantizer(vectors.shape[1], kind)
        quantizer.train(np.ascontiguousarray(vectors))
        return ScalarCode(quantizer, self.bits * vectors.shape[1])


def _quantizer(dim: int, parts: int, bits: int, seed: int) -> Any:
    import faiss

    quantizer = faiss.ProductQuantizer(dim, parts, bits)
    quantizer.cp.seed = seed % 2**31
    # faiss would warn once per part; what is too little is noted in one place.
    quantizer.cp.min_points_per_centroid = 1
    return quantizer


def _padded(vectors: VectorArray, width: int) -> VectorArray:
    missing = width - vectors.shape[1]
    return np.ascontiguousarray(np.pad(vectors, ((0, 0), (0, missing))) if missing else vectors)
