"""What an approximate index costs: in recall against exact search, in the task's mAP, in bytes and in time.

An index gives k results and no full ranking, so its mAP is cut at k. It is compared, query by query, with the
mAP of exact search cut at the same k; the mAP of the full exact ranking stands beside it for reference.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ssl_retrieval import metrics
from ssl_retrieval.index import BuiltIndex, search, threads
from ssl_retrieval.index_syntax import IndexSpec
from ssl_retrieval.search import RelevantRanks, relevant_ranks, top_k
from ssl_retrieval.statistics import Interval, PairedDifference, bootstrap_mean, paired_test
from ssl_retrieval.types import FloatArray, IntArray, Ranking, VectorArray

TIMED_QUERIES = 200
"""Queries that are timed, one at a time."""

WARM_UP = 5
ROUNDING = 1e-6
"""Cosines that differ by less are the same: float32 products differ so much by the order of their sums."""

EXACT = "exact"

Finder = Callable[[VectorArray, int, Sequence[IntArray] | None], Ranking]


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one query at a time.

    Attributes:
        median: Half of the queries are faster.
        p95: 95 % of the queries are faster.
        threads: How many were allowed; ``OMP_NUM_THREADS`` limits it.
    """

    median: float
    p95: float
    threads: int


@dataclass(frozen=True, eq=False)
class Audit:
    """What was found about one index.

    Attributes:
        name: The spec, or ``exact``.
        k: Results per query.
        num_images: Images in the gallery.
        recall: recall@k over queries: the share of the exact k nearest that were found. A result counts when
            its exact cosine is at least that of the exact k-th, so that equal images do not count as missed.
        map_at_k: mAP@k; None without answers.
        difference: mAP@k minus exact search's, query by query; None without answers.
        fixed_bytes: What the index takes without images.
        bytes_per_image: Bytes over images, all included.
        bytes_at: Bytes at the number of images that was asked for.
        build_s: Seconds of training and adding.
        peak_mib: Memory that building needed on top of what was there.
        latencies: With one thread, and with all where there are more.
        notes: What was done because images were few.
    """

    name: str
    k: int
    num_images: int
    recall: Interval
    map_at_k: Interval | None
    difference: PairedDifference | None
    fixed_bytes: float
    bytes_per_image: float
    bytes_at: float
    build_s: float
    peak_mib: float
    latencies: tuple[Latency, ...]
    notes: tuple[str, ...] = ()

    @property
    def accuracy(self) -> float:
        """What is weighed against bytes and time: mAP@k, or recall@k where there are no answers."""
        return self.recall.mean if self.map_at_k is None else self.map_at_k.mean

    def to_dict(self) -> dict[str, Any]:
        """Give what is stored beside an index."""
        return {
            "k": self.k,
            "recall": self.recall.mean,
            "recall_low": self.recall.low,
            "recall_high": self.recall.high,
            "num_queries": self.recall.num_queries,
            "num_images": self.num_images,
            "map_difference": None if self.difference is None else self.difference.mean,
        }


@dataclass(frozen=True, eq=False)
class Problem:
    """What is searched, and what exact search finds.

    Attributes:
        queries: float32 [Q, D], rows of length 1 or 0.
        gallery: float32 [N, D], likewise.
        k: Results per query.
        ignored: Q arrays of gallery rows that do not count; None = none.
        relevant: Q arrays of gallery rows that are right; None = not known.
        exact: The exact ranking of width k.
        exact_map_at_k: float64 [Q]; None without answers.
        exact_map: float64 [Q], mAP of the full ranking; None without answers.
    """

    queries: VectorArray
    gallery: VectorArray
    k: int
    ignored: Sequence[IntArray] | None
    relevant: Sequence[IntArray] | None
    exact: Ranking
    exact_map_at_k: FloatArray | None = field(default=None)
    exact_map: FloatArray | None = field(default=None)

    @classmethod
    def of(
        cls,
        queries: VectorArray,
        gallery: VectorArray,
        k: int,
        ignored: Sequence[IntArray] | None = None,
        relevant: Sequence[IntArray] | None = None,
    ) -> "Problem":
        """Search exactly, for reference."""
        exact = top_k(queries, gallery, k, ignored)
        if relevant is None:
            return cls(queries, gallery, k, ignored, None, exact)
        full = relevant_ranks(queries, gallery, relevant, ignored)
        return cls(
            *(queries, gallery, k, ignored, relevant, exact),
            exact_map_at_k=metrics.compute(f"mAP@{k}", ranks_within(exact, relevant, len(gallery), ignored)),
            exact_map=metrics.compute("mAP", full),
        )


def audit(problem: Problem, spec: IndexSpec, built: BuiltIndex, at: int) -> Audit:
    """Compare an index with exact search.

    Args:
        problem: What is searched.
        spec: The index with its search settings.
        built: It, holding ``problem.gallery``.
        at: A number of images for which bytes are estimated.
    """

    def find(queries: VectorArray, k: int, ignored: Sequence[IntArray] | None) -> Ranking:
        return search(built, spec, queries, k, ignored, problem.gallery)

    return _audited(
        problem,
        spec.name,
        find,
        fixed_bytes=built.fixed_bytes,
        bytes_per_image=built.bytes_per_image,
        bytes_at=built.bytes_at(at),
        build_s=built.build_s,
        peak_mib=built.peak_mib,
        notes=built.notes,
    )


def audit_exact(problem: Problem, at: int) -> Audit:
    """Measure exact search (`top_k`) the same way; it takes the vectors themselves."""

    def find(queries: VectorArray, k: int, ignored: Sequence[IntArray] | None) -> Ranking:
        return top_k(queries, problem.gallery, k, ignored)

    size = 4.0 * problem.gallery.shape[1]
    return _audited(
        problem,
        EXACT,
        find,
        fixed_bytes=0.0,
        bytes_per_image=size,
        bytes_at=size * at,
        build_s=0.0,
        peak_mib=0.0,
    )


def ranks_within(
    ranking: Ranking,
    relevant: Sequence[IntArray],
    num_gallery: int,
    ignored: Sequence[IntArray] | None = None,
) -> RelevantRanks:
    """Say where relevant items landed in a ranking that ends after k; those beyond have no rank.

    Args:
        ranking: Q queries.
        relevant: Q arrays of gallery rows.
        num_gallery: Gallery images.
        ignored: Q arrays of gallery rows that do not count.

    >>> found = Ranking(np.array([[4, 2, 7]]), np.array([[0.9, 0.8, 0.7]], np.float32))
    >>> ranks_within(found, [np.array([7, 1, 4])], num_gallery=9).ranks
    array([[1, 3, 0]])
    """
    num_relevant = np.array([len(rows) for rows in relevant], np.int64)
    num_ignored = np.array(
        [0 if ignored is None else len(ignored[q]) for q in range(len(relevant))], np.int64
    )
    ranks = np.zeros((len(relevant), int(num_relevant.max(initial=0))), np.int64)
    for query, (rows, answers) in enumerate(zip(ranking.indices, relevant, strict=True)):
        places = np.flatnonzero(np.isin(rows, answers)) + 1
        ranks[query, : len(places)] = places
    return RelevantRanks(ranks, ranks, ranks, num_relevant, num_gallery - num_ignored)


def recall_at_k(problem: Problem, found: Ranking) -> FloatArray:
    """Give each query's share of the exact k nearest that were found: float64 [Q], NaN without candidates."""
    wanted = (problem.exact.indices >= 0).sum(axis=1)
    last = np.where(
        wanted > 0, problem.exact.scores[np.arange(len(wanted)), np.maximum(wanted - 1, 0)], np.inf
    )
    shares = np.full(len(wanted), np.nan)
    for query in np.flatnonzero(wanted):
        rows = found.indices[query][found.indices[query] >= 0]
        cosines = problem.gallery[rows] @ problem.queries[query]
        shares[query] = (cosines >= last[query] - ROUNDING).sum() / wanted[query]
    return np.minimum(shares, 1.0)


def _audited(problem: Problem, name: str, find: Finder, notes: tuple[str, ...] = (), **costs: float) -> Audit:
    found = find(problem.queries, problem.k, problem.ignored)
    map_at_k = loss = None
    if problem.relevant is not None:
        assert problem.exact_map_at_k is not None
        ranks = ranks_within(found, problem.relevant, len(problem.gallery), problem.ignored)
        values = metrics.compute(f"mAP@{problem.k}", ranks)
        map_at_k, loss = bootstrap_mean(values), paired_test(values, problem.exact_map_at_k)
    return Audit(
        name=name,
        k=problem.k,
        num_images=len(problem.gallery),
        recall=bootstrap_mean(recall_at_k(problem, found)),
        map_at_k=map_at_k,
        difference=loss,
        latencies=_latencies(problem, find),
        notes=notes,
        **costs,
    )


def _latencies(problem: Problem, find: Finder) -> tuple[Latency, ...]:
    import faiss

    counts = sorted({1, faiss.omp_get_max_threads()})
    return tuple(_latency(problem, find, count) for count in counts)


def _latency(problem: Problem, find: Finder, count: int) -> Latency:
    rows = np.arange(min(len(problem.queries), TIMED_QUERIES))
    taken = []
    with threads(count):
        for row in [*rows[:WARM_UP], *rows]:
            query = problem.queries[row : row + 1]
            start = time.perf_counter()
            find(query, problem.k, None)
            taken.append(1000 * (time.perf_counter() - start))
    timed = np.array(taken[min(WARM_UP, len(rows)) :])
    return Latency(float(np.median(timed)), float(np.percentile(timed, 95)), count)
