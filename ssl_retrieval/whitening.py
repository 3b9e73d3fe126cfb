"""Linear projections learned from vectors: PCA, PCA-whitening, whitening learned from matching pairs.

A projection is ``(x − mean) @ matrix.T``. Statistics are computed in float64, over blocks of rows, so that
the memory is that of a few D × D matrices whatever the number of vectors.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import linalg

from ssl_retrieval.errors import UserError
from ssl_retrieval.types import FloatArray, IntArray, VectorArray

_BLOCK_BYTES = 64 << 20
_RELATIVE = 1e-10
"""Variances below this share of the largest count as zero: what is left there is rounding of networks."""
_LOOSE = 1e-6
"""A scatter of pairs whose smallest eigenvalue is below this share of their mean counts as singular."""
_LEAST_SHRINKAGE = 1e-3


@dataclass(frozen=True, eq=False)
class Projection:
    """A centred linear map.

    Attributes:
        mean: float64 [D].
        matrix: float64 [d, D].
        notes: What was done because data were short.
        bits_per_image: None: values are stored as they are.
    """

    mean: FloatArray
    matrix: FloatArray
    notes: tuple[str, ...] = ()
    bits_per_image: int | None = None

    def apply(self, vectors: VectorArray, role: str = "query") -> VectorArray:
        """Project.

        Args:
            vectors: float32 [N, D].
            role: Not used: queries and gallery are treated alike.

        Returns:
            float32 [N, d].
        """
        # In float64: a whitened direction of small variance is a small difference of large values.
        projected = np.empty((len(vectors), len(self.matrix)), np.float32)
        for rows in _row_blocks(*vectors.shape):
            projected[rows] = (vectors[rows] - self.mean) @ self.matrix.T
        return projected


@dataclass(frozen=True)
class Pca:
    """Projection on the directions of largest variance, ``P = Λ^(−power) Vᵀ``.

    ``Λ`` are the eigenvalues of the covariance (normalised by N − 1), largest first, ``V`` its eigenvectors.
    ``power`` is the exponent of the eigenvalue, that is of the variance: 0 is plain PCA, 0.5 divides by the
    standard deviation, so that the covariance becomes the identity, and 0.25 goes half of the way.

    With N images of D dimensions there are at most min(N − 1, D) directions; those with a variance
    that is nothing but rounding are dropped, never divided by.

    Attributes:
        dim: Dimensions to keep, at least 1; where there are fewer, all.
        power: 0 to 0.5.
    """

    dim: int
    power: float = 0.0
    learns: bool = True
    needs_pairs: bool = False

    @property
    def name(self) -> str:
        """How it is written in a config."""
        if self.power == 0:
            return f"pca:{self.dim}"
        return f"pca_whiten:{self.dim}" + ("" if self.power == 0.5 else f":{self.power}")

    def fit(self, vectors: VectorArray, pairs: IntArray | None = None, seed: int = 0) -> Projection:
        """Learn the projection.

        Args:
            vectors: float32 [N, D], N at least 1.
            pairs: Not used.
            seed: Not used: nothing is random.
        """
        mean, largest_square = _mean(vectors)
        variances, directions = _principal(vectors, mean, self.dim)
        kept = _clear(variances, largest_square)[: len(vectors) - 1]
        variances, directions = variances[kept], directions[kept]
        notes = _notes_on_dimensions(vectors, self.dim, len(variances))
        matrix = directions * variances[:, None] ** -self.power
        return Projection(mean, _at_least_one(matrix), notes)


@dataclass(frozen=True)
class LearnedWhitening:
    """Whitening learned from matching pairs (Mikolajczyk & Matas, 2007; as in Radenović et al., 2016).

    ``S`` is the mean of ``(x − y)(x − y)ᵀ`` over matching pairs, ``D`` the covariance of all vectors. The
    rows of ``P`` are the solutions of ``D p = λ S p`` with ``pᵀ S p = 1``, largest λ first: differences of
    matching images become white, and the directions that tell images apart best come first. This is the same
    as ``eig(C⁻¹ D C⁻ᵀ)ᵀ C⁻¹`` with ``S = C Cᵀ``.

    Where pairs are too few, ``S`` is singular and is shrunk towards a multiple of the identity, as far as
    Ledoit and Wolf (2004) estimate it to be best.

    Attributes:
        dim: Dimensions to keep; None = all.
    """

    dim: int | None = None
    learns: bool = True
    needs_pairs: bool = True

    @property
    def name(self) -> str:
        """How it is written in a config."""
        return "learned_whiten" + ("" if self.dim is None else f":{self.dim}")

    def fit(self, vectors: VectorArray, pairs: IntArray | None, seed: int = 0) -> Projection:
        """Learn the projection.

        Args:
            vectors: float32 [N, D], N at least 1.
            pairs: int64 [P, 2]: rows of ``vectors`` that match.
            seed: Not used: nothing is random.

        Raises:
            UserError: There is no pair.
        """
        if pairs is None or len(pairs) == 0:
            raise UserError(
                f"{self.name}: no two of the {len(vectors)} images to fit on match: give labelled ones with "
                "several images per class, or use pca_whiten"
            )
        dim = vectors.shape[1]
        wanted = dim if self.dim is None else min(self.dim, dim)
        mean, largest_square = _mean(vectors)
        within, fourth = _scatter_of_pairs(vectors, pairs)
        within, notes = _invertible(within, fourth, len(pairs), largest_square)
        total = _scatter(_centred(vectors, mean), dim) / max(1, len(vectors) - 1)
        has_variance = _clear(np.array([np.trace(total)]), largest_square)
        if len(has_variance) == 0:
            return Projection(mean, np.zeros((1, dim)), (_same_vector(vectors),))
        ratios, columns = linalg.eigh(
            total, within, subset_by_index=(dim - wanted, dim - 1), overwrite_a=True, overwrite_b=True
        )
        ratios, directions = ratios[::-1], _oriented(columns[:, ::-1].T)
        kept = _clear(ratios, 0)[: len(vectors) - 1]
        notes += _notes_on_dimensions(vectors, dim if self.dim is None else self.dim, len(kept))
        return Projection(mean, np.ascontiguousarray(directions[kept]), notes)


def _row_blocks(num_rows: int, dim: int) -> Iterator[slice]:
    """Cut rows into blocks of bounded float64 size."""
    step = max(1, _BLOCK_BYTES // (8 * max(1, dim)))
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


def _mean(vectors: VectorArray) -> tuple[FloatArray, float]:
    """Give the mean and the largest mean square of a dimension, to which rounding is in proportion."""
    assert len(vectors) > 0
    mean = vectors.mean(axis=0, dtype=np.float64)
    squares = np.einsum("nd,nd->d", vectors, vectors, dtype=np.float64) / len(vectors)
    return mean, float(squares.max(initial=0))


def _centred(vectors: VectorArray, mean: FloatArray) -> Iterator[FloatArray]:
    for rows in _row_blocks(*vectors.shape):
        yield vectors[rows] - mean


def _scatter(blocks: Iterator[FloatArray], dim: int) -> FloatArray:
    total = np.zeros((dim, dim))
    for block in blocks:
        total += block.T @ block
    return total


def _principal(vectors: VectorArray, mean: FloatArray, count: int) -> tuple[FloatArray, FloatArray]:
    """Give the largest variances [d], descending, and their unit directions [d, D]."""
    num, dim = vectors.shape
    degrees = max(1, num - 1)
    count = min(count, num, dim)
    if num < dim:
        # The products of the rows have the same eigenvalues and are the smaller matrix.
        centred = vectors - mean
        variances, columns = _largest(centred @ centred.T / degrees, count)
        directions = columns.T @ centred
        lengths = linalg.norm(directions, axis=1, keepdims=True)
        directions /= np.where(lengths > 0, lengths, 1)
    else:
        variances, columns = _largest(_scatter(_centred(vectors, mean), dim) / degrees, count)
        directions = columns.T
    return variances, _oriented(directions)


def _largest(symmetric: FloatArray, count: int) -> tuple[FloatArray, FloatArray]:
    """Give the largest eigenvalues, descending, and their eigenvectors as columns."""
    size = len(symmetric)
    values, columns = linalg.eigh(symmetric, subset_by_index=(size - count, size - 1), overwrite_a=True)
    return values[::-1], columns[:, ::-1]


def _clear(variances: FloatArray, largest_square: float) -> IntArray:
    """List the variances that stand clear of rounding.

    Args:
        variances: float64 [d], descending.
        largest_square: Mean square of the values that they come from, stored as float32.
    """
    rounding = float(np.finfo(np.float32).eps) ** 2 * largest_square
    return np.flatnonzero(variances > max(_RELATIVE * variances.max(initial=0), rounding))


def _oriented(directions: FloatArray) -> FloatArray:
    """Make the largest entry of each row positive: signs are then the same on every machine."""
    largest = np.abs(directions).argmax(axis=1)
    negative = directions[np.arange(len(directions)), largest] < 0
    return np.where(negative[:, None], -directions, directions)


def _at_least_one(matrix: FloatArray) -> FloatArray:
    return matrix if len(matrix) else np.zeros((1, matrix.shape[1]))


def _scatter_of_pairs(vectors: VectorArray, pairs: IntArray) -> tuple[FloatArray, float]:
    """Give ``S`` [D, D] and the mean of the differences' lengths to the fourth power."""
    dim = vectors.shape[1]
    fourth = 0.0

    def differences() -> Iterator[FloatArray]:
        nonlocal fourth
        for rows in _row_blocks(len(pairs), dim):
            one, other = pairs[rows].T
            block = vectors[one].astype(np.float64) - vectors[other]
            fourth += float((np.einsum("nd,nd->n", block, block) ** 2).sum())
            yield block

    scatter = _scatter(differences(), dim) / len(pairs)
    return scatter, fourth / len(pairs)


def _invertible(
    within: FloatArray, fourth: float, num_pairs: int, largest_square: float
) -> tuple[FloatArray, tuple[str, ...]]:
    """Shrink a singular ``S`` towards a multiple of the identity; say so."""
    dim = len(within)
    average = float(np.trace(within)) / dim
    if len(_clear(np.array([average * dim]), largest_square)) == 0:
        return np.eye(dim), ("matching images have the same vectors: plain PCA instead",)
    if num_pairs >= dim and linalg.eigvalsh(within, subset_by_index=(0, 0))[0] > _LOOSE * average:
        return within, ()
    target = average * np.eye(dim)
    # Ledoit-Wolf: the error of S as an estimate, over its distance from the target.
    error = (fourth - float((within**2).sum())) / num_pairs
    distance = float(((within - target) ** 2).sum())
    shrinkage = 1.0 if error >= distance else max(_LEAST_SHRINKAGE, error / distance)
    shrunk = (1 - shrinkage) * within + shrinkage * target
    return shrunk, (
        f"the differences of {num_pairs} matching pairs do not fill {dim} dimensions: their scatter was "
        f"shrunk by {shrinkage:.3g} towards a multiple of the identity",
    )


def _notes_on_dimensions(vectors: VectorArray, wanted: int, kept: int) -> tuple[str, ...]:
    num, dim = vectors.shape
    if kept == 0:
        return (_same_vector(vectors),)
    if num <= dim:
        return (
            f"{kept} of {dim} dimensions: fitted on only {num} images, which span at most {num - 1}"
            + (f"; {wanted} were asked for" if kept < wanted else ""),
        )
    if kept < min(wanted, dim):
        return (f"{kept} of {dim} dimensions: the others do not vary; {wanted} were asked for",)
    if wanted > dim:
        return (f"all {dim} dimensions: {wanted} were asked for",)
    return ()


def _same_vector(vectors: VectorArray) -> str:
    if len(vectors) == 1:
        return "a single image to fit on does not vary: every vector becomes zero"
    return f"the {len(vectors)} images to fit on have the same vector: every vector becomes zero"
