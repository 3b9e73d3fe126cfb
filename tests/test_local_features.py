"""BoW, VLAD, Fisher vectors and ASMK against plain loops over descriptors."""

from typing import Any

import faiss
import numpy as np
import pytest
import torch
from local_pictures import scene
from PIL import Image
from sklearn.mixture import GaussianMixture
from torch import Tensor

from ssl_retrieval import config, plugins
from ssl_retrieval.errors import UserError
from ssl_retrieval.extractors import fisher
from ssl_retrieval.extractors.local_base import LocalExtractor
from ssl_retrieval.sift import root_sift, sift
from ssl_retrieval.types import FloatArray, VectorArray

NAMES = ["asmk", "bow", "fisher", "vlad"]
SMALL: dict[str, dict[str, Any]] = {
    "asmk": {"words": 50},
    "bow": {"words": 50},
    "fisher": {"gaussians": 4, "pca": 6},
    "vlad": {"words": 5},
}
PICTURES = [scene(seed) for seed in range(6)]
BLANK = Image.new("RGB", (50, 40), "grey")


def untaught(name: str, **options: Any) -> Any:
    cfg = config.plugin_config("extractor", {"name": name} | SMALL[name] | options, "model")
    return plugins.find("extractor", name).Extractor(cfg)


def taught(name: str, pictures: list[Image.Image] = PICTURES, **options: Any) -> Any:
    extractor = untaught(name, **options)
    extractor.set_learned(extractor.learn([extractor.material(picture) for picture in pictures]))
    return extractor


def rows_of(extractor: LocalExtractor, pictures: list[Image.Image]) -> VectorArray:
    batch: VectorArray = extractor(torch.stack([extractor.preprocess(p) for p in pictures])).numpy()
    return batch


def described(picture: Image.Image) -> VectorArray:
    return root_sift(sift(picture))


def words_of(descriptors: VectorArray, words: VectorArray) -> list[int]:
    distances = ((descriptors[:, None].astype(np.float64) - words) ** 2).sum(axis=2)
    nearest: list[int] = distances.argmin(axis=1).tolist()
    return nearest


def of_length_1(vector: FloatArray) -> FloatArray:
    return vector / np.linalg.norm(vector)


# Bag of words


def test_bow_against_a_loop() -> None:
    extractor = taught("bow")
    words = extractor.words.numpy()
    counts = np.zeros((len(PICTURES), 50))
    for row, picture in enumerate(PICTURES):
        for word in words_of(described(picture), words):
            counts[row, word] += 1
    idf = np.log(len(PICTURES) / np.maximum((counts > 0).sum(axis=0), 1))
    rows = rows_of(extractor, PICTURES)
    np.testing.assert_allclose(rows, counts * idf, rtol=1e-5)
    normalised = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    scores = extractor.similarity(rows[:2], rows).scores(slice(0, 2))
    np.testing.assert_allclose(scores, normalised[:2] @ normalised.T, atol=1e-6)
    assert extractor.bytes_per_image(rows) == 8 * np.count_nonzero(rows) / len(rows)


def test_images_without_a_keypoint_do_not_count_for_idf() -> None:
    assert torch.equal(taught("bow", [*PICTURES, BLANK, BLANK]).idf, taught("bow").idf)


def test_one_image_teaches_no_idf() -> None:
    with pytest.raises(UserError, match="bow: every word occurs in each of the 1 images"):
        taught("bow", PICTURES[:1])


# VLAD


@pytest.mark.parametrize("signed_root", [True, False])
@pytest.mark.parametrize("intra_norm", [True, False])
def test_vlad_against_a_loop(signed_root: bool, intra_norm: bool) -> None:
    extractor = taught("vlad", signed_root=signed_root, intra_norm=intra_norm)
    words = extractor.words.numpy()
    for picture in PICTURES[:2]:
        parts = np.zeros((5, 128))
        descriptors = described(picture).astype(np.float64)
        for descriptor, word in zip(
            descriptors, words_of(descriptors.astype(np.float32), words), strict=True
        ):
            parts[word] += descriptor - words[word]
        if signed_root:
            parts = np.sign(parts) * np.abs(parts) ** 0.5
        if intra_norm:
            for word in range(5):
                parts[word] /= max(np.linalg.norm(parts[word]), 1e-12)
        # The square root makes much of what little rounding leaves.
        tolerance = 2e-3 if signed_root else 1e-5
        expected = of_length_1(parts.ravel())
        np.testing.assert_allclose(extractor.preprocess(picture).numpy(), expected, atol=tolerance)
    assert extractor.dim == 5 * 128


def test_vlad_of_words_themselves_is_zero() -> None:
    extractor = taught("vlad")
    assert not extractor.aggregate(extractor.words.clone()).any()


# Fisher vectors


def mixture_of(extractor: fisher.Extractor) -> GaussianMixture:
    mixture = GaussianMixture(len(extractor.weights), covariance_type="diag")
    mixture.weights_ = extractor.weights.numpy().copy()
    mixture.means_ = extractor.means.numpy().copy()
    mixture.covariances_ = extractor.deviations.numpy() ** 2
    mixture.precisions_cholesky_ = 1 / extractor.deviations.numpy()
    return mixture


def reduced(extractor: fisher.Extractor, picture: Image.Image) -> Tensor:
    return (torch.from_numpy(described(picture)).double() - extractor.mean) @ extractor.matrix.T


def test_posteriors_are_scikit_learns() -> None:
    extractor = taught("fisher")
    points = reduced(extractor, PICTURES[0])
    expected = mixture_of(extractor).predict_proba(points.numpy())
    np.testing.assert_allclose(extractor.posteriors(points).numpy(), expected, atol=1e-9)


def test_gradients_against_a_loop() -> None:
    extractor = taught("fisher", variances=True)
    points = reduced(extractor, PICTURES[1])
    posteriors = mixture_of(extractor).predict_proba(points.numpy())
    means, deviations = extractor.means.numpy(), extractor.deviations.numpy()
    by_means, by_deviations = np.zeros((4, 6)), np.zeros((4, 6))
    for point, posterior in zip(points.numpy(), posteriors, strict=True):
        for k in range(4):
            whitened = (point - means[k]) / deviations[k]
            by_means[k] += posterior[k] * whitened
            by_deviations[k] += posterior[k] * (whitened**2 - 1)
    weights = extractor.weights.numpy()[:, None]
    by_means /= len(points) * np.sqrt(weights)
    by_deviations /= len(points) * np.sqrt(2 * weights)
    expected = np.concatenate([by_means.ravel(), by_deviations.ravel()])
    np.testing.assert_allclose(extractor.gradients(points).numpy(), expected, atol=1e-9)


def test_gradients_are_those_of_the_log_likelihood() -> None:
    extractor = taught("fisher", variances=True)
    points = reduced(extractor, PICTURES[2]).numpy()
    found = extractor.gradients(torch.from_numpy(points)).numpy().reshape(2, 4, 6)
    step = 1e-6
    for k, d in [(0, 0), (1, 3), (3, 5), (2, 2)]:
        deviation, weight = float(extractor.deviations[k, d]), float(extractor.weights[k])
        for kind in (0, 1):
            likelihoods = []
            for sign in (1, -1):
                mixture = mixture_of(extractor)
                if kind == 0:
                    mixture.means_[k, d] += sign * step
                else:
                    mixture.covariances_[k, d] = (deviation + sign * step) ** 2
                    mixture.precisions_cholesky_[k, d] = 1 / (deviation + sign * step)
                likelihoods.append(mixture.score(points))
            slope = (likelihoods[0] - likelihoods[1]) / (2 * step)
            # The Fisher information is w / σ² for a mean, 2w / σ² for a standard deviation.
            expected = slope * deviation / np.sqrt((kind + 1) * weight)
            assert found[kind, k, d] == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("variances", [True, False])
def test_fisher_power_and_length(variances: bool) -> None:
    extractor = taught("fisher", variances=variances, power=0.3)
    gradients = extractor.gradients(reduced(extractor, PICTURES[0])).numpy()
    expected = of_length_1(np.sign(gradients) * np.abs(gradients) ** 0.3)
    np.testing.assert_allclose(extractor.preprocess(PICTURES[0]).numpy(), expected, atol=1e-6)
    assert extractor.dim == len(expected) == 4 * 6 * (2 if variances else 1)


def test_descriptors_are_reduced_along_their_largest_variances() -> None:
    extractor = taught("fisher")
    everything = np.concatenate([described(picture) for picture in PICTURES]).astype(np.float64)
    variances = np.linalg.eigvalsh(np.cov(everything.T))[::-1][:6]
    projected = (everything - extractor.mean.numpy()) @ extractor.matrix.numpy().T
    np.testing.assert_allclose(projected.var(axis=0, ddof=1), variances, rtol=1e-4)


# ASMK


def asmk_score(words: VectorArray, one: Image.Image, other: Image.Image, alpha: float, tau: float) -> float:
    """The kernel, as written down in the paper: both images' words, their aggregated signs, σ."""

    def codes(picture: Image.Image) -> dict[int, FloatArray]:
        sums: dict[int, FloatArray] = {}
        descriptors = described(picture)
        for descriptor, word in zip(descriptors, words_of(descriptors, words), strict=True):
            sums[word] = sums.get(word, np.zeros(128, np.float32)) + (descriptor - words[word])
        return {word: np.where(total >= 0, 1.0, -1.0) for word, total in sums.items()}

    def kernel(first: dict[int, FloatArray], second: dict[int, FloatArray]) -> float:
        total = 0.0
        for word, code in first.items():
            for other_word, other_code in second.items():
                if word == other_word:
                    cosine = float(code @ other_code) / 128
                    total += cosine**alpha if cosine > tau else 0
        return total

    first, second = codes(one), codes(other)
    return kernel(first, second) / np.sqrt(kernel(first, first) * kernel(second, second))


@pytest.mark.parametrize(("alpha", "tau"), [(3.0, 0.0), (1.0, 0.1), (2.5, 0.3)])
def test_asmk_against_a_double_loop(alpha: float, tau: float) -> None:
    extractor = taught("asmk", alpha=alpha, tau=tau)
    pictures = [*PICTURES[:3], PICTURES[0].crop((20, 10, 150, 140))]
    rows = rows_of(extractor, pictures)
    scores = extractor.similarity(rows, rows).scores(slice(0, 4))
    words = extractor.words.numpy()
    for i in range(4):
        for j in range(4):
            expected = asmk_score(words, pictures[i], pictures[j], alpha, tau)
            assert scores[i, j] == pytest.approx(expected, abs=1e-5)
    np.testing.assert_allclose(scores.diagonal(), 1, atol=1e-6)


def test_asmk_finds_the_part_of_a_picture() -> None:
    extractor = taught("asmk", words=200)
    rows = rows_of(extractor, PICTURES)
    parts = rows_of(extractor, [picture.crop((30, 20, 140, 150)) for picture in PICTURES])
    scores = extractor.similarity(parts, rows).scores(slice(0, len(PICTURES)))
    assert scores.argmax(axis=1).tolist() == list(range(len(PICTURES)))


def test_asmk_rows_survive_the_way_to_disk_and_count_their_entries() -> None:
    extractor = taught("asmk", max_keypoints=30)
    rows = rows_of(extractor, [*PICTURES, BLANK])
    assert rows.shape == (7, 7 * 30)
    assert (rows == rows.astype(np.int32)).all()
    num_words = [
        len(set(words_of(root_sift(sift(p, max_keypoints=30)), extractor.words.numpy()))) for p in PICTURES
    ]
    assert extractor.bytes_per_image(rows) == pytest.approx(20 * sum(num_words) / 7)
    assert extractor.only_scores


# All four


@pytest.mark.parametrize("name", NAMES)
def test_the_same_images_teach_the_same(name: str) -> None:
    first, again = taught(name), taught(name)
    assert first.weights_digest == again.weights_digest != "none"
    assert torch.equal(first.preprocess(PICTURES[0]), again.preprocess(PICTURES[0]))
    assert taught(name, PICTURES[1:]).weights_digest != first.weights_digest
    assert taught(name, seed=1).weights_digest != first.weights_digest


@pytest.mark.parametrize("name", NAMES)
def test_a_large_seed_serves_too(name: str) -> None:
    for seed in (-1, 2**40):
        assert taught(name, PICTURES[:2], seed=seed).weights_digest != "none"


@pytest.mark.parametrize("name", NAMES)
def test_no_keypoint_means_zeros_and_the_score_0(name: str) -> None:
    extractor = taught(name)
    rows = rows_of(extractor, [BLANK, PICTURES[0], Image.new("RGB", (1, 1))])
    assert rows.shape == (3, extractor.dim)
    assert not rows[0].any()
    assert not rows[2].any()
    assert rows[1].any()
    if hasattr(extractor, "similarity"):
        scores = extractor.similarity(rows, rows).scores(slice(0, 3))
        np.testing.assert_allclose(scores, np.diag([0, 1, 0]), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(20000, 20), (20, 20000), (1, 300), (2, 3), (500, 40), (32, 32)])
def test_odd_sizes(name: str, size: tuple[int, int]) -> None:
    row = taught(name).preprocess(PICTURES[0].resize(size))
    assert row.dtype == torch.float32
    assert torch.isfinite(row).all()


@pytest.mark.parametrize("name", NAMES)
def test_few_descriptors_teach_a_small_vocabulary(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    extractor = untaught(name, words=60) if name != "fisher" else untaught(name, gaussians=60)
    parts = [extractor.material(picture)[:4] for picture in PICTURES[:2]]
    extractor.set_learned(extractor.learn(parts))
    what = "Gaussians" if name == "fisher" else "words"
    said = capsys.readouterr().err
    assert said == f"vocabulary: only 8 descriptors to learn from, so 8 {what}, not 60\n"
    row = extractor.preprocess(PICTURES[3])
    assert row.shape == (extractor.dim,)
    assert torch.isfinite(row).all()


@pytest.mark.parametrize("name", NAMES)
def test_images_without_keypoints_teach_nothing(name: str) -> None:
    with pytest.raises(UserError, match=rf"{name}: none of the 2 images .* has a SIFT keypoint: give others"):
        taught(name, [BLANK, BLANK])


def test_one_keypoint_is_no_mixture() -> None:
    extractor = untaught("fisher")
    with pytest.raises(UserError, match="fisher: the 2 images to learn from have a single SIFT keypoint"):
        extractor.learn([extractor.material(PICTURES[0])[:1], extractor.material(BLANK)])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"max_keypoints": 0}, "max_keypoints=0"),
        ({"min_side": 0}, "min_side=0"),
        ({"max_side": 0}, "max_side=0"),
        ({"contrast_threshold": -0.1}, r"contrast_threshold=-0\.1"),
        ({"contrast_threshold": float("nan")}, "contrast_threshold=nan"),
    ],
)
def test_options_that_mean_nothing(name: str, options: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=rf"model\.{key}: must be ") as error:
        untaught(name, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "key"),
    [
        ("bow", {"words": 0}, "words=0"),
        ("bow", {"words": 1 << 20}, "words=1048576"),
        ("vlad", {"words": 0}, "words=0"),
        ("fisher", {"gaussians": 0}, "gaussians=0"),
        ("fisher", {"pca": 129}, "pca=129"),
        ("fisher", {"power": 0.0}, r"power=0\.0"),
        ("asmk", {"words": 0}, "words=0"),
        ("asmk", {"alpha": 0.0}, r"alpha=0\.0"),
        ("asmk", {"tau": 1.0}, r"tau=1\.0"),
        ("asmk", {"tau": -0.5}, r"tau=-0\.5"),
    ],
)
def test_options_of_one_that_mean_nothing(name: str, options: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=rf"model\.{key}: must be "):
        untaught(name, **options)


@pytest.mark.parametrize("name", ["vlad", "asmk"])
def test_words_are_those_of_faiss_on_all_descriptors(name: str) -> None:
    everything = np.concatenate([described(picture) for picture in PICTURES])
    means = faiss.Kmeans(
        128, 5, niter=15, seed=0, min_points_per_centroid=1, max_points_per_centroid=len(everything)
    )
    means.train(everything)
    np.testing.assert_array_equal(taught(name, words=5).words.numpy(), means.centroids)
