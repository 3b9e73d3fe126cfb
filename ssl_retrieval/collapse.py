"""Signs of collapse in embeddings: spread, number of directions, alignment, uniformity, and the words for it.

An untrained network that ends in ReLU and average pooling gives all images nearly parallel embeddings
(std 0.03 to 0.4, cosines near 1), and training spreads them even where the objective collapses. So nothing
here is judged by one fixed limit alone: what counts is the network's own start, and whether search suffers.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ssl_retrieval.augment import Noise, View
from ssl_retrieval.postprocess import l2_normalize
from ssl_retrieval.types import FloatArray, IntArray, VectorArray

RANK_EPSILON = 1e-7
"""The constant of RankMe for float32."""

ROUNDING = 1e-6
"""Differences between unit vectors below this come from float32 arithmetic."""

CONSTANT_STD = 1e-4
"""Below it all embeddings count as equal; untrained networks stay above 0.03, even on pictures of noise."""

LINE_RANK = 1.5
"""Below it embeddings differ along one direction only; untrained networks have 15 and more on photos, and
ImageNet weights still have 3.5 on pictures of noise."""

MIN_IMAGES = 16
"""With fewer images a low rank says nothing."""

CHUNK_ROWS = 1024


@dataclass(frozen=True)
class Signals:
    """What one evaluation pass saw.

    Attributes:
        std: See `embedding_std`.
        effective_rank: See `effective_rank`; of the embeddings after `centre`.
        alignment: See `alignment`.
        uniformity: See `uniformity`.
        retrieval: Mean of a retrieval metric in [0, 1].
        metric: That metric's name.
        num_queries: Queries behind it.
        num_images: Embeddings behind the other values.
    """

    std: float
    effective_rank: float
    alignment: float
    uniformity: float
    retrieval: float
    metric: str
    num_queries: int
    num_images: int

    @classmethod
    def of(
        cls,
        queries: VectorArray,
        gallery: VectorArray,
        partners: IntArray,
        *,
        retrieval: float,
        metric: str,
    ) -> "Signals":
        """Compute all signals of a pass.

        Args:
            queries: float32 [Q, D].
            gallery: float32 [N, D].
            partners: int64 [Q], a gallery item that belongs to each query.
            retrieval: The metric's mean.
            metric: Its name.
        """
        return cls(
            std=embedding_std(gallery),
            effective_rank=effective_rank(centre(gallery)),
            alignment=alignment(queries, gallery[partners]),
            uniformity=uniformity(gallery),
            retrieval=retrieval,
            metric=metric,
            num_queries=len(queries),
            num_images=len(gallery),
        )


def embedding_std(vectors: VectorArray) -> float:
    """Average the per-dimension standard deviation of L2-normalised embeddings, times √D.

    Chen & He: Exploring Simple Siamese Representation Learning, CVPR 2021 (arXiv 2011.10566), section 4.1.

    Args:
        vectors: float32 [N, D].

    Returns:
        0 when all embeddings are equal, about 1 when they point anywhere.

    >>> embedding_std(np.ones((5, 3), np.float32))
    0.0
    >>> round(embedding_std(np.array([[2, 0], [-1, 0], [0, 3], [0, -1]], np.float32)), 6)
    1.0
    """
    units = _units(vectors)
    return float(units.std(axis=0).mean() * math.sqrt(units.shape[1]))


def effective_rank(vectors: VectorArray | FloatArray) -> float:
    """Count the directions that embeddings use: exp of the entropy of their normalised singular values.

    RankMe: Garrido, Balestriero, Najman, LeCun, ICML 2023 (arXiv 2210.02885), with its epsilon of 1e-7.

    Args:
        vectors: float [N, D].

    Returns:
        From 1 (one direction) to min(N, D) (all alike); about 1 for zeros.

    >>> round(effective_rank(np.eye(4, dtype=np.float32)), 3)
    4.0
    >>> round(effective_rank(np.array([[1, 2], [2, 4], [3, 6]], np.float32)), 3)
    1.0
    """
    wide = vectors.astype(np.float64)
    # Eigenvalues of the smaller product are the squared singular values, found 30 times faster.
    product = wide @ wide.T if len(wide) < wide.shape[1] else wide.T @ wide
    squares = np.linalg.eigvalsh(product)
    squares[squares < squares[-1] * len(squares) * np.finfo(np.float64).eps] = 0.0
    values = np.sqrt(squares)
    shares = values / max(float(values.sum()), np.finfo(np.float64).tiny) + RANK_EPSILON
    return float(np.exp(-(shares * np.log(shares)).sum()))


def alignment(first: VectorArray, second: VectorArray) -> float:
    """Average the squared distance between L2-normalised embeddings that belong together.

    Wang & Isola: Understanding Contrastive Representation Learning through Alignment and Uniformity on the
    Hypersphere, ICML 2020 (arXiv 2005.10242), with α = 2.

    Args:
        first: float32 [N, D].
        second: float32 [N, D], row by row what belongs to ``first``.

    Returns:
        From 0 (equal) to 4 (opposite).

    >>> alignment(np.array([[1, 0], [0, 2]], np.float32), np.array([[0, 1], [0, 1]], np.float32))
    1.0
    """
    return float(((_units(first) - _units(second)) ** 2).sum(axis=1).mean())


def uniformity(vectors: VectorArray) -> float:
    """Log of the average Gaussian potential of all pairs of L2-normalised embeddings; lower = more uniform.

    Wang & Isola (see `alignment`), with t = 2.

    Args:
        vectors: float32 [N, D].

    Returns:
        0 when all are equal (or there is no pair); down to about -4 when spread evenly in many dimensions.

    >>> round(uniformity(np.array([[1, 0], [-1, 0]], np.float32)), 6)
    -8.0
    """
    units = _units(vectors)
    num = len(units)
    if num < 2:
        return 0.0
    lengths = (units**2).sum(axis=1)
    total = 0.0
    for start in range(0, num, CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        squares = lengths[rows, None] + lengths - 2 * (units[rows] @ units.T)
        total += float(np.exp(-2 * np.maximum(squares, 0)).sum())
    return math.log((total - num) / (num * (num - 1)))


def centre(vectors: VectorArray) -> FloatArray:
    """Normalise embeddings and take their mean away.

    The direction that all embeddings of an untrained network share would hide all others from
    `effective_rank`. What is left of equal embeddings is rounding, which must not look like directions.

    Args:
        vectors: float32 [N, D].

    Returns:
        float64 [N, D].
    """
    units = _units(vectors)
    centred = units - units.mean(axis=0)
    centred[np.abs(centred) < ROUNDING] = 0.0
    return centred


def kind_of_trouble(signals: Signals, start: Signals) -> str | None:
    """Name what is wrong with embeddings.

    Except for equal embeddings nothing is wrong as long as search is better than at the start: few
    directions can be all that a task needs.

    Args:
        signals: Now.
        start: Before training; the very same object at the start itself.

    Returns:
        ``constant`` (all equal), ``line`` (one direction), ``shrinking`` (directions are lost and search
        suffers), ``worse`` (search suffers) or None.
    """
    if signals.std < CONSTANT_STD:
        return "constant"
    if signals is not start and signals.retrieval > start.retrieval:
        return None
    if signals.std < start.std / 10:
        return "constant"
    if signals.effective_rank < LINE_RANK and signals.num_images >= MIN_IMAGES:
        return "line"
    if signals.retrieval > 0.9 * start.retrieval or start.retrieval - signals.retrieval < _noise(start):
        return None
    return "shrinking" if signals.effective_rank < start.effective_rank / 2 else "worse"


def diagnose(signals: Signals, start: Signals, advice: str, views: str = "") -> str | None:
    """Say in plain words what is wrong with embeddings and what to try.

    Args:
        signals: Now.
        start: Before training; the very same object at the start itself.
        advice: What to try with this method.
        views: What to try with its views where search gets worse without a collapse; empty = nothing.

    Returns:
        One line, or None when nothing is wrong.
    """
    kind = kind_of_trouble(signals, start)
    if kind is None:
        return None
    before = "" if signals is start else "{} at the start, "
    std = f"std {before.format(_short(start.std))}now {_short(signals.std)}"
    rank = f"effective rank {before.format(f'{start.effective_rank:.0f}')}now {signals.effective_rank:.1f}"
    search = f"{signals.metric} {before.format(f'{start.retrieval:.3f}')}now {signals.retrieval:.3f}"
    words = {
        "constant": f"embeddings collapse: all images get nearly the same one ({std})",
        "line": f"embeddings collapse: they differ along one direction only ({rank}; {search})",
        "shrinking": f"embeddings collapse: they lose directions and search gets worse ({rank}; {search})",
        "worse": f"search gets worse by training ({search})",
    }[kind]
    if signals is start:
        return f"{words}, before any training: check that the images differ, and model.weights"
    if kind == "worse" and views:
        # Views that throw away what tells the images apart do this without any collapse.
        advice = f"{views}, {advice}"
    return f"{words}; try {advice}"


def colour_advice(views: Iterable[View | Noise]) -> str:
    """Say what to try with a method's views that change colours; empty = none of them does."""
    if not any(isinstance(view, View) and (view.augment.jitter or view.augment.grayscale) for view in views):
        return ""
    return "method.augment.jitter=0 method.augment.grayscale=0 where colour matters"


def _units(vectors: VectorArray) -> FloatArray:
    return l2_normalize(vectors).astype(np.float64)


def _noise(start: Signals) -> float:
    """Bound twice the standard error of a mean of values in [0, 1]."""
    share = min(1.0, max(0.0, start.retrieval))
    return 2 * math.sqrt(share * (1 - share) / start.num_queries)


def _short(value: float) -> str:
    return f"{value:.2g}"
