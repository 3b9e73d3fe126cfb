"""Visual words: even draws, k-means that repeats itself, nearest words."""

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_retrieval import vocabulary
from ssl_retrieval.types import VectorArray


def some_descriptors(num: int, dim: int = 16, seed: int = 0) -> VectorArray:
    return np.random.default_rng(seed).random((num, dim), dtype=np.float32)


@given(st.lists(st.integers(0, 5), max_size=8), st.integers(1, 30), st.integers(-3, 3))
def test_a_sample_is_of_rows_that_exist_each_once(counts: list[int], limit: int, seed: int) -> None:
    drawn = vocabulary.sample(counts, limit, seed)
    assert len(drawn) == len(counts)
    assert sum(map(len, drawn)) == min(limit, sum(counts))
    for rows, count in zip(drawn, counts, strict=True):
        assert (np.diff(rows) > 0).all()
        assert ((rows >= 0) & (rows < count)).all()
    again = vocabulary.sample(counts, limit, seed)
    assert all(np.array_equal(one, other) for one, other in zip(drawn, again, strict=True))


def test_a_sample_is_even() -> None:
    drawn = vocabulary.sample([9000, 1000, 0, 10000], limit=2000, seed=3)
    np.testing.assert_allclose([len(rows) for rows in drawn], [900, 100, 0, 1000], atol=80)
    assert abs(drawn[0].mean() - 4500) < 300


def test_k_means_repeats_itself_and_depends_on_the_seed() -> None:
    descriptors = some_descriptors(2000)
    first, again, other = (vocabulary.learn_words(descriptors, 20, seed) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (20, 16)
    assert first.dtype == np.float32
    assert not np.allclose(first, other)


def test_words_are_the_means_of_what_is_nearest_to_them() -> None:
    generator = np.random.default_rng(0)
    centres = generator.random((5, 16)) * 10
    descriptors = (centres.repeat(200, axis=0) + generator.normal(0, 0.1, (1000, 16))).astype(np.float32)
    words = vocabulary.learn_words(descriptors, 5, seed=2)
    numbers = vocabulary.nearest(torch.from_numpy(descriptors), torch.from_numpy(words)).numpy()
    for word in range(5):
        np.testing.assert_allclose(words[word], descriptors[numbers == word].mean(axis=0), rtol=1e-3)


def test_k_means_comes_near_scikit_learns() -> None:
    from sklearn.cluster import KMeans

    descriptors = some_descriptors(3000, seed=5)
    words = vocabulary.learn_words(descriptors, 32, seed=0)
    inertia = ((descriptors[:, None] - words) ** 2).sum(axis=2).min(axis=1).sum()
    assert inertia < 1.03 * KMeans(32, n_init=3, random_state=0).fit(descriptors).inertia_


@pytest.mark.parametrize("num", [1, 3, 19])
def test_fewer_descriptors_than_words_are_the_words_and_that_is_said(
    num: int, capsys: pytest.CaptureFixture[str]
) -> None:
    descriptors = some_descriptors(num)
    words = vocabulary.learn_words(descriptors, 20, seed=0)
    np.testing.assert_array_equal(words, descriptors)
    expected = f"vocabulary: only {num} descriptors to learn from, so {num} words, not 20\n"
    assert capsys.readouterr().err == expected


def test_equal_descriptors_do_not_break_k_means() -> None:
    words = vocabulary.learn_words(np.ones((50, 16), np.float32), 4, seed=0)
    assert words.shape == (4, 16)
    assert np.isfinite(words).all()


@pytest.mark.parametrize("num", [1, 255, 256, 257, 900])
def test_nearest_words_are_those_of_faiss(num: int) -> None:
    descriptors, words = some_descriptors(num, seed=1), some_descriptors(300, seed=2)
    index = faiss.IndexFlatL2(16)
    index.add(words)
    expected = index.search(descriptors, 1)[1][:, 0]
    found = vocabulary.nearest(torch.from_numpy(descriptors), torch.from_numpy(words))
    np.testing.assert_array_equal(found.numpy(), expected)


def test_the_first_of_equally_near_words_counts() -> None:
    words = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    assert vocabulary.nearest(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), words).tolist() == [1, 0]
