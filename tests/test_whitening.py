"""PCA, PCA-whitening and learned whitening against scikit-learn and the formulas of the papers."""

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.decomposition import PCA

from ssl_retrieval import whitening
from ssl_retrieval.types import FloatArray, IntArray, VectorArray
from ssl_retrieval.whitening import LearnedWhitening, Pca


def correlated(num: int, dim: int, rank: int | None = None, seed: int = 0) -> VectorArray:
    """Draw vectors with a mean and with correlations; fewer directions than dimensions with ``rank``."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((rank or dim, dim)) * np.geomspace(1, 0.05, rank or dim)[:, None]
    vectors = rng.standard_normal((num, rank or dim)) @ mixing + rng.standard_normal(dim)
    return vectors.astype(np.float32)


def in_classes(num: int, dim: int, num_classes: int, seed: int = 0) -> tuple[VectorArray, IntArray]:
    """Draw vectors around class centres, and all pairs of neighbours within a class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % num_classes
    noise = rng.standard_normal((num, dim)) @ rng.standard_normal((dim, dim)) * 0.3
    vectors = (rng.standard_normal((num_classes, dim))[labels] + noise).astype(np.float32)
    rows = np.arange(num - num_classes)
    return vectors, np.stack([rows, rows + num_classes], axis=1)


def scatter_of_pairs(vectors: VectorArray, pairs: IntArray) -> FloatArray:
    total = np.zeros((vectors.shape[1], vectors.shape[1]))
    for i, j in pairs:
        difference = vectors[i].astype(np.float64) - vectors[j]
        total += np.outer(difference, difference)
    return total / len(pairs)


def assert_same_up_to_signs(one: VectorArray, other: FloatArray, tolerance: float) -> None:
    signs = np.sign((one * other).sum(axis=0))
    np.testing.assert_allclose(one, other * signs, atol=tolerance)


@pytest.mark.parametrize(("num", "dim"), [(300, 20), (30, 50)])
@pytest.mark.parametrize("whiten", [False, True])
def test_pca_is_that_of_scikit_learn_up_to_signs(num: int, dim: int, whiten: bool) -> None:
    vectors, others = correlated(num, dim), correlated(10, dim, seed=1)
    ours = Pca(12, 0.5 if whiten else 0.0).fit(vectors)
    oracle = PCA(12, whiten=whiten, svd_solver="full").fit(vectors.astype(np.float64))
    assert_same_up_to_signs(ours.apply(others), oracle.transform(others.astype(np.float64)), 1e-4)


@pytest.mark.parametrize(("num", "dim"), [(400, 30), (21, 30)])
def test_after_whitening_the_covariance_is_the_identity(num: int, dim: int) -> None:
    vectors = correlated(num, dim)
    whitened = Pca(20, 0.5).fit(vectors).apply(vectors).astype(np.float64)
    np.testing.assert_allclose(np.cov(whitened.T), np.eye(20), atol=1e-4)
    np.testing.assert_allclose(whitened.mean(axis=0), 0, atol=1e-5)


def test_a_power_of_a_quarter_whitens_half_of_the_way() -> None:
    vectors = correlated(400, 10)
    deviations = {}
    for power in (0.0, 0.25, 0.5):
        covariance = np.cov(Pca(10, power).fit(vectors).apply(vectors).astype(np.float64).T)
        deviations[power] = np.sqrt(np.diag(covariance))
        np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-4)
    np.testing.assert_allclose(deviations[0.25], deviations[0.0] ** 0.5, rtol=1e-4)
    np.testing.assert_allclose(deviations[0.5], 1, rtol=1e-4)


def test_fewer_images_than_dimensions_keep_the_directions_they_span() -> None:
    vectors = correlated(31, 100)
    projection = Pca(64, 0.5).fit(vectors)
    assert projection.matrix.shape == (30, 100)
    assert projection.notes == (
        "30 of 100 dimensions: fitted on only 31 images, which span at most 30; 64 were asked for",
    )
    assert np.abs(projection.apply(vectors)).max() < 10


def test_fewer_images_than_dimensions_are_mentioned_even_when_enough_is_left() -> None:
    assert Pca(8).fit(correlated(31, 100)).notes == (
        "8 of 100 dimensions: fitted on only 31 images, which span at most 30",
    )


@pytest.mark.parametrize("num", [500, 40])
def test_directions_without_variance_are_dropped_not_divided_by(num: int) -> None:
    vectors = correlated(num, 60, rank=7)
    projection = Pca(32, 0.5).fit(vectors)
    assert projection.matrix.shape == (7, 60)
    assert len(projection.notes) == 1
    others = correlated(50, 60, rank=7, seed=0)
    assert np.abs(projection.apply(others)).max() < 10


def test_rounding_of_a_large_mean_is_no_variance() -> None:
    rng = np.random.default_rng(0)
    vectors = (1000 * np.linspace(1, 2, 12) + 1e-5 * rng.standard_normal((80, 12))).astype(np.float32)
    assert (vectors != vectors[0]).any()
    pairs = np.array([[0, 1], [2, 3]])
    for projection in (Pca(4, 0.5).fit(vectors), LearnedWhitening(4).fit(vectors, pairs)):
        assert not projection.matrix.any()
        assert projection.notes[-1].startswith("the 80 images to fit on have the same vector")


def test_asking_for_more_than_all_dimensions_gives_all() -> None:
    projection = Pca(512).fit(correlated(50, 8))
    assert projection.matrix.shape == (8, 8)
    assert projection.notes == ("all 8 dimensions: 512 were asked for",)


def test_more_images_than_a_block_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, pairs = in_classes(200, 10, 20)
    steps: list[Pca | LearnedWhitening] = [Pca(6, 0.5), LearnedWhitening(6)]
    whole = [step.fit(vectors, pairs) for step in steps]
    monkeypatch.setattr(whitening, "_BLOCK_BYTES", 7 * 8 * 10)
    for step, expected in zip(steps, whole, strict=True):
        cut = step.fit(vectors, pairs)
        np.testing.assert_allclose(cut.matrix, expected.matrix, rtol=1e-8)
        np.testing.assert_allclose(cut.apply(vectors), expected.apply(vectors), atol=1e-5)


def test_learned_whitening_is_the_formula_with_the_cholesky_factor() -> None:
    vectors, pairs = in_classes(240, 12, 40)
    wide = vectors.astype(np.float64)
    factor = np.linalg.inv(np.linalg.cholesky(scatter_of_pairs(vectors, pairs)))
    centred = (wide - wide.mean(axis=0)) @ factor.T
    values, columns = np.linalg.eigh(np.cov(centred.T))
    expected = centred @ columns[:, np.argsort(values)[::-1]]
    ours = LearnedWhitening().fit(vectors, pairs)
    assert ours.notes == ()
    assert_same_up_to_signs(ours.apply(vectors), expected, 2e-4)
    shorter = LearnedWhitening(5).fit(vectors, pairs).apply(vectors)
    assert_same_up_to_signs(shorter, expected[:, :5], 2e-4)


def test_after_learned_whitening_differences_of_pairs_are_white() -> None:
    vectors, pairs = in_classes(240, 12, 40)
    whitened = LearnedWhitening().fit(vectors, pairs).apply(vectors)
    np.testing.assert_allclose(scatter_of_pairs(whitened, pairs), np.eye(12), atol=1e-4)


def test_learned_whitening_brings_images_of_a_class_together() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 60
    # The loudest dimensions say nothing about the class.
    signal, noise = rng.standard_normal((60, 8))[labels], 20 * rng.standard_normal((300, 8))
    vectors = np.concatenate([signal + 0.1 * rng.standard_normal((300, 8)), noise], axis=1, dtype=np.float32)
    pairs = np.stack([np.arange(60), np.arange(60, 120)], axis=1)

    def share_found(values: VectorArray) -> float:
        test = values[180:240], values[240:]
        distances = ((test[0][:, None] - test[1][None]) ** 2).sum(axis=2)
        return float((distances.argmin(axis=1) == np.arange(60)).mean())

    assert share_found(vectors) < 0.2
    assert share_found(LearnedWhitening(8).fit(vectors[:180], pairs).apply(vectors)) > 0.9


def test_too_few_pairs_are_shrunk_as_ledoit_and_wolf_advise() -> None:
    vectors, pairs = in_classes(60, 30, 12)
    pairs = pairs[:20]
    projection = LearnedWhitening().fit(vectors, pairs)
    differences = vectors[pairs[:, 0]].astype(np.float64) - vectors[pairs[:, 1]]
    shrinkage = ledoit_wolf_shrinkage(differences, assume_centered=True)
    assert projection.notes == (
        "the differences of 20 matching pairs do not fill 30 dimensions: their scatter was shrunk by "
        f"{shrinkage:.3g} towards a multiple of the identity",
    )
    scatter = scatter_of_pairs(vectors, pairs)
    shrunk = (1 - shrinkage) * scatter + shrinkage * np.trace(scatter) / 30 * np.eye(30)
    np.testing.assert_allclose(projection.matrix @ shrunk @ projection.matrix.T, np.eye(30), atol=1e-6)


def test_dead_dimensions_do_not_break_learned_whitening() -> None:
    vectors, pairs = in_classes(240, 12, 40)
    vectors[:, [3, 7]] = 0.25
    projection = LearnedWhitening().fit(vectors, pairs)
    assert projection.matrix.shape == (10, 12)
    assert len(projection.notes) == 2
    assert np.abs(projection.apply(vectors)).max() < 100


def test_pairs_of_equal_vectors_leave_plain_pca() -> None:
    vectors = np.repeat(correlated(60, 8), 2, axis=0)
    pairs = np.stack([np.arange(0, 120, 2), np.arange(1, 120, 2)], axis=1)
    projection = LearnedWhitening(4).fit(vectors, pairs)
    np.testing.assert_allclose(projection.matrix, Pca(4).fit(vectors).matrix, atol=1e-8)
    assert projection.notes == ("matching images have the same vectors: plain PCA instead",)


def test_the_order_within_a_pair_does_not_matter() -> None:
    vectors, pairs = in_classes(240, 12, 40)
    turned = LearnedWhitening().fit(vectors, pairs[:, ::-1])
    np.testing.assert_allclose(turned.matrix, LearnedWhitening().fit(vectors, pairs).matrix, atol=1e-10)
