"""What happens between a first search and its result: re-ranking steps, parsed and applied in order.

Steps are written ``["dba(n=10)", "alpha_qe(n=10, alpha=3)", "spatial(top=100)"]``. Those that expand vectors
come first, then at most one that works on a graph of vectors, then those that only need an order.

No step sees a label, or which images are relevant or junk: a real searcher does not know them either. The one
thing known is the query's own id, which is left out of its neighbours where the task leaves it out.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from ssl_retrieval import keypoints, query_expansion
from ssl_retrieval.console import say
from ssl_retrieval.decoding import load_part
from ssl_retrieval.diffusion import diffusion_ranking, mutual_graph
from ssl_retrieval.errors import UserError
from ssl_retrieval.k_reciprocal import encode_gallery, reciprocal_similarity
from ssl_retrieval.neighbours import neighbours
from ssl_retrieval.rerank_syntax import choice, number, read, whole, written
from ssl_retrieval.searching import Search
from ssl_retrieval.spatial_verification import MODELS, verify
from ssl_retrieval.types import ImageSet

_MOST_NEIGHBOURS = 10_000


class Step(Protocol):
    """One re-ranking step, as configured."""

    form: ClassVar[str]
    needs_vectors: ClassVar[bool]
    gives_scores: ClassVar[bool]

    def check(self) -> None:
        """Refuse what is not installed.

        Raises:
            UserError: Says how to install it.
        """
        ...

    def apply(self, search: Search) -> Search:
        """Re-rank."""
        ...


class _Step:
    form: ClassVar[str]
    needs_vectors: ClassVar[bool] = True
    gives_scores: ClassVar[bool] = False

    def check(self) -> None:
        """Everything it needs is there."""


@dataclass(frozen=True)
class AlphaQueryExpansion(_Step):
    """See `query_expansion.expand_queries`."""

    form: ClassVar[str] = "alpha_qe"
    n: int = whole(10, 1, _MOST_NEIGHBOURS)
    alpha: float = number(3.0, 0.0, 100.0)

    def apply(self, search: Search) -> Search:
        """Expand the queries."""
        return _expanded(self.form, search, self.n, self.alpha)


@dataclass(frozen=True)
class AverageQueryExpansion(_Step):
    """See `query_expansion.expand_queries`, with α = 0."""

    form: ClassVar[str] = "aqe"
    n: int = whole(10, 1, _MOST_NEIGHBOURS)

    def apply(self, search: Search) -> Search:
        """Expand the queries."""
        return _expanded(self.form, search, self.n, 0.0)


def _expanded(name: str, search: Search, n: int, alpha: float) -> Search:
    begin = time.perf_counter()
    queries = query_expansion.expand_queries(*search.vectors, n, alpha, search.own)
    return search.after(name, 0, time.perf_counter() - begin, queries=queries)


@dataclass(frozen=True)
class DiscriminativeQueryExpansion(_Step):
    """See `query_expansion.discriminative_queries`."""

    form: ClassVar[str] = "dqe"
    n: int = whole(10, 1, _MOST_NEIGHBOURS)
    negatives: int = whole(200, 1, _MOST_NEIGHBOURS)
    c: float = number(1.0, 1e-4, 1e4)

    def apply(self, search: Search) -> Search:
        """Replace the queries."""
        begin = time.perf_counter()
        queries = query_expansion.discriminative_queries(
            *search.vectors, self.n, self.negatives, self.c, search.own
        )
        return search.after(self.form, 0, time.perf_counter() - begin, queries=queries)


@dataclass(frozen=True)
class DatabaseAugmentation(_Step):
    """See `query_expansion.augment_gallery`."""

    form: ClassVar[str] = "dba"
    n: int = whole(10, 1, _MOST_NEIGHBOURS)
    alpha: float = number(0.0, 0.0, 100.0)

    def apply(self, search: Search) -> Search:
        """Replace the gallery."""
        begin = time.perf_counter()
        gallery = query_expansion.augment_gallery(search.vectors[1], self.n, self.alpha)
        took = time.perf_counter() - begin
        return search.after(self.form, took, 0, uses_gallery=True, gallery=gallery, changes_gallery=True)


@dataclass(frozen=True)
class Diffusion(_Step):
    """See `diffusion.diffusion_ranking`."""

    form: ClassVar[str] = "diffusion"
    gives_scores: ClassVar[bool] = True
    k: int = whole(50, 1, _MOST_NEIGHBOURS)
    kq: int = whole(10, 1, _MOST_NEIGHBOURS)
    gamma: float = number(3.0, 0.1, 100.0)
    alpha: float = number(0.99, 1e-6, 1 - 1e-6)
    iterations: int = whole(20, 1, 10_000)
    top: int = whole(1000, 1, 100_000)

    def apply(self, search: Search) -> Search:
        """Diffuse from every query."""
        begin = time.perf_counter()
        queries, gallery = search.vectors
        graph = mutual_graph(gallery, self.k, self.gamma)
        middle = time.perf_counter()
        scores = diffusion_ranking(
            search.similarity,
            neighbours(queries, gallery, self.kq, search.own),
            graph,
            gamma=self.gamma,
            alpha=self.alpha,
            iterations=self.iterations,
            top=self.top,
            own=search.own,
        )
        return search.after(
            self.form,
            middle - begin,
            time.perf_counter() - middle,
            uses_gallery=True,
            scores=scores,
            gallery_bytes=graph.num_bytes,
        )


@dataclass(frozen=True)
class KReciprocal(_Step):
    """See `k_reciprocal.reciprocal_similarity`."""

    form: ClassVar[str] = "k_reciprocal"
    gives_scores: ClassVar[bool] = True
    k1: int = whole(20, 1, 1000)
    k2: int = whole(6, 1, 1000)
    lambda_: float = number(0.3, 0.0, 1.0)

    def apply(self, search: Search) -> Search:
        """Compare encodings."""
        begin = time.perf_counter()
        queries, gallery = search.vectors
        encoded = encode_gallery(gallery, self.k1, self.k2)
        middle = time.perf_counter()
        scores = reciprocal_similarity(queries, encoded, self.lambda_, search.own)
        return search.after(
            self.form,
            middle - begin,
            time.perf_counter() - middle,
            uses_gallery=True,
            scores=scores,
            gallery_bytes=encoded.num_bytes,
        )


@dataclass(frozen=True)
class SpatialVerification(_Step):
    """See `spatial_verification.verify`."""

    form: ClassVar[str] = "spatial"
    needs_vectors: ClassVar[bool] = False
    gives_scores: ClassVar[bool] = True
    top: int = whole(100, 1, _MOST_NEIGHBOURS)
    model: str = choice("affine", *MODELS)
    features: str = choice("sift", *keypoints.DETECTORS)
    keypoints: int = whole(500, 10, 10_000)
    min_inliers: int = whole(8, 1, 10_000)

    def check(self) -> None:
        """Refuse features that are not installed."""
        keypoints.require(self.features)

    def apply(self, search: Search) -> Search:
        """Match photos, and give the gallery's costs as if all of it had been described."""
        detector = keypoints.make(self.features, self.keypoints)
        num_gallery = len(search.gallery_images)
        num_pairs = len(search.query_images) * min(self.top, num_gallery)
        say(f"spatial verification of {num_pairs:,} pairs of photos")

        def describe(images: ImageSet, row: int) -> keypoints.LocalFeatures:
            return detector.detect(load_part(images, row, search.image_size))

        found = verify(
            search.similarity,
            lambda row: describe(search.query_images, row),
            lambda row: describe(search.gallery_images, row),
            detector,
            top=self.top,
            model=self.model,
            min_inliers=self.min_inliers,
            own=search.own,
        )
        whole_gallery = num_gallery / max(1, found.num_described)
        return search.after(
            self.form,
            found.gallery_s * whole_gallery,
            found.query_s,
            scores=found.similarity,
            gallery_bytes=found.gallery_bytes * whole_gallery,
        )


FORMS: dict[str, type] = {
    step.form: step
    for step in (
        AverageQueryExpansion,
        AlphaQueryExpansion,
        DiscriminativeQueryExpansion,
        DatabaseAugmentation,
        Diffusion,
        KReciprocal,
        SpatialVerification,
    )
}
"""Name of a step -> what it makes."""


def parse(texts: Sequence[str]) -> tuple[Step, ...]:
    """Read re-ranking steps.

    Args:
        texts: In order; ``name(key=value, …)``, see `FORMS`.

    Raises:
        UserError: An unknown name or parameter, a value out of bounds, a missing package, or a step that
            needs vectors behind one that gives scores.

    >>> [name_of(step) for step in parse(["dba(n=5)", "aqe"])]
    ['dba(n=5, alpha=0.0)', 'aqe(n=10)']
    """
    steps: tuple[Step, ...] = tuple(read(text, FORMS) for text in texts)
    before = ""
    for step in steps:
        step.check()
        if before and step.needs_vectors:
            raise UserError(f"{step.form} needs vectors, and {before} before it gives scores: swap them")
        before = before or (step.form if step.gives_scores else "")
    return steps


def name_of(step: Step) -> str:
    """Write a step with all its parameters."""
    return written(step.form, step)


def apply(steps: Sequence[Step], search: Search) -> Search:
    """Apply steps in order; vectors are gone behind one that gives scores."""
    for step in steps:
        search = step.apply(search)
    return search if search.scores is None else replace(search, queries=None, gallery=None)
