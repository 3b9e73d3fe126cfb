"""What happens to vectors between the network and the search."""

import numpy as np

from ssl_retrieval.types import VectorArray


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
