"""Small random galleries with what is awkward in them: duplicates, zeros, opposite vectors, own photos."""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from ssl_retrieval.postprocess import l2_normalize
from ssl_retrieval.types import FloatArray, IntArray, VectorArray


@dataclass(frozen=True, eq=False)
class Sides:
    """Queries, a gallery, and where each query stands in it."""

    queries: VectorArray
    gallery: VectorArray
    own: tuple[IntArray, ...]

    @property
    def cosines(self) -> FloatArray:
        return self.queries.astype(np.float64) @ self.gallery.T.astype(np.float64)


@st.composite
def sides(draw: st.DrawFn, exact: bool = True) -> Sides:
    """Draw both sides.

    Args:
        draw: Hypothesis.
        exact: Along coordinates, so that cosines are exact and ties are frequent; otherwise anywhere.
    """
    count, dim = draw(st.integers(1, 12)), draw(st.integers(2, 4))
    generator = np.random.default_rng(draw(st.integers(0, 10_000)))
    if exact:
        corners = np.concatenate([np.eye(dim), -np.eye(dim), np.zeros((1, dim))])
        gallery = corners[generator.integers(0, len(corners), count)].astype(np.float32)
    else:
        gallery = l2_normalize(generator.normal(0.5, 1, (count, dim)).astype(np.float32))
        gallery[generator.random(count) < 0.1] = 0
    num_queries = draw(st.integers(1, 4))
    places = generator.integers(0, count, num_queries)
    queries = gallery[places].copy()
    if draw(st.booleans()):
        return Sides(queries, gallery, tuple(np.array([place], np.int64) for place in places))
    if not exact:
        queries = l2_normalize(queries + generator.normal(0, 0.5, queries.shape).astype(np.float32))
    return Sides(queries, gallery, (np.empty(0, np.int64),) * num_queries)
