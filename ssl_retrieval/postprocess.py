"""What happens to vectors between the network and the search.

Steps are written as short texts, ``["center", "l2", "pca_whiten:256", "itq:128"]``. They are parsed, fitted
one after another on the vectors of some images, and applied to the vectors of others.

A row of zeros is an image without features. It is left out of what is fitted and stays zero after every
step, which no step does by itself: centring would give all such images one common direction, and codes one
common code, so that they would be each other's best matches.
"""

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ssl_retrieval.codes_binary import Itq, Lsh, Sign
from ssl_retrieval.codes_faiss import HalfPrecision, ProductQuantization, ScalarQuantization
from ssl_retrieval.errors import UserError
from ssl_retrieval.step_syntax import Parameters
from ssl_retrieval.types import FloatArray, IntArray, VectorArray
from ssl_retrieval.whitening import LearnedWhitening, Pca

_BLOCK_BYTES = 64 << 20
_MAX_DIM = 1 << 16
_MAX_PART_BITS = 12


class Fitted(Protocol):
    """A step that knows all it needs."""

    @property
    def bits_per_image(self) -> int | None:
        """Bits of the code that an image of the gallery is kept as; None = 32 per value."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done because data were short."""
        ...

    def apply(self, vectors: VectorArray, role: str) -> VectorArray:
        """Transform float32 [N, D] to float32 [N, D'].

        Args:
            vectors: The vectors.
            role: ``query`` or ``gallery``; only codes tell them apart.
        """
        ...


class Step(Protocol):
    """One operation, as configured."""

    @property
    def name(self) -> str:
        """How it is written in a config."""
        ...

    @property
    def learns(self) -> bool:
        """Whether it depends on the vectors that it is fitted on."""
        ...

    @property
    def needs_pairs(self) -> bool:
        """Whether it must know which of them match."""
        ...

    def fit(self, vectors: VectorArray, pairs: IntArray | None, seed: int) -> Fitted:
        """Learn what is to be learned.

        Args:
            vectors: float32 [N, D]; N may be 0 where nothing is learned.
            pairs: int64 [P, 2]: rows of ``vectors`` that match; None = not known.
            seed: Of all that is random.

        Raises:
            UserError: It needs pairs and there are none.
        """
        ...


@dataclass(frozen=True, eq=False)
class Pipeline:
    """Fitted steps, in order.

    Attributes:
        parts: The steps.
        dim: Dimensions of what comes out.
        notes: What was done because data were short, each with the name of its step.
    """

    parts: tuple[Fitted, ...]
    dim: int
    notes: tuple[str, ...] = ()

    @property
    def bytes_per_image(self) -> float:
        """What an image of the gallery takes: its code, or 4 bytes per value."""
        for part in self.parts:
            if part.bits_per_image is not None:
                return float(math.ceil(part.bits_per_image / 8))
        return 4.0 * self.dim

    def apply(self, vectors: VectorArray, role: str) -> VectorArray:
        """Transform vectors; rows of zeros stay zero.

        Args:
            vectors: float32 [N, D].
            role: ``query`` or ``gallery``.

        Returns:
            float32 [N, `dim`].
        """
        assert role in ("query", "gallery")
        result = np.empty((len(vectors), self.dim), np.float32)
        # In blocks, so that what lies between two steps never exists for all images at once.
        step = max(1, _BLOCK_BYTES // (4 * max(1, vectors.shape[1])))
        for start in range(0, len(vectors), step):
            block = vectors[start : start + step]
            for part in self.parts:
                block = _applied(part, block, role)
            result[start : start + step] = block
        return result


def fit(steps: Sequence[Step], vectors: VectorArray, pairs: IntArray | None, seed: int) -> Pipeline:
    """Fit steps, each on what those before it make of the vectors.

    Args:
        steps: See `parse`.
        vectors: float32 [N, D]: of the images to fit on; N may be 0 when no step learns.
        pairs: int64 [P, 2]: rows of ``vectors`` that match; None = not known.
        seed: Of all that is random.

    Returns:
        The fitted steps.

    Raises:
        UserError: There is nothing to fit on, or a step needs pairs and there are none.
    """
    notes = []
    if any(step.learns for step in steps):
        rows = np.flatnonzero(vectors.any(axis=1))
        num_without = len(vectors) - len(rows)
        if len(rows) == 0:
            raise UserError(
                f"none of the {len(vectors)} images to fit {', '.join(step.name for step in steps)} on has "
                "features: give other images as fit.name=…"
            )
        if num_without:
            notes.append(f"{num_without} of {len(vectors)} images without features were left out of fitting")
            vectors, pairs = _rows_of(vectors, pairs, rows)
    parts: list[Fitted] = []
    for step in steps:
        part = step.fit(vectors, pairs, seed)
        parts.append(part)
        notes += [f"{step.name}: {note}" for note in part.notes]
        vectors = _applied(part, vectors, "query")
    return Pipeline(tuple(parts), vectors.shape[1], tuple(notes))


def parse(texts: Sequence[str]) -> tuple[Step, ...]:
    """Read steps.

    Args:
        texts: In order; ``name`` or ``name:parameter``, see `FORMS`.

    Raises:
        UserError: An unknown name, a parameter that does not fit, or a step after a code.

    >>> [step.name for step in parse(["l2", "pca_whiten:256", "itq:128"])]
    ['l2', 'pca_whiten:256', 'itq:128']
    """
    steps = tuple(_parse_one(text) for text in texts)
    code = ""
    for step in steps:
        if code and not isinstance(step, L2):
            raise UserError(f"step {step.name!r} after {code!r}: a code must be the last step")
        code = step.name if isinstance(step, _CODES) else code
    return steps


def matching_pairs(labels: IntArray, limit: int, seed: int) -> IntArray:
    """Pair images of the same label.

    Args:
        labels: int64 [N].
        limit: At most so many pairs; where there are more, an even draw from all of them.
        seed: Of the draw.

    Returns:
        int64 [P, 2]: rows, the lower first; unique and sorted.

    >>> matching_pairs(np.array([7, 5, 7, 7]), limit=10, seed=0).tolist()
    [[0, 2], [0, 3], [2, 3]]
    """
    order = np.argsort(labels, kind="stable")
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    last = np.cumsum(sizes * (sizes - 1) // 2)
    total = int(last[-1]) if len(last) else 0
    if total <= limit:
        numbers = np.arange(total)
    else:
        numbers = np.random.default_rng(seed % 2**32).choice(total, limit, replace=False)
    group = np.searchsorted(last, numbers, side="right")
    # Pair number t of a label is (i, j) with t = j (j − 1) / 2 + i and i < j.
    within = numbers - (last - sizes * (sizes - 1) // 2)[group]
    second = (1 + np.sqrt(1 + 8 * within)).astype(np.int64) // 2
    first = within - second * (second - 1) // 2
    rows = order[starts[group][:, None] + np.stack([first, second], axis=1)]
    return rows[np.lexsort((rows[:, 1], rows[:, 0]))].astype(np.int64)


def l2_normalize(vectors: VectorArray) -> VectorArray:
    """Scale each row to length 1, so that dot products are cosines; rows of zeros stay zero.

    Args:
        vectors: float32 [N, D].

    >>> l2_normalize(np.array([[3, 4], [0, 0]], np.float32)).tolist()
    [[0.60..., 0.80...], [0.0, 0.0]]
    """
    # In float64, so that squares of large activations neither overflow nor lose their small parts.
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    return (vectors / np.where(norms > 0, norms, 1)[:, None]).astype(np.float32)


@dataclass(frozen=True)
class L2:
    """Length 1 for every vector; fitted when it is made."""

    name: str = "l2"
    learns: bool = False
    needs_pairs: bool = False
    bits_per_image: int | None = None
    notes: tuple[str, ...] = ()

    def fit(self, vectors: VectorArray, pairs: IntArray | None = None, seed: int = 0) -> "L2":
        """Nothing to do."""
        return self

    def apply(self, vectors: VectorArray, role: str = "query") -> VectorArray:
        """Normalise, see `l2_normalize`."""
        return l2_normalize(vectors)


@dataclass(frozen=True)
class Power:
    """Power normalisation ``sign(x) |x|^exponent`` (Perronnin et al., 2010); fitted when it is made.

    Attributes:
        exponent: Above 0, up to 1; 0.5 is the signed root.
    """

    exponent: float
    learns: bool = False
    needs_pairs: bool = False
    bits_per_image: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """How it is written in a config."""
        return f"power:{self.exponent}"

    def fit(self, vectors: VectorArray, pairs: IntArray | None = None, seed: int = 0) -> "Power":
        """Nothing to do."""
        return self

    def apply(self, vectors: VectorArray, role: str = "query") -> VectorArray:
        """Raise each value's magnitude to the power."""
        return np.sign(vectors) * np.abs(vectors) ** np.float32(self.exponent)


@dataclass(frozen=True, eq=False)
class Mean:
    """What `Center` takes away: float64 [D]."""

    mean: FloatArray
    bits_per_image: int | None = None
    notes: tuple[str, ...] = ()

    def apply(self, vectors: VectorArray, role: str = "query") -> VectorArray:
        """Subtract the mean."""
        return (vectors - self.mean).astype(np.float32)


@dataclass(frozen=True)
class Center:
    """Subtracts the mean of the images it was fitted on."""

    name: str = "center"
    learns: bool = True
    needs_pairs: bool = False

    def fit(self, vectors: VectorArray, pairs: IntArray | None = None, seed: int = 0) -> Mean:
        """Take the mean of ``vectors`` (float32 [N, D], N at least 1)."""
        return Mean(vectors.mean(axis=0, dtype=np.float64))


def _dim(given: Parameters) -> int:
    return given.whole(given.values[0], "the number of dimensions", _MAX_DIM)


def _bits(given: Parameters) -> int:
    return given.whole(given.values[0], "the number of bits", _MAX_DIM)


def _pca_whiten(given: Parameters) -> Pca:
    if len(given.values) == 1:
        return Pca(_dim(given), 0.5)
    # It is the exponent of the variance: beyond 0.5 the smallest variances would become the largest.
    return Pca(_dim(given), given.number(given.values[1], "the exponent of the variances", 0.5))


def _product(given: Parameters) -> ProductQuantization:
    parts, cross, bits = given.values[0].partition("x")
    return ProductQuantization(
        given.whole(parts, "the number of parts", _MAX_DIM),
        given.whole(bits, "the number of bits per part", _MAX_PART_BITS) if cross else 8,
        rotates=given.text.startswith("opq"),
    )


FORMS: dict[str, tuple[str, int, int, Callable[[Parameters], Step]]] = {
    "center": ("center", 0, 0, lambda _: Center()),
    "l2": ("l2", 0, 0, lambda _: L2()),
    "power": ("power:0.5", 1, 1, lambda given: Power(given.number(given.values[0], "the exponent", 1.0))),
    "pca": ("pca:256", 1, 1, lambda given: Pca(_dim(given))),
    "pca_whiten": ("pca_whiten:256 or pca_whiten:256:0.25", 1, 2, _pca_whiten),
    "learned_whiten": (
        "learned_whiten or learned_whiten:256",
        0,
        1,
        lambda given: LearnedWhitening(_dim(given) if given.values else None),
    ),
    "sign": ("sign", 0, 0, lambda _: Sign()),
    "lsh": ("lsh:128", 1, 1, lambda given: Lsh(_bits(given))),
    "itq": ("itq:128", 1, 1, lambda given: Itq(_bits(given))),
    "pq": ("pq:16 or pq:16x8", 1, 1, _product),
    "opq": ("opq:16 or opq:16x8", 1, 1, _product),
    "sq8": ("sq8", 0, 0, lambda _: ScalarQuantization(8)),
    "sq4": ("sq4", 0, 0, lambda _: ScalarQuantization(4)),
    "fp16": ("fp16", 0, 0, lambda _: HalfPrecision()),
}
"""Name of a step -> how it is written, fewest and most parameters, what makes it."""

_CODES = (Sign, Lsh, Itq, ProductQuantization, ScalarQuantization, HalfPrecision)


def _parse_one(text: str) -> Step:
    text = text.strip()
    name, *values = text.split(":")
    if name not in FORMS:
        near = difflib.get_close_matches(name.lower(), FORMS, n=1)
        guess = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"unknown step {text!r}{guess} (known: {', '.join(FORMS)})")
    form, fewest, most, make = FORMS[name]
    given = Parameters(text, form, tuple(values))
    given.count(fewest, most)
    return make(given)


def _applied(part: Fitted, vectors: VectorArray, role: str) -> VectorArray:
    result = part.apply(vectors, role)
    if result is not vectors:
        result[~vectors.any(axis=1)] = 0
    return result


def _rows_of(
    vectors: VectorArray, pairs: IntArray | None, rows: IntArray
) -> tuple[VectorArray, IntArray | None]:
    """Keep some rows, and the pairs of two that are kept, numbered anew."""
    if pairs is not None:
        numbers = np.full(len(vectors), -1, np.int64)
        numbers[rows] = np.arange(len(rows))
        pairs = numbers[pairs]
        pairs = pairs[(pairs >= 0).all(axis=1)]
    return vectors[rows], pairs
