"""Who counts as a neighbour."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from small_vectors import Sides, sides

from ssl_retrieval.neighbours import among_themselves, neighbours


@settings(max_examples=60, deadline=None)
@given(made=sides(), k=st.integers(1, 15))
def test_neighbours_are_those_of_a_loop(made: Sides, k: int) -> None:
    found = neighbours(made.queries, made.gallery, k, made.own)
    for row, query in enumerate(made.queries):
        ranked = sorted(
            (g for g in range(len(made.gallery)) if g not in made.own[row]),
            key=lambda g: (-float(made.cosines[row, g]), g),
        )[:k]
        expected = [g for g in ranked if made.gallery[g].any() and query.any()]
        indices = found.indices[row]
        assert indices[indices >= 0].tolist() == expected
        np.testing.assert_allclose(found.scores[row][indices >= 0], made.cosines[row, expected], atol=1e-6)
        assert (found.scores[row][indices < 0] == 0).all()


@settings(max_examples=40, deadline=None)
@given(made=sides(), k=st.integers(1, 15), exponent=st.sampled_from([0.0, 0.5, 3.0]))
def test_weights(made: Sides, k: int, exponent: float) -> None:
    found = neighbours(made.queries, made.gallery, k, made.own)
    dense = found.matrix(exponent).toarray()
    expected = np.zeros_like(dense)
    for row, indices in enumerate(found.indices):
        for place, item in enumerate(indices):
            if item >= 0:
                cosine = max(float(found.scores[row, place]), 0.0)
                expected[row, item] = 1.0 if exponent == 0 else cosine**exponent
    np.testing.assert_allclose(dense, expected, atol=1e-5)


def test_itself_is_left_out_by_its_index_and_not_as_the_first_result() -> None:
    twins = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    assert neighbours(twins[1:2], twins, 1, [np.array([1])]).indices.tolist() == [[0]]
    assert neighbours(twins[:1], twins, 1, [np.array([0])]).indices.tolist() == [[1]]
    assert among_themselves(twins, 5).indices.tolist() == [[1, 2, -1], [0, 2, -1], [0, 1, -1]]
