"""Exact full-ranking mAP of a large task: ours, a full sort, and pytorch-metric-learning's calculator.

Run ``python benchmarks/evaluate.py``; the last line is JSON: the other's time over ours, higher is better,
and the memory that ours took above the vectors themselves. The full sort is the faster one of NumPy's argsort
and faiss asked for the whole gallery. The others' time and memory grow with the number of queries, so they
rank some of the queries, are held to the same mAP on them, and their time is scaled up, as is printed.

``--mapped`` measures ours alone on a memory-mapped gallery of a million vectors, a file of 1 GiB that it
makes in a temporary folder.
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from ssl_retrieval import metrics
from ssl_retrieval.memory import peak_rss_mib, reset_peak
from ssl_retrieval.search import relevant_ranks
from ssl_retrieval.types import FloatArray, IntArray, VectorArray

DIM, NUM_CLASSES = 256, 1000


def unit_vectors(count: int, seed: int) -> VectorArray:
    """Draw float32 [count, DIM] rows of length 1."""
    vectors = np.random.default_rng(seed).standard_normal((count, DIM), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def ours(queries: VectorArray, gallery: VectorArray, labels: IntArray, wanted: IntArray) -> FloatArray:
    """Rank the relevant items only, by counting."""
    by_class = np.split(np.argsort(labels, kind="stable"), np.bincount(labels).cumsum()[:-1])
    found = relevant_ranks(queries, gallery, [by_class[label] for label in wanted])
    return metrics.compute("mAP", found)


def average_precisions(order: IntArray, labels: IntArray, wanted: IntArray) -> FloatArray:
    """Score whole rankings, int64 [Q, N]."""
    hits = labels[order] == wanted[:, None]
    precision = hits.cumsum(axis=1) / np.arange(1, order.shape[1] + 1)
    result: FloatArray = (precision * hits).sum(axis=1) / hits.sum(axis=1)
    return result


def numpy_sort(queries: VectorArray, gallery: VectorArray, labels: IntArray, wanted: IntArray) -> FloatArray:
    """Multiply and argsort, 50 queries at a time."""
    parts = []
    for start in range(0, len(queries), 50):
        order = np.argsort(-(queries[start : start + 50] @ gallery.T), axis=1)
        parts.append(average_precisions(order, labels, wanted[start : start + 50]))
    return np.concatenate(parts)


def faiss_sort(queries: VectorArray, gallery: VectorArray, labels: IntArray, wanted: IntArray) -> FloatArray:
    """Ask faiss' flat index for the whole gallery, 50 queries at a time."""
    index = faiss.IndexFlatIP(DIM)
    index.add(gallery)
    parts = []
    for start in range(0, len(queries), 50):
        order = index.search(queries[start : start + 50], len(gallery))[1]
        parts.append(average_precisions(order, labels, wanted[start : start + 50]))
    return np.concatenate(parts)


def pml(queries: VectorArray, gallery: VectorArray, labels: IntArray, wanted: IntArray) -> FloatArray:
    """Ask pytorch-metric-learning for the mean average precision over the whole gallery, 50 at a time."""
    calculator = AccuracyCalculator(
        include=("mean_average_precision",),
        k=len(gallery),
        return_per_class=False,
        device=torch.device("cpu"),
    )
    parts = []
    for start in range(0, len(queries), 50):
        rows = slice(start, start + 50)
        found = calculator.get_accuracy(
            torch.from_numpy(queries[rows]),
            torch.from_numpy(wanted[rows]),
            torch.from_numpy(gallery),
            torch.from_numpy(labels),
            ref_includes_query=False,
        )
        parts.append(np.full(len(queries[rows]), found["mean_average_precision"]))
    return np.concatenate(parts)


class AnonymousMemory:
    """Samples the process's own memory (Linux), without the pages of a mapped file, which can go any time."""

    def __enter__(self) -> "AnonymousMemory":
        """Start."""
        self.before = self.peak = self._now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        """Stop."""
        self._stop.set()
        self._thread.join()

    @staticmethod
    def _now() -> float:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0]) / 2**10

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.peak = max(self.peak, self._now())


def mapped(num_queries: int, num_gallery: int) -> dict[str, float]:
    """Rank in a gallery that is a file."""
    queries = unit_vectors(num_queries, 1)
    labels = np.random.default_rng(2).integers(0, NUM_CLASSES, num_gallery)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vectors.npy"
        writing = np.lib.format.open_memmap(file, "w+", np.float32, (num_gallery, DIM))
        for start in range(0, num_gallery, 50_000):
            stop = min(start + 50_000, num_gallery)
            writing[start:stop] = unit_vectors(stop - start, start)
        writing.flush()
        del writing
        gallery = np.load(file, mmap_mode="r")
        with AnonymousMemory() as memory:
            start_s = time.perf_counter()
            mean = ours(queries, gallery, labels, labels[:num_queries]).mean()
            seconds = time.perf_counter() - start_s
    extra = memory.peak - memory.before
    size = f"{num_queries} queries x {num_gallery} mapped x {DIM}"
    print(f"{size}: {seconds:.1f} s, {extra:.0f} MiB, mAP {mean:.5f}")
    return {"seconds": round(seconds, 1), "peak_extra_mib": round(extra)}


def main() -> None:
    """Measure in turn, ours first, whose memory then nobody else has touched."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, the others on 50 queries")
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--gallery", type=int, help="200,000; with --mapped 1,000,000")
    parser.add_argument("--mapped", action="store_true", help="ours on a gallery that is a file")
    args = parser.parse_args()
    print(f"{torch.get_num_threads()} threads")
    if args.mapped:
        print(json.dumps(mapped(args.queries, args.gallery or 1_000_000)))
        return
    num_gallery = args.gallery or 200_000
    queries, gallery = unit_vectors(args.queries, 1), unit_vectors(num_gallery, 0)
    labels = np.random.default_rng(2).integers(0, NUM_CLASSES, num_gallery)
    wanted = np.random.default_rng(3).integers(0, NUM_CLASSES, args.queries)

    sides: dict[str, tuple[Callable[..., FloatArray], int]] = {
        "ours": (ours, args.queries),
        "numpy": (numpy_sort, 50 if args.quick else 400),
        "faiss": (faiss_sort, 50 if args.quick else 400),
        "pytorch-metric-learning": (pml, 50 if args.quick else 200),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    extra, truth = 0.0, np.empty(0)
    for number in range(1 if args.quick else 3):
        for name, (rank, count) in sides.items():
            count = min(count, args.queries)
            reset_peak()
            before, start = peak_rss_mib(), time.perf_counter()
            found = rank(queries[:count], gallery, labels, wanted[:count])
            seconds[name].append((time.perf_counter() - start) * args.queries / count)
            if name == "ours":
                truth = found
                extra = max(extra, peak_rss_mib() - before)
            assert abs(found.mean() - truth[:count].mean()) < 1e-5, f"{name} finds another mAP"
            scaled = "" if count == args.queries else f", scaled up from {count} queries"
            print(f"round {number + 1}: {name} {seconds[name][-1]:.1f} s{scaled}, mAP {found.mean():.5f}")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(
        f"{args.queries} queries x {num_gallery} x {DIM}: ours {medians['ours']:.1f} s, {extra:.0f} MiB extra"
    )
    full_sort = min(medians["numpy"], medians["faiss"])
    ratios = {
        "full_sort_time": round(full_sort / medians["ours"], 2),
        "pml_time": round(medians["pytorch-metric-learning"] / medians["ours"], 2),
    }
    print(json.dumps({"ratios": ratios, "peak_extra_mib": round(extra)}))


if __name__ == "__main__":
    main()
