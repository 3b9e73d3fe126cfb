"""Diffusion on the gallery's graph of neighbours (Zhou et al., NIPS 2003; Iscen et al., CVPR 2017).

Similarity spreads from the query's neighbours along a graph of images that are mutual neighbours, so that
what is reached by a chain of similar images is found although it looks unlike the query.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, cg

from ssl_retrieval.neighbours import Neighbours, among_themselves
from ssl_retrieval.similarity import Listed, Similarity
from ssl_retrieval.types import FloatArray, IntArray, VectorArray

_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Graph:
    """Who is whose mutual neighbour.

    Attributes:
        weights: float32 [N, N], sparse, symmetric, 0 on the diagonal.
    """

    weights: sparse.csr_matrix

    @property
    def num_bytes(self) -> int:
        """What it takes: values, columns and row starts."""
        return sum(part.nbytes for part in (self.weights.data, self.weights.indices, self.weights.indptr))


def mutual_graph(gallery: VectorArray, k: int, gamma: float) -> Graph:
    """Join the gallery images that are among each other's ``k`` nearest.

    Args:
        gallery: float32 [N, D], rows of length 1 or 0; images without features have no edge.
        k: Neighbours per image.
        gamma: An edge weighs ``max(cosine, 0)^gamma``.
    """
    directed = among_themselves(gallery, k).matrix(gamma)
    return Graph(directed.minimum(directed.T).tocsr())


def diffuse(
    graph: Graph, seeds: FloatArray, alpha: float, iterations: int, without: Sequence[int] = ()
) -> FloatArray:
    """Solve ``(I − α S) f = y`` by conjugate gradients, ``S = D^(−½) W D^(−½)``.

    Args:
        graph: N images; an image without edges keeps its seed.
        seeds: float64 [N]: ``y``.
        alpha: Above 0, below 1: how far similarity spreads.
        iterations: At most so many steps; fewer once the residual is below a millionth of ``y``.
        without: Images to be taken out of the graph first, with their edges.

    Returns:
        float64 [N]; 0 for what is taken out.
    """
    degrees = graph.weights.sum(axis=1, dtype=np.float64).A1
    for node in without:
        start, stop = graph.weights.indptr[node : node + 2]
        degrees[graph.weights.indices[start:stop]] -= graph.weights.data[start:stop]
        degrees[node] = 0
    return _solve(graph, _inverse_roots(degrees), seeds, alpha, iterations, without)


def _inverse_roots(degrees: FloatArray) -> FloatArray:
    # What is left of a degree whose only edge was taken away is rounding.
    has_edges = degrees > 1e-9
    return np.where(has_edges, 1 / np.sqrt(np.where(has_edges, degrees, 1)), 0)


def _solve(
    graph: Graph,
    roots: FloatArray,
    seeds: FloatArray,
    alpha: float,
    iterations: int,
    without: Sequence[int],
) -> FloatArray:
    seeds = seeds.copy()
    seeds[list(without)] = 0

    def multiply(values: FloatArray) -> FloatArray:
        values = values.ravel()
        return values - alpha * roots * (graph.weights @ (roots * values))

    operator = LinearOperator(graph.weights.shape, matvec=multiply, dtype=np.float64)
    solution, _ = cg(operator, seeds, rtol=_TOLERANCE, maxiter=iterations)
    return solution


def diffusion_ranking(
    base: Similarity,
    near: Neighbours,
    graph: Graph,
    *,
    gamma: float,
    alpha: float,
    iterations: int,
    top: int,
    own: Sequence[IntArray],
) -> Listed:
    """Rank the gallery by diffusion from each query's neighbours.

    Args:
        base: The old scores.
        near: Each query's seeds: they weigh ``max(cosine, 0)^gamma``.
        graph: Of the gallery.
        gamma: See above.
        alpha: See `diffuse`.
        iterations: See `diffuse`.
        top: So many images of the highest ``f`` above 0 come first; the rest follows in the old order.
        own: Q arrays: where the query itself stands in the gallery. It is taken out of the graph for this
            query: with it, the query would be a bridge between its own answers.
    """
    seeds = near.matrix(gamma)
    width = min(top, near.num_gallery)
    indices = np.full((len(near.indices), width), -1, np.int64)
    scores = np.zeros((len(near.indices), width), np.float64)
    for row, itself in enumerate(own):
        if seeds.indptr[row] == seeds.indptr[row + 1]:
            continue
        start = np.zeros(near.num_gallery)
        start[seeds.indices[seeds.indptr[row] : seeds.indptr[row + 1]]] = seeds.data[
            seeds.indptr[row] : seeds.indptr[row + 1]
        ]
        reached = diffuse(graph, start, alpha, iterations, itself.tolist())
        order = np.argsort(-reached, kind="stable")[:width]
        order = order[reached[order] > 0]
        indices[row, : len(order)] = order
        scores[row, : len(order)] = (1 - alpha) * reached[order]
    return Listed.of(base, indices, scores)
