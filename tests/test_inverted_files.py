"""Inverted files: the same scores as without them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_retrieval.binary_inverted_file import BITS, ENTRY, BinaryInvertedFile, Entries, pack
from ssl_retrieval.inverted_file import InvertedFile
from ssl_retrieval.search import top_k
from ssl_retrieval.types import FloatArray, VectorArray

WORDS = 40
CUBES = np.maximum(1 - 2 * np.arange(BITS + 1) / BITS, 0) ** 3


def sparse_rows(num: int, seed: int, dim: int = WORDS) -> VectorArray:
    generator = np.random.default_rng(seed)
    counts = generator.poisson(0.3, (num, dim)) * generator.random(dim)
    counts[0] = 0
    return counts.astype(np.float32)


def coded_rows(num: int, seed: int, num_entries: int = 12) -> VectorArray:
    """Images with 0 to ``num_entries`` words; the first has none."""
    generator = np.random.default_rng(seed)
    rows = []
    for image in range(num):
        count = 0 if image == 0 else int(generator.integers(0, num_entries + 1))
        words = np.sort(generator.permutation(WORDS)[:count])
        # Codes that are alike within a word, so that scores are not all 0.
        common = np.random.default_rng(99).random((WORDS, BITS)) < 0.5
        bits = common[words] ^ (generator.random((count, BITS)) < generator.choice([0.05, 0.3, 0.6]))
        rows.append(pack(words, bits, num_entries))
    return np.stack(rows)


def naive_scores(queries: VectorArray, gallery: VectorArray, table: FloatArray) -> FloatArray:
    """A double loop over images and their words, from the layout alone."""

    def unpacked(row: VectorArray) -> dict[int, str]:
        entries = row.reshape(-1, ENTRY).astype(int).tolist()
        return {e[0]: "".join(f"{piece:024b}" for piece in e[1:])[:BITS] for e in entries if e[0]}

    scores = np.zeros((len(queries), len(gallery)))
    for q, query in enumerate(map(unpacked, queries)):
        for g, image in enumerate(map(unpacked, gallery)):
            for word, code in query.items():
                if word in image:
                    different = sum(a != b for a, b in zip(code, image[word], strict=True))
                    scores[q, g] += table[different]
            scores[q, g] /= max(1, np.sqrt(len(query) * len(image)))
    return scores


def test_sparse_scores_are_the_cosines_of_dense_vectors() -> None:
    queries, gallery = sparse_rows(9, 0), sparse_rows(31, 1)
    scores = InvertedFile.of(queries, gallery)
    assert (scores.num_queries, scores.num_gallery) == (9, 31)
    lengths = [np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9) for rows in (queries, gallery)]
    cosines = (queries / lengths[0]) @ (gallery / lengths[1]).T
    for rows in (slice(0, 9), slice(2, 5), slice(8, 9), slice(4, 4)):
        found = scores.scores(rows)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, cosines[rows], atol=1e-6)
    assert not scores.scores(slice(0, 1)).any()
    assert not scores.scores(slice(0, 9))[:, 0].any()


def test_search_takes_an_inverted_file() -> None:
    gallery = sparse_rows(31, 1)
    assert top_k(InvertedFile.of(gallery[3:6], gallery), None, k=1).indices.tolist() == [[3], [4], [5]]
    coded = coded_rows(20, 2)
    has_words = np.flatnonzero(coded.any(axis=1))
    similarity = BinaryInvertedFile.of(coded[has_words], coded, WORDS, CUBES)
    assert top_k(similarity, None, k=1).indices[:, 0].tolist() == has_words.tolist()


@given(st.data())
@settings(max_examples=50)
def test_what_was_packed_is_unpacked(data: st.DataObject) -> None:
    words = sorted(data.draw(st.sets(st.one_of(st.integers(0, 50), st.just((1 << 20) - 1)), max_size=6)))
    seed = data.draw(st.integers(0, 1000))
    bits = np.random.default_rng(seed).random((len(words), BITS)) < data.draw(st.sampled_from([0, 0.5, 1]))
    row = pack(np.array(words, np.int64), bits, 6)
    assert row.shape == (6 * ENTRY,)
    assert row.dtype == np.float32
    assert (row == row.round()).all()
    assert row.min() >= 0
    assert row.max() < 1 << 24
    entries = Entries.of(row[None])
    assert entries.words.tolist() == words
    assert entries.counts.tolist() == [len(words)]
    assert entries.images.tolist() == [0] * len(words)
    np.testing.assert_array_equal(np.unpackbits(entries.codes.view(np.uint8), axis=1), bits)


@pytest.mark.parametrize("table", [CUBES, np.linspace(1, 0, BITS + 1)])
def test_binary_scores_against_a_double_loop(table: FloatArray) -> None:
    queries, gallery = coded_rows(8, 3), coded_rows(30, 4)
    scores = BinaryInvertedFile.of(queries, gallery, WORDS, table)
    assert (scores.num_queries, scores.num_gallery) == (8, 30)
    expected = naive_scores(queries, gallery, table)
    assert (expected > 0.1).any()
    for rows in (slice(0, 8), slice(3, 6), slice(7, 8), slice(2, 2)):
        found = scores.scores(rows)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[rows], atol=1e-6)


def test_an_image_scores_1_with_itself_and_one_without_words_0_with_all() -> None:
    rows = coded_rows(15, 5)
    scores = BinaryInvertedFile.of(rows, rows, WORDS, CUBES).scores(slice(0, 15))
    has_words = np.array([row.any() for row in rows])
    assert not has_words[0]
    np.testing.assert_allclose(scores.diagonal(), has_words, atol=1e-6)
    np.testing.assert_allclose(scores, scores.T, atol=1e-6)
    assert not scores[~has_words].any()
    assert not scores[:, ~has_words].any()


@pytest.mark.parametrize("sizes", [(3, 0), (0, 3)])
def test_nothing_to_search(sizes: tuple[int, int]) -> None:
    rows = coded_rows(5, 6)
    binary = BinaryInvertedFile.of(rows[: sizes[0]], rows[: sizes[1]], WORDS, CUBES)
    assert binary.scores(slice(0, sizes[0])).shape == sizes
    empty = BinaryInvertedFile.of(rows[:1], rows[:1], WORDS, CUBES)
    assert empty.scores(slice(0, 1)).tolist() == [[0.0]]
