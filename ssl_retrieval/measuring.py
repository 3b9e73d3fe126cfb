"""What a representation found on a task -> the values of the metrics that are wanted."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ssl_retrieval import metrics, metrics_global
from ssl_retrieval.errors import UserError
from ssl_retrieval.features import Features
from ssl_retrieval.metrics_classes import MACRO, macro
from ssl_retrieval.metrics_knn import Vote, knn_accuracy
from ssl_retrieval.search import GlobalCounts, RelevantRanks, global_positive_counts, relevant_ranks, top_k
from ssl_retrieval.types import FloatArray, IntArray, Ranking, Task

HEADLINE = "mAP"
KNN = "knn@20"
POOLED = {"uap": metrics_global.uap, "recall_at_p90": metrics_global.recall_at_p90}
"""Metrics of one ranking of all pairs."""

SPEED_K = 100
"""Results per query when search speed is measured."""

MAX_RANKS = 2**20
"""A report keeps the ranks of so many relevant items: some megabytes."""

_NO_RANKS = RelevantRanks(*[np.empty((0, 0), np.int64)] * 3, *[np.empty(0, np.int64)] * 2)


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured.

    Attributes:
        per_query: Metric name -> float64 [Q]; NaN where a query has no positive.
        pooled: Metrics that are no mean over queries: name -> value.
        queries_per_s: Speed of an exact search for the 100 best.
        num_tied_queries: Queries where a relevant item scores exactly like one that is not.
        tie_band: The mean ``mAP`` if every relevant item loses its ties, and if it wins them.
        ranks: The ranks of each query's relevant items; empty when there are more than ``MAX_RANKS`` in all.
    """

    per_query: dict[str, FloatArray]
    pooled: dict[str, float]
    queries_per_s: float
    num_tied_queries: int
    tie_band: tuple[float, float]
    ranks: tuple[IntArray, ...]


def customary(task: Task) -> list[str]:
    """List the default metrics, those customary on a task, and what fits its level."""
    names = [*metrics.DEFAULT_METRICS, *task.metrics]
    if task.level == "instance":
        names.append("uap")
    elif task.queries.labels is not None and task.gallery.labels is not None:
        names.append(KNN)
    return list(dict.fromkeys(names))


def check(name: str, task: Task) -> None:
    """Refuse a metric before anything is embedded for it.

    Raises:
        UserError: It is unknown, or the task cannot have it.
    """
    base = name.removesuffix(MACRO)
    if base in (*POOLED, "gap"):
        if base != name:
            raise UserError(f"metric {name!r}: {base} has no value per query to average over classes")
        return
    vote = Vote.named(base)
    if vote is None:
        metrics.compute(base, _NO_RANKS)
    lacking = task.queries.labels is None or (vote is not None and task.gallery.labels is None)
    if (vote is not None or base != name) and lacking:
        raise UserError(f"metric {name!r} needs labels, and task {task.name!r} has none: leave it out")


def measure(features: Features, wanted: Sequence[str], device: str | torch.device) -> Measured:
    """Search and score.

    Args:
        features: What a representation made of a task.
        wanted: Metric names that passed `check`.
        device: Where is searched.
    """
    search = _Search(features, device)
    start = time.perf_counter()
    nearest = search.nearest(SPEED_K)
    queries_per_s = len(features.task.queries) / (time.perf_counter() - start)
    ranks = search.ranks()
    per_query: dict[str, FloatArray] = {}
    pooled: dict[str, float] = {}
    counts: GlobalCounts | None = None
    for name in wanted:
        if name in POOLED:
            counts = counts or search.counts()
            pooled[name] = POOLED[name](counts)
        elif name == "gap":
            pooled[name] = _gap(features.task, nearest, ranks)
        elif name.endswith(MACRO):
            values = _of_queries(name.removesuffix(MACRO), search, nearest, ranks)
            pooled[name] = macro(values, classes_of_queries(features.task))
        else:
            per_query[name] = _of_queries(name, search, nearest, ranks)
    ends = [float(np.nanmean(metrics.compute(f"{HEADLINE}_{end}", ranks))) for end in ("worst", "best")]
    band = ends[0], ends[1]
    return Measured(per_query, pooled, queries_per_s, ranks.num_tied_queries, band, _kept(ranks))


def classes_of_queries(task: Task) -> tuple[str, ...]:
    """Name the class of each query; empty when they have no labels."""
    if task.queries.labels is None:
        return ()
    return tuple(task.queries.class_names[label] for label in task.queries.labels)


@dataclass(frozen=True, eq=False)
class _Search:
    """One task's scores, asked in several ways."""

    features: Features
    device: str | torch.device

    def nearest(self, k: int) -> Ranking:
        task = self.features.task
        return top_k(*self._sides(), min(k, len(task.gallery)), task.ignored, self.device)

    def ranks(self) -> RelevantRanks:
        task = self.features.task
        return relevant_ranks(*self._sides(), task.relevant, task.ignored, self.device)

    def counts(self) -> GlobalCounts:
        task = self.features.task
        return global_positive_counts(*self._sides(), task.relevant, task.ignored, self.device)

    def _sides(self) -> tuple[Any, Any]:
        if self.features.scores is not None:
            return self.features.scores, None
        assert self.features.queries is not None
        return self.features.queries, self.features.gallery


def _of_queries(name: str, search: _Search, nearest: Ranking, ranks: RelevantRanks) -> FloatArray:
    task = search.features.task
    vote = Vote.named(name)
    if vote is not None:
        assert task.queries.labels is not None
        assert task.gallery.labels is not None
        neighbours = nearest if vote.k <= SPEED_K else search.nearest(vote.k)
        labels = task.queries.labels, task.gallery.labels
        return knn_accuracy(neighbours, *labels, vote.k, vote.temperature)
    if name == "ns_score" and task.protocol.self_match == "ignored":
        # The score counts the query itself, which comes first; the other three ranks are left.
        return 1 + 3 * metrics.compute("precision@3", ranks)
    return metrics.compute(name, ranks)


def _kept(ranks: RelevantRanks) -> tuple[IntArray, ...]:
    if ranks.num_relevant.sum() > MAX_RANKS:
        return ()
    return tuple(row[:count] for row, count in zip(ranks.ranks, ranks.num_relevant, strict=True))


def _gap(task: Task, nearest: Ranking, ranks: RelevantRanks) -> float:
    by_id = np.argsort(np.array(task.queries.paths), kind="stable")
    hits = (ranks.ranks[by_id, :1] == 1).any(axis=1)
    scores = nearest.scores[by_id, 0].astype(np.float64)
    return metrics_global.gap(scores, hits, ranks.num_relevant[by_id] > 0)
