"""Re-ranking by k-reciprocal neighbours (Zhong et al., CVPR 2017).

That two images are among each other's nearest is a stronger hint than that one is among the other's. Each
image is encoded by its reciprocal neighbours, and encodings are compared by their Jaccard similarity.

The paper puts all queries and the gallery into one graph, so that queries help each other. Here each query is
alone with the gallery, whose encodings are made beforehand, as in a real search; an encoding is over gallery
images only, so a query's own has no place for the query itself.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from ssl_retrieval.neighbours import Neighbours, among_themselves, neighbours
from ssl_retrieval.similarity import Cosine
from ssl_retrieval.types import FloatArray, IntArray, VectorArray

_OVERLAP = 2 / 3
_ROUNDING = 1e-6
"""The cosine of the same two images may differ by so much between two products of matrices."""

Encoding = tuple[IntArray, FloatArray]
"""Gallery indices and their weights, which sum up to 1."""


@dataclass(frozen=True, eq=False)
class EncodedGallery:
    """What is known of a gallery before any query comes.

    Attributes:
        vectors: float32 [N, D], rows of length 1 or 0.
        k1: Neighbours per image.
        k2: Images over which an encoding is averaged, the image itself included.
        entry_scores: float32 [N]: a query with at least this cosine is among the image's ``k1`` nearest.
        half_sets: R(p, k1 / 2) of each image: itself and its reciprocal neighbours.
        plain: float64 [N, N], sparse: the encodings.
        averaged: The same after local expansion.
    """

    vectors: VectorArray
    k1: int
    k2: int
    entry_scores: VectorArray
    half_sets: list[frozenset[int]]
    plain: sparse.csr_matrix
    averaged: sparse.csr_matrix

    @property
    def num_bytes(self) -> int:
        """What it takes besides the vectors, with 4 bytes per number."""
        pairs = self.plain.nnz + self.averaged.nnz
        return 8 * pairs + 4 * sum(map(len, self.half_sets)) + self.entry_scores.nbytes


def encode_gallery(gallery: VectorArray, k1: int, k2: int) -> EncodedGallery:
    """Encode a gallery by its own neighbours.

    Args:
        gallery: float32 [N, D], rows of length 1 or 0; images without features have no encoding.
        k1: Neighbours per image; of a smaller gallery all.
        k2: Images over which an encoding is averaged, the image itself included; 1 = no averaging.
    """
    near = among_themselves(gallery, k1)
    lists = [indices[indices >= 0].tolist() for indices in near.indices]
    full_sets, half_sets = _reciprocal(lists, k1), _reciprocal(lists, _half(k1))
    encodings = [
        _encoding(vector, expanded(full, half_sets, ()) if vector.any() else (), gallery)
        for vector, full in zip(gallery, full_sets, strict=True)
    ]
    plain = _matrix(encodings, len(gallery))
    complete = near.indices[:, -1] >= 0 if near.indices.shape[1] == k1 else np.zeros(len(gallery), bool)
    return EncodedGallery(
        vectors=gallery,
        k1=k1,
        k2=k2,
        entry_scores=np.where(complete, near.scores[:, -1], np.float32(-np.inf)),
        half_sets=half_sets,
        plain=plain,
        averaged=_average(plain, near, k2, plain),
    )


def expanded(members: Collection[int], half_sets: Sequence[frozenset[int]], own: Collection[int]) -> set[int]:
    """Let a reciprocal set take in those of its members that lie mostly in it: R* of the paper.

    Args:
        members: R(p, k1).
        half_sets: R(q, k1 / 2) of each gallery image.
        own: Gallery indices that count nowhere.
    """
    result = set(members)
    for member in members:
        candidate = half_sets[member].difference(own)
        if len(candidate.intersection(members)) > _OVERLAP * len(candidate):
            result |= candidate
    return result


@dataclass(frozen=True, eq=False)
class ReciprocalSimilarity:
    """``(1 − λ) J + λ cos``, which ranks as the paper's distance ``(1 − λ) d_J + λ d`` does.

    Attributes:
        cosine: The old scores.
        encodings: float64 [Q, N], sparse: of the queries.
        columns: float64 [N, N], sparse by columns: of the gallery.
        weight: λ.
    """

    cosine: Cosine
    encodings: sparse.csr_matrix
    columns: sparse.csc_matrix
    weight: float

    @property
    def num_queries(self) -> int:
        """Count the queries."""
        return self.cosine.num_queries

    @property
    def num_gallery(self) -> int:
        """Count the gallery images."""
        return self.cosine.num_gallery

    def scores(self, rows: slice) -> VectorArray:
        """Score some queries: float32 [len(rows), N]."""
        found = np.float32(self.weight) * self.cosine.scores(rows)
        gallery_sums = np.asarray(self.columns.sum(axis=1)).ravel()
        for i, row in enumerate(range(rows.start, rows.stop)):
            start, stop = self.encodings.indptr[row : row + 2]
            weights = self.encodings.data[start:stop]
            shared = self._shared(self.encodings.indices[start:stop], weights)
            union = weights.sum() + gallery_sums - shared
            jaccard = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
            found[i] += (1 - self.weight) * jaccard
        return found

    def _shared(self, places: IntArray, weights: FloatArray) -> FloatArray:
        """Sum the smaller of two weights over all places: float64 [N]."""
        parts = [slice(*self.columns.indptr[place : place + 2]) for place in places]
        images = np.concatenate([np.empty(0, np.int64), *(self.columns.indices[part] for part in parts)])
        smaller = [
            np.minimum(self.columns.data[part], weight) for part, weight in zip(parts, weights, strict=True)
        ]
        weights_of_images = np.concatenate([np.empty(0), *smaller])
        counted: FloatArray = np.bincount(images, weights_of_images, self.num_gallery).astype(np.float64)
        return counted


def reciprocal_similarity(
    queries: VectorArray,
    encoded: EncodedGallery,
    weight: float,
    own: Sequence[IntArray],
) -> ReciprocalSimilarity:
    """Encode queries and compare them with a gallery.

    Args:
        queries: float32 [Q, D], rows of length 1 or 0.
        encoded: The gallery.
        weight: λ, from 0 to 1: what the old similarity counts.
        own: Q arrays: where the query itself stands in the gallery. It is no neighbour and has no place in
            the query's encoding.
    """
    near = neighbours(queries, encoded.vectors, encoded.k1, own)
    encodings = []
    for vector, indices, scores, itself in zip(queries, near.indices, near.scores, own, strict=True):
        is_mutual = (indices >= 0) & (scores >= encoded.entry_scores[indices] - _ROUNDING)
        members = expanded(indices[is_mutual].tolist(), encoded.half_sets, itself.tolist())
        encodings.append(_encoding(vector, members, encoded.vectors))
    plain = _matrix(encodings, len(encoded.vectors))
    averaged = _average(plain, near, encoded.k2, encoded.plain)
    return ReciprocalSimilarity(
        cosine=Cosine(queries, encoded.vectors),
        encodings=_struck(averaged, own),
        columns=encoded.averaged.tocsc(),
        weight=weight,
    )


def _half(k1: int) -> int:
    return round(k1 / 2)


def _reciprocal(lists: list[list[int]], k: int) -> list[frozenset[int]]:
    """Give each image with those that are among each other's ``k`` nearest."""
    short = [set(near[:k]) for near in lists]
    return [
        frozenset([image, *(other for other in near if image in short[other])])
        for image, near in enumerate(short)
    ]


def _encoding(vector: VectorArray, members: Collection[int], gallery: VectorArray) -> Encoding:
    """Weigh members by ``exp(−d)``, ``d = 1 − cos``, with sum 1."""
    places = np.array(sorted(members), np.int64)
    weights = np.exp((gallery[places] @ vector).astype(np.float64) - 1)
    return places, weights / max(weights.sum(), np.finfo(np.float64).tiny)


def _matrix(encodings: list[Encoding], num_gallery: int) -> sparse.csr_matrix:
    sizes = [len(places) for places, _ in encodings]
    places = np.concatenate([np.empty(0, np.int64), *(places for places, _ in encodings)])
    weights = np.concatenate([np.empty(0), *(weights for _, weights in encodings)])
    starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    return sparse.csr_matrix((weights, places, starts), (len(encodings), num_gallery))


def _average(
    plain: sparse.csr_matrix, near: Neighbours, k2: int, gallery: sparse.csr_matrix
) -> sparse.csr_matrix:
    """Average each encoding with those of the ``k2 − 1`` nearest gallery images; empty ones do not count."""
    nearest = Neighbours(near.indices[:, : k2 - 1], near.scores[:, : k2 - 1], near.num_gallery).matrix(0)
    return _with_sum_one(plain + nearest.astype(np.float64) @ gallery)


def _struck(encodings: sparse.csr_matrix, own: Sequence[IntArray]) -> sparse.csr_matrix:
    """Take each query's own place out of its encoding."""
    rows = np.repeat(np.arange(encodings.shape[0]), np.diff(encodings.indptr))
    mine = np.full(encodings.shape[0], -1, np.int64)
    for row, itself in enumerate(own):
        mine[row] = itself[0] if len(itself) else -1
    struck = encodings.copy()
    struck.data[struck.indices == mine[rows]] = 0
    struck.eliminate_zeros()
    return _with_sum_one(struck)


def _with_sum_one(encodings: sparse.csr_matrix) -> sparse.csr_matrix:
    sums = np.asarray(encodings.sum(axis=1)).ravel()
    scale = np.divide(1, sums, out=np.zeros_like(sums), where=sums > 0)
    scaled = (sparse.diags_array(scale) @ encodings).tocsr()
    scaled.sort_indices()
    return sparse.csr_matrix(scaled)
