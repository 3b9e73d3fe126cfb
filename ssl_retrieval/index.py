"""Approximate search: a faiss index of any factory string over the gallery's vectors.

Vectors are scaled to length 1 on their way in, so that the inner product is the cosine; what faiss only has
for Euclidean distances (LSH, HNSW over PQ) orders unit vectors the same way. An index knows gallery rows.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ssl_retrieval import memory
from ssl_retrieval.codes_faiss import OPQ_ITERATIONS
from ssl_retrieval.errors import UserError
from ssl_retrieval.index_syntax import IndexSpec, Settings, unknown_setting
from ssl_retrieval.postprocess import l2_normalize
from ssl_retrieval.types import IntArray, Ranking, VectorArray

TRAIN_IMAGES = 100_000
"""Images that an index learns from at most; k-means itself looks at no more than 256 per centroid."""

ADVISED_PER_CENTROID = 39
"""Images per centroid below which faiss warns."""

_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True, eq=False)
class BuiltIndex:
    """An index that holds a gallery.

    Attributes:
        spec: What it was made of; its search settings may be replaced by others.
        index: ``faiss.Index`` over N unit vectors; ids are gallery rows.
        fixed_bytes: What it takes without any image: centroids, code books, rotations.
        num_bytes: What it takes with all of them, as a file.
        build_s: Seconds of training and adding.
        peak_mib: Memory that building needed on top of what was there; NaN where it is not known.
        notes: What was done because images were few.
    """

    spec: IndexSpec
    index: Any
    fixed_bytes: int
    num_bytes: int
    build_s: float
    peak_mib: float
    notes: tuple[str, ...] = ()

    @property
    def bytes_per_image(self) -> float:
        """Bytes over images, what it takes without any image included."""
        return float(self.num_bytes / self.index.ntotal)

    def bytes_at(self, num_images: int) -> float:
        """Estimate its bytes for another number of images: only the part per image grows."""
        growing = (self.num_bytes - self.fixed_bytes) / self.index.ntotal
        return float(self.fixed_bytes + growing * num_images)


def empty(spec: IndexSpec, dim: int) -> Any:
    """Make the faiss index of a factory string, untrained.

    Args:
        spec: What to make.
        dim: Dimensions of the vectors.

    Raises:
        UserError: faiss does not know the string or a setting, or they do not fit the dimensions.
    """
    import faiss

    try:
        index = _of_factory(spec.factory, dim)
    except (RuntimeError, MemoryError) as error:
        raise UserError(
            f"index {spec.name!r}: faiss makes no {spec.factory!r} of {dim} dimensions ({_reason(error)}): "
            'see docs/search.md for strings that fit; one with a comma is quoted in a list, as "IVF64,Flat"'
        ) from error
    if isinstance(faiss.downcast_index(index), faiss.IndexIDMap):
        raise UserError(f"index {spec.name!r}: leave IDMap out: ids are kept beside the index")
    _set(index, spec, spec.build + spec.search)
    return index


def build(
    spec: IndexSpec, vectors: VectorArray, seed: int = 0, train_images: int = TRAIN_IMAGES
) -> BuiltIndex:
    """Train an index on a sample of the gallery and put the gallery into it, block by block.

    With several threads, the graph of HNSW depends on their timing; with one, everything is deterministic.

    Args:
        spec: What to build.
        vectors: float32 [N, D], of any length; may be an ``np.memmap``, which is then never read as a whole.
        seed: Draws the sample.
        train_images: At most so many are trained on.

    Raises:
        UserError: See `empty`; or there are too few images to train on.
    """
    num, dim = vectors.shape
    if num == 0:
        raise UserError(f"index {spec.name!r}: there are no images to put into it")
    index = empty(spec, dim)
    memory.reset_peak()
    before = memory.peak_rss_mib()
    start = time.perf_counter()
    notes: tuple[str, ...] = ()
    if not index.is_trained:
        notes = _train(index, spec, _sample(vectors, train_images, seed))
    trained = time.perf_counter()
    fixed_bytes = _serialized_bytes(index)
    adding = time.perf_counter()
    for rows in _row_blocks(num, dim):
        index.add(l2_normalize(vectors[rows]))
    build_s = time.perf_counter() - adding + trained - start
    peak_mib = max(0.0, memory.peak_rss_mib() - before)
    assert index.ntotal == num
    return BuiltIndex(spec, index, fixed_bytes, _serialized_bytes(index), build_s, peak_mib, notes)


def search(
    built: BuiltIndex,
    spec: IndexSpec,
    queries: VectorArray,
    k: int,
    ignored: Sequence[IntArray] | None = None,
    vectors: VectorArray | None = None,
) -> Ranking:
    """Find about the nearest images.

    Args:
        built: The index.
        spec: With the settings of this search; built from the same factory string.
        queries: float32 [Q, D], rows of length 1 or 0.
        k: Results per query, at least 1.
        ignored: Q arrays of gallery rows that must not appear; as many more are asked for.
        vectors: float32 [N, D], the gallery, of any length; needed to rescore, of which only candidates are
            read.

    Returns:
        A ranking of width ``k``: what the index gives, padded where that is less. Scores are the index's own,
        an estimate of the cosine or minus a distance; rescored, they are cosines. Equal scores are ordered
        by gallery row, but which of them the index gives at all is up to it.

    Raises:
        UserError: ``k`` is below 1, other dimensions, or a setting that the index does not have.
    """
    import faiss

    assert spec.built_as == built.spec.built_as
    if k < 1:
        raise UserError(f"k={k}: at least one item per query is needed")
    if queries.shape[1] != built.index.d:
        raise UserError(
            f"queries have {queries.shape[1]} dimensions, the index {spec.name!r} has {built.index.d}: "
            "embed both with the same representation and post-processing"
        )
    _set(built.index, spec, spec.search)
    num_ignored = 0 if ignored is None else max((len(rows) for rows in ignored), default=0)
    wanted = k * max(1, spec.rescore) + num_ignored
    width = min(wanted, built.index.ntotal)
    is_product = built.index.metric_type == faiss.METRIC_INNER_PRODUCT
    indices = np.full((len(queries), k), -1, np.int64)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    for rows in _row_blocks(len(queries), width * (queries.shape[1] if spec.rescore else 3)):
        found_scores, found = built.index.search(np.ascontiguousarray(queries[rows]), width)
        if not is_product:
            found_scores = -found_scores
        dropped = found < 0
        if ignored is not None:
            for row, unwanted in enumerate(ignored[rows]):
                dropped[row] |= np.isin(found[row], unwanted)
        if spec.rescore:
            assert vectors is not None, "rescoring needs the gallery's vectors"
            found_scores = _cosines(queries[rows], found, vectors)
        found_scores = np.where(dropped, -np.inf, found_scores).astype(np.float32)
        order = np.lexsort((found, -found_scores))[:, :k]
        best = np.take_along_axis(found_scores, order, axis=1)
        indices[rows, : order.shape[1]] = np.where(
            best > -np.inf, np.take_along_axis(found, order, axis=1), -1
        )
        scores[rows, : order.shape[1]] = best
    return Ranking(indices, scores)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let faiss and torch compute with so many threads; 0 = as many as they already may."""
    import faiss

    before = faiss.omp_get_max_threads(), torch.get_num_threads()
    if count:
        faiss.omp_set_num_threads(count)
        torch.set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before[0])
        torch.set_num_threads(before[1])


def _of_factory(factory: str, dim: int) -> Any:
    import faiss

    try:
        return faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        if "METRIC_L2" not in str(error):
            raise
        return faiss.index_factory(dim, factory, faiss.METRIC_L2)


def _set(index: Any, spec: IndexSpec, settings: Settings) -> None:
    import faiss

    for key, value in settings:
        try:
            faiss.ParameterSpace().set_index_parameter(index, key, value)
        except RuntimeError as error:
            raise unknown_setting(spec.name, spec.factory, key) from error


def _sample(vectors: VectorArray, limit: int, seed: int) -> VectorArray:
    num = len(vectors)
    if num <= limit:
        return l2_normalize(np.asarray(vectors))
    rows = np.sort(np.random.default_rng(seed).choice(num, limit, replace=False))
    return l2_normalize(np.asarray(vectors[rows]))


def _train(index: Any, spec: IndexSpec, rows: VectorArray) -> tuple[str, ...]:
    learners = list(_learners(index))
    centroids = max((learner.num_centroids for learner in learners), default=0)
    if len(rows) < centroids:
        raise UserError(
            f"index {spec.name!r}: {centroids} centroids cannot be learned from {len(rows)} images: use "
            "fewer (IVF… of some 4 × the root of the number of images, PQ16x4 for 16 a part), or more images"
        )
    # faiss writes beyond its memory where OPQ has fewer rows than dimensions (its issues 2637 and 4038).
    fewest = max((learner.fewest_rows for learner in learners), default=0)
    if len(rows) < fewest:
        raise UserError(
            f"index {spec.name!r}: OPQ needs at least as many images as the {fewest} dimensions, there are "
            f"{len(rows)}: use PQ, or more images"
        )
    for learner in learners:
        # faiss would print a warning per code book; what is too little is noted in one place.
        learner.clustering.min_points_per_centroid = 1
        # It would order centroids for polysemous codes, which no search here uses, for a minute and more.
        if hasattr(learner.owner, "do_polysemous_training"):
            learner.owner.do_polysemous_training = False
    try:
        index.train(rows)
    except RuntimeError as error:
        raise UserError(
            f"index {spec.name!r}: faiss cannot train it on {len(rows)} images ({_reason(error)}): use a "
            "smaller one, or more images"
        ) from error
    finally:
        for learner in learners:
            learner.let_go()
    advised = ADVISED_PER_CENTROID * centroids
    if len(rows) >= advised:
        return ()
    return (f"{centroids} centroids were learned from {len(rows)} images; {advised} or more are advised",)


@dataclass(frozen=True, eq=False)
class _Learner:
    """One k-means inside an index."""

    owner: Any
    clustering: Any
    num_centroids: int
    fewest_rows: int = 0
    lent: Any = None

    def let_go(self) -> None:
        """Take back a lent quantizer: the rotation keeps a bare pointer, which must not outlive it."""
        if self.lent is not None:
            self.owner.pq = None


def _learners(index: Any) -> Iterator[_Learner]:
    import faiss

    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        chain: Any = index.chain
        for place in range(chain.size()):
            rotation = faiss.downcast_VectorTransform(chain.at(place))
            if isinstance(rotation, faiss.OPQMatrix):
                # faiss would learn the rotation for 8 bits per part, whatever the code has.
                bits = getattr(getattr(faiss.downcast_index(index.index), "pq", None), "nbits", 8)
                quantizer = faiss.ProductQuantizer(rotation.d_out, rotation.M, bits)
                rotation.pq, rotation.niter = quantizer, OPQ_ITERATIONS
                fewest = max(rotation.d_in, rotation.d_out)
                yield _Learner(rotation, quantizer.cp, 2**bits, fewest, quantizer)
        yield from _learners(index.index)
    if isinstance(index, faiss.IndexIVF):
        yield _Learner(index, index.cp, index.nlist)
    if isinstance(getattr(index, "pq", None), faiss.ProductQuantizer):
        yield _Learner(index, index.pq.cp, 2**index.pq.nbits)
    for inner in ("storage", "base_index"):
        if getattr(index, inner, None) is not None:
            yield from _learners(getattr(index, inner))


def _serialized_bytes(index: Any) -> int:
    """Count the bytes of an index as a file without holding them."""
    import faiss

    writer: Any = faiss
    total = 0

    def count(chunk: bytes) -> None:
        nonlocal total
        total += len(chunk)

    faiss.write_index(index, writer.PyCallbackIOWriter(count))
    return total


def _row_blocks(num: int, numbers_per_row: int) -> Iterator[slice]:
    step = max(1, _BLOCK_BYTES // (4 * max(1, numbers_per_row)))
    for start in range(0, num, step):
        yield slice(start, min(start + step, num))


def _cosines(queries: VectorArray, found: IntArray, vectors: VectorArray) -> VectorArray:
    """Score candidates: float32 [Q, C] from rows [Q, C]; what stands at -1 means nothing."""
    rows, places = np.unique(found, return_inverse=True)
    candidates = l2_normalize(np.asarray(vectors[np.maximum(rows, 0)]))[places.reshape(found.shape)]
    cosines: VectorArray = np.einsum("qd,qcd->qc", queries, candidates)
    return cosines


def _reason(error: BaseException) -> str:
    """Take the sentence out of faiss's message, which opens with a C++ signature and a line of its source."""
    text = " ".join(str(error).split())
    return text.rpartition("failed: ")[2] if "failed: " in text else text.rpartition(": ")[2] or text
