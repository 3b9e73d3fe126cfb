"""Binary codes: every value becomes +1 or −1, one bit, for queries and gallery alike.

The cosine of two codes is ``1 − 2 · (bits that differ) / (all bits)``, so the usual search ranks by Hamming
distance.
"""

from dataclasses import dataclass

import numpy as np
from scipy import linalg

from ssl_retrieval.types import FloatArray, IntArray, VectorArray
from ssl_retrieval.whitening import Pca, Projection

_ITQ_ITERATIONS = 50
_ITQ_ROWS = 20_000
"""A rotation of some hundred bits is known from fewer vectors; more only take time."""


def signs(values: FloatArray | VectorArray) -> VectorArray:
    """Give +1 where a value is at least 0, else −1.

    >>> signs(np.array([[0.5, 0.0, -2.0]])).tolist()
    [[1.0, 1.0, -1.0]]
    """
    return np.where(values >= 0, np.float32(1), np.float32(-1))


@dataclass(frozen=True, eq=False)
class BinaryCode:
    """Signs of projected vectors.

    Attributes:
        projection: What to project on; None = the vectors as they are.
        bits_per_image: Bits of a code.
        losses: Of ITQ: mean of ``(B − V R)²`` over images and bits, at first and after each iteration.
        notes: What was done because data were short.
    """

    projection: Projection | None
    bits_per_image: int
    losses: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()

    def apply(self, vectors: VectorArray, role: str = "query") -> VectorArray:
        """Code.

        Args:
            vectors: float32 [N, D].
            role: Not used.

        Returns:
            float32 [N, bits] of ±1.
        """
        return signs(vectors if self.projection is None else self.projection.apply(vectors))


@dataclass(frozen=True)
class Sign:
    """The sign of each value: as many bits as dimensions.

    Values that are never negative all give the same code: put ``center`` or ``pca`` before.
    """

    name: str = "sign"
    learns: bool = False
    needs_pairs: bool = False

    def fit(self, vectors: VectorArray, pairs: IntArray | None = None, seed: int = 0) -> BinaryCode:
        """Take the number of dimensions of ``vectors`` (float32 [N, D])."""
        return BinaryCode(None, vectors.shape[1])


@dataclass(frozen=True)
class Lsh:
    """Random hyperplanes through the origin (Charikar, 2002): nothing is learned.

    Two vectors at the angle θ differ in a bit with probability θ/π.

    Attributes:
        bits: Number of hyperplanes, at least 1.
    """

    bits: int
    learns: bool = False
    needs_pairs: bool = False

    @property
    def name(self) -> str:
        """How it is written in a config."""
        return f"lsh:{self.bits}"

    def fit(self, vectors: VectorArray, pairs: IntArray | None = None, seed: int = 0) -> BinaryCode:
        """Draw the hyperplanes.

        Args:
            vectors: float32 [N, D]; only D counts.
            pairs: Not used.
            seed: Of the draw.
        """
        dim = vectors.shape[1]
        normals = np.random.default_rng(seed % 2**32).standard_normal((self.bits, dim))
        return BinaryCode(Projection(np.zeros(dim), normals), self.bits)


@dataclass(frozen=True)
class Itq:
    """Iterative quantisation (Gong & Lazebnik, 2011): the rotation after PCA that rounds least.

    From a random rotation, alternate ``B = sign(V R)`` and the rotation that brings ``V`` nearest to ``B``,
    50 times. Both steps can only lower ``‖B − V R‖``. (In ``faiss.ITQMatrix`` 1.15.1 it rises in between
    and ends higher, so that is not used.)

    Attributes:
        bits: Length of the code, at least 1; where the images have fewer dimensions, as many as these.
    """

    bits: int
    learns: bool = True
    needs_pairs: bool = False

    @property
    def name(self) -> str:
        """How it is written in a config."""
        return f"itq:{self.bits}"

    def fit(self, vectors: VectorArray, pairs: IntArray | None = None, seed: int = 0) -> BinaryCode:
        """Learn PCA and rotation.

        Args:
            vectors: float32 [N, D], N at least 1.
            pairs: Not used.
            seed: Of the first rotation, and of the draw where there are more than 20,000 vectors.
        """
        rng = np.random.default_rng(seed % 2**32)
        pca = Pca(self.bits).fit(vectors)
        bits = len(pca.matrix)
        chosen = vectors
        if len(vectors) > _ITQ_ROWS:
            chosen = vectors[np.sort(rng.choice(len(vectors), _ITQ_ROWS, replace=False))]
        start = np.linalg.qr(rng.standard_normal((bits, bits)))[0]
        rotation, losses = rotate(pca.apply(chosen).astype(np.float64), start)
        return BinaryCode(Projection(pca.mean, rotation.T @ pca.matrix), bits, losses, pca.notes)


def rotate(values: FloatArray, start: FloatArray) -> tuple[FloatArray, tuple[float, ...]]:
    """Find the rotation that brings centred values nearest to ±1.

    Args:
        values: float64 [N, b]; only their direction counts, as they are first scaled to a mean square of 1.
        start: float64 [b, b], orthogonal.

    Returns:
        float64 [b, b], to be multiplied from the right; and the losses, one more than iterations.
    """
    scale = np.sqrt(np.mean(values**2))
    values = values / (scale if scale > 0 else 1)
    rotation, losses = start, []
    for _ in range(_ITQ_ITERATIONS):
        rotated = values @ rotation
        codes = signs(rotated).astype(np.float64)
        losses.append(float(np.mean((codes - rotated) ** 2)))
        rotation = linalg.orthogonal_procrustes(values, codes)[0]
    rotated = values @ rotation
    losses.append(float(np.mean((signs(rotated) - rotated) ** 2)))
    return rotation, tuple(losses)
