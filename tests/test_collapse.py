"""Signs of collapse against naive formulas, and the words that follow from them."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from lightly.utils.debug import std_of_l2_normalized

from ssl_retrieval import collapse
from ssl_retrieval.augment import Augment, Noise, View
from ssl_retrieval.collapse import Signals
from ssl_retrieval.types import VectorArray

START = Signals(
    std=0.14,
    effective_rank=90.0,
    alignment=0.02,
    uniformity=-0.1,
    retrieval=0.34,
    metric="self_mAP",
    num_queries=600,
    num_images=600,
)
"""What an untrained resnet10t gave on 600 images of CIFAR-10."""

ADVICE = "a larger batch_size"


def gaussian(num: int, dim: int, seed: int = 0) -> VectorArray:
    return np.random.default_rng(seed).normal(size=(num, dim)).astype(np.float32)


def now(**changes: float) -> Signals:
    return dataclasses.replace(START, **changes)  # type: ignore[arg-type]


# The signals


@pytest.mark.parametrize(("num", "dim"), [(50, 8), (20, 100)])
def test_the_std_is_lightlys_times_the_root_of_the_dimension(num: int, dim: int) -> None:
    vectors = gaussian(num, dim) + 0.5
    theirs = std_of_l2_normalized(torch.from_numpy(vectors)).item()
    bessel = math.sqrt((num - 1) / num)
    assert collapse.embedding_std(vectors) == pytest.approx(theirs * bessel * math.sqrt(dim), rel=1e-5)


def test_the_std_tells_random_directions_from_nearly_equal_ones() -> None:
    assert collapse.embedding_std(gaussian(2000, 64)) == pytest.approx(1, abs=0.01)
    assert collapse.embedding_std(gaussian(2000, 64) + 100) < 0.02


def test_no_signal_depends_on_the_length_of_the_vectors() -> None:
    vectors, others = gaussian(30, 12), gaussian(30, 12, seed=1)
    lengths = np.random.default_rng(2).uniform(0.1, 50, (30, 1)).astype(np.float32)
    assert collapse.embedding_std(vectors * lengths) == pytest.approx(collapse.embedding_std(vectors))
    assert collapse.uniformity(vectors * lengths) == pytest.approx(collapse.uniformity(vectors))
    assert collapse.alignment(vectors * lengths, others) == pytest.approx(collapse.alignment(vectors, others))
    np.testing.assert_allclose(collapse.centre(vectors * lengths), collapse.centre(vectors), atol=1e-6)


@pytest.mark.parametrize(("num", "dim", "inner"), [(40, 10, 10), (10, 40, 10), (60, 30, 4)])
def test_the_effective_rank_is_rankme(num: int, dim: int, inner: int) -> None:
    vectors = gaussian(num, inner) @ gaussian(inner, dim, seed=1)
    values = np.linalg.svd(vectors.astype(np.float64), compute_uv=False)
    entropy = 0.0
    for value in values:
        share = value / values.sum() + 1e-7
        entropy -= share * math.log(share)
    assert collapse.effective_rank(vectors) == pytest.approx(math.exp(entropy), rel=1e-4)
    assert collapse.effective_rank(vectors) <= inner + 0.01


def test_the_effective_rank_counts_equal_directions() -> None:
    for num in (1, 3, 7):
        vectors = np.repeat(np.eye(20, dtype=np.float32)[:num], 4, axis=0)
        assert collapse.effective_rank(vectors) == pytest.approx(num, abs=0.01)


def test_zeros_have_the_effective_rank_of_one_direction() -> None:
    assert collapse.effective_rank(np.zeros((30, 20), np.float32)) == pytest.approx(1, abs=0.01)


def test_alignment_and_uniformity_are_wang_and_isolas() -> None:
    first, second = gaussian(20, 6), gaussian(20, 6, seed=1)
    units = [[row / np.linalg.norm(row) for row in rows.astype(np.float64)] for rows in (first, second)]
    distances = [float(((a - b) ** 2).sum()) for a, b in zip(*units, strict=True)]
    assert collapse.alignment(first, second) == pytest.approx(sum(distances) / 20, rel=1e-5)
    potentials = [
        math.exp(-2 * float(((units[0][i] - units[0][j]) ** 2).sum())) for i in range(20) for j in range(i)
    ]
    assert collapse.uniformity(first) == pytest.approx(math.log(sum(potentials) / len(potentials)), rel=1e-5)


def test_uniformity_does_not_depend_on_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = gaussian(50, 6)
    whole = collapse.uniformity(vectors)
    monkeypatch.setattr(collapse, "CHUNK_ROWS", 7)
    assert collapse.uniformity(vectors) == pytest.approx(whole, rel=1e-12)


def test_a_single_embedding_has_signals() -> None:
    one = gaussian(1, 5)
    assert (collapse.embedding_std(one), collapse.uniformity(one)) == (0, 0)


def test_the_direction_that_all_share_hides_no_others() -> None:
    nearly_parallel = gaussian(200, 32) + 30
    assert collapse.effective_rank(nearly_parallel) < 3
    assert collapse.effective_rank(collapse.centre(nearly_parallel)) > 25


def test_rounding_does_not_look_like_directions() -> None:
    equal = np.ones((100, 64), np.float32) + gaussian(100, 64) * np.float32(1e-6)
    assert np.abs(collapse.centre(equal)).max() == 0


# The words


def test_the_start_and_better_search_give_no_alarm() -> None:
    assert collapse.diagnose(START, START, ADVICE) is None
    assert collapse.diagnose(now(std=0.77, effective_rank=190, retrieval=0.54), START, ADVICE) is None


def test_few_directions_are_no_trouble_where_search_is_better() -> None:
    assert collapse.kind_of_trouble(now(effective_rank=8, retrieval=0.6), START) is None
    assert collapse.kind_of_trouble(now(effective_rank=1.2, retrieval=0.6), START) is None
    assert collapse.kind_of_trouble(now(std=0.01, retrieval=0.6), START) is None


def test_equal_embeddings_are_named() -> None:
    words = collapse.diagnose(now(std=1e-6, effective_rank=1, retrieval=0.01), START, ADVICE)
    assert words is not None
    assert words.startswith("embeddings collapse: all images get nearly the same one")
    assert "std 0.14 at the start, now 1e-06" in words
    assert words.endswith(f"try {ADVICE}")
    assert "\n" not in words


def test_spread_lost_by_a_factor_of_ten_is_a_collapse_where_search_suffers() -> None:
    assert collapse.kind_of_trouble(now(std=0.013, retrieval=0.2), START) == "constant"
    assert collapse.kind_of_trouble(now(std=0.015, retrieval=0.33), START) is None


def test_a_single_direction_is_named() -> None:
    words = collapse.diagnose(now(std=0.9, effective_rank=1.1, retrieval=0.05), START, ADVICE)
    assert words is not None
    assert "one direction only (effective rank 90 at the start, now 1.1" in words


def test_a_handful_of_images_has_a_low_rank_without_alarm() -> None:
    few = now(effective_rank=1.2, num_images=3)
    assert collapse.kind_of_trouble(few, few) is None


def test_lost_directions_and_falling_search_are_named_together() -> None:
    words = collapse.diagnose(now(effective_rank=23, retrieval=0.25), START, ADVICE)
    assert words is not None
    assert "lose directions and search gets worse" in words
    assert "self_mAP 0.340 at the start, now 0.250" in words
    assert collapse.kind_of_trouble(now(effective_rank=50, retrieval=0.25), START) == "worse"


def test_falling_search_alone_is_no_claim_of_collapse() -> None:
    colour = collapse.colour_advice([View(Augment(), 32)])
    worse = now(std=0.59, effective_rank=86, retrieval=0.23)
    words = collapse.diagnose(worse, START, ADVICE, colour)
    assert words is not None
    assert "collapse" not in words
    assert words.startswith("search gets worse by training (self_mAP 0.340 at the start, now 0.230)")
    assert "method.augment.jitter=0" in words, "views may throw away what tells the images apart"
    grey = collapse.colour_advice([View(Augment(jitter=0.0, grayscale=0.0), 32), Noise(4)])
    without_colour = collapse.diagnose(worse, START, ADVICE, grey)
    assert without_colour is not None
    assert "jitter" not in without_colour, "they do not change colours"


@pytest.mark.parametrize("retrieval", [0.31, 0.34])
def test_a_tenth_less_is_within_what_runs_do(retrieval: float) -> None:
    assert collapse.kind_of_trouble(now(retrieval=retrieval), START) is None


def test_few_queries_prove_no_fall() -> None:
    start = now(num_queries=20)
    assert collapse.kind_of_trouble(dataclasses.replace(start, retrieval=0.2), start) is None
    assert collapse.kind_of_trouble(now(retrieval=0.2), START) == "worse"


def test_equal_embeddings_before_training_are_blamed_on_images_and_weights() -> None:
    start = now(std=0.0)
    words = collapse.diagnose(start, start, ADVICE)
    assert words is not None
    assert "before any training: check that the images differ, and model.weights" in words
    assert ADVICE not in words
