"""Pairs of images that probably match, found without labels by the vectors themselves.

Two images that are each other's nearest look alike already: their pairs keep what the network knows and make
it firmer. What similarity reaches along a chain of such images although it does not look alike teaches it
something new: the hard positives of Iscen, Tolias, Avrithis, Chum, Mining on Manifolds, CVPR 2018 (arXiv
1803.11095).
"""

from dataclasses import dataclass

import numpy as np

from ssl_retrieval.diffusion import diffusion_ranking, mutual_graph
from ssl_retrieval.neighbours import among_themselves
from ssl_retrieval.similarity import Cosine
from ssl_retrieval.types import IntArray, VectorArray

GAMMA, ALPHA, ITERATIONS = 3.0, 0.99, 20
"""Of the diffusion, as when it re-ranks."""


@dataclass(frozen=True, eq=False)
class MinedPairs:
    """What probably matches, and what must not be called different.

    Attributes:
        pairs: int64 [M, 2] image numbers, the lower first, each pair once.
        nearest: int64 [N, S]: each image's first ones by the same ranking, padded with -1.
    """

    pairs: IntArray
    nearest: IntArray


def mutual_neighbours(vectors: VectorArray, k: int, spared: int) -> MinedPairs:
    """Pair the images that are among each other's ``k`` nearest.

    Args:
        vectors: float32 [N, D], rows of length 1.
        k: Neighbours per image.
        spared: S, the width of ``nearest``.

    >>> photos = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.6, 0.4]], np.float32)
    >>> mutual_neighbours(photos, k=1, spared=0).pairs
    array([[0, 1]])
    """
    near = among_themselves(vectors, max(k, spared)).indices
    return MinedPairs(_pairs(*_mutual(near[:, :k])), near[:, :spared])


def hard_positives(vectors: VectorArray, k: int, spared: int) -> MinedPairs:
    """Pair each image with those among its ``k`` first by diffusion that are not among its ``k`` nearest.

    The graph joins mutual neighbours; the image itself is taken out of it when its own ranking is made.

    Args:
        vectors: float32 [N, D], rows of length 1.
        k: Neighbours per image, by similarity and by diffusion.
        spared: S, the width of ``nearest``.
    """
    near = among_themselves(vectors, k)
    reached = diffusion_ranking(
        Cosine(vectors, vectors),
        near,
        mutual_graph(vectors, k, GAMMA),
        gamma=GAMMA,
        alpha=ALPHA,
        iterations=ITERATIONS,
        top=max(k, spared),
        own=list(np.arange(len(vectors))[:, None]),
    ).indices
    first = reached[:, :k]
    is_new = (first >= 0) & ~(first[:, :, None] == near.indices[:, None, :]).any(axis=2)
    image, place = np.nonzero(is_new)
    return MinedPairs(_pairs(image, first[image, place]), reached[:, :spared])


def _mutual(near: IntArray) -> tuple[IntArray, IntArray]:
    images = np.repeat(np.arange(len(near)), near.shape[1])
    others = near.ravel()
    images, others = images[others >= 0], others[others >= 0]
    codes = images * len(near) + others
    back = np.isin(others * len(near) + images, codes)
    return images[back], others[back]


def _pairs(images: IntArray, others: IntArray) -> IntArray:
    both = np.stack([np.minimum(images, others), np.maximum(images, others)], axis=1)
    return np.unique(both.astype(np.int64), axis=0)
