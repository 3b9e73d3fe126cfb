"""Post-processing: the simple steps, how steps are written, fitted and chained."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ssl_retrieval import postprocess
from ssl_retrieval.codes_faiss import ProductQuantization
from ssl_retrieval.errors import UserError
from ssl_retrieval.postprocess import l2_normalize, matching_pairs
from ssl_retrieval.types import VectorArray
from ssl_retrieval.whitening import Pca

SOME_OF_EACH = [
    ["center"],
    ["l2"],
    ["power:0.5"],
    ["pca:3"],
    ["pca_whiten:3"],
    ["pca_whiten:5:0.25"],
    ["learned_whiten"],
    ["learned_whiten:2"],
    ["sign"],
    ["lsh:12"],
    ["itq:4"],
    ["pq:3"],
    ["pq:4x2"],
    ["opq:2x3"],
    ["sq8"],
    ["sq4"],
    ["fp16"],
    ["center", "l2", "power:0.5", "pca_whiten:4", "l2", "itq:3"],
]

matrices = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


def some_vectors(num: int, dim: int, seed: int = 0) -> VectorArray:
    return np.random.default_rng(seed).standard_normal((num, dim)).astype(np.float32) + 1


def fitted(texts: list[str], vectors: VectorArray, seed: int = 0) -> postprocess.Pipeline:
    pairs = np.stack([np.arange(0, len(vectors) - 1), np.arange(1, len(vectors))], axis=1)
    return postprocess.fit(postprocess.parse(texts), vectors, pairs, seed)


@given(matrices)
def test_rows_get_length_1_and_keep_their_direction(vectors: VectorArray) -> None:
    normalised = l2_normalize(vectors)
    assert normalised.dtype == np.float32
    for before, after in zip(vectors.astype(np.float64), normalised.astype(np.float64), strict=True):
        length = np.sqrt((before**2).sum())
        expected = np.zeros_like(before) if length == 0 else before / length
        np.testing.assert_allclose(after, expected, rtol=1e-6, atol=1e-7)


@given(matrices)
def test_normalising_twice_changes_nothing(vectors: VectorArray) -> None:
    once = l2_normalize(vectors)
    np.testing.assert_allclose(l2_normalize(once), once, atol=2e-7)


@given(matrices, st.integers(-20, 20))
def test_length_does_not_matter(vectors: VectorArray, exponent: int) -> None:
    # By powers of two, which round nothing, as long as no element leaves float32's normal range.
    vectors = np.where(np.abs(vectors) < 1e-25, np.float32(0), vectors)
    np.testing.assert_array_equal(l2_normalize(np.ldexp(vectors, exponent)), l2_normalize(vectors))


def test_zero_rows_have_no_direction() -> None:
    assert l2_normalize(np.zeros((2, 3), np.float32)).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_huge_and_tiny_values_neither_overflow_nor_vanish() -> None:
    vectors = np.array([[3e38, 3e38], [1e-44, 0], [3e38, 1e-44]], np.float32)
    np.testing.assert_allclose(l2_normalize(vectors), [[0.5**0.5, 0.5**0.5], [1, 0], [1, 0]], rtol=1e-6)


def test_no_rows() -> None:
    assert l2_normalize(np.empty((0, 4), np.float32)).shape == (0, 4)


def test_centring_takes_the_mean_of_the_fitted_images_away() -> None:
    pipeline = fitted(["center"], np.array([[1, 2], [3, 6]], np.float32))
    assert pipeline.apply(np.array([[2, 4], [3, 3]], np.float32), "query").tolist() == [[0, 0], [1, -1]]


def test_the_power_keeps_the_sign() -> None:
    pipeline = fitted(["power:0.5"], np.ones((1, 4), np.float32))
    roots = pipeline.apply(np.array([[4, -9, 0, 0.25]], np.float32), "gallery")
    assert roots.tolist() == [[2, -3, 0, 0.5]]


def test_steps_run_in_the_order_they_are_written() -> None:
    vectors = some_vectors(50, 6)
    mean = vectors.mean(axis=0)
    np.testing.assert_allclose(
        fitted(["center", "l2"], vectors).apply(vectors, "query"), l2_normalize(vectors - mean), atol=1e-6
    )
    other = l2_normalize(vectors)
    np.testing.assert_allclose(
        fitted(["l2", "center"], vectors).apply(vectors, "query"), other - other.mean(axis=0), atol=1e-6
    )


@pytest.mark.parametrize("texts", SOME_OF_EACH, ids="+".join)
def test_images_without_features_stay_zero_and_count_for_nothing(texts: list[str]) -> None:
    vectors = some_vectors(40, 6)
    with_empty = np.insert(vectors, [3, 3, 20], 0, axis=0)
    kept = np.flatnonzero(with_empty.any(axis=1))
    pairs = np.array([[0, 1], [1, 2], [2, 5], [7, 9], [30, 31], [12, 33], [4, 6], [5, 7]])
    steps = postprocess.parse(texts)
    with_zeros = postprocess.fit(steps, with_empty, np.append(kept[pairs], [[0, 3]], axis=0), seed=1)
    without = postprocess.fit(steps, vectors, pairs, seed=1)
    for role in ("query", "gallery"):
        result = with_zeros.apply(with_empty, role)
        np.testing.assert_array_equal(result[kept], without.apply(vectors, role))
        assert not result[[3, 4, 22]].any()
    if any(step.learns for step in steps):
        assert with_zeros.notes[0] == "3 of 43 images without features were left out of fitting"


@pytest.mark.parametrize("texts", SOME_OF_EACH, ids="+".join)
@pytest.mark.parametrize("num_images", [2, 5, 40])
def test_what_comes_out_is_finite_of_the_dimension_promised_and_the_same_every_time(
    texts: list[str], num_images: int
) -> None:
    vectors, others = some_vectors(num_images, 6), some_vectors(30, 6, seed=1) * 10
    pipeline = fitted(texts, vectors)
    again = fitted(texts, vectors)
    for role in ("query", "gallery"):
        result = pipeline.apply(others, role)
        assert result.dtype == np.float32
        assert result.shape == (30, pipeline.dim)
        assert np.isfinite(result).all()
        np.testing.assert_array_equal(result, again.apply(others, role))
        assert pipeline.apply(others[:0], role).shape == (0, pipeline.dim)


@pytest.mark.parametrize("texts", SOME_OF_EACH, ids="+".join)
def test_a_single_image_and_equal_images_have_a_defined_result(texts: list[str]) -> None:
    others = some_vectors(5, 6)
    for vectors in (np.ones((4, 6), np.float32), np.full((2, 6), 0.1, np.float32), others[:1]):
        pairs = np.array([[0, len(vectors) - 1]])
        pipeline = postprocess.fit(postprocess.parse(texts), vectors, pairs, 0)
        for role in ("query", "gallery"):
            assert np.isfinite(pipeline.apply(others, role)).all()


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = some_vectors(50, 6)
    pipeline = fitted(["center", "pca_whiten:4", "l2"], vectors)
    whole = pipeline.apply(vectors, "query")
    monkeypatch.setattr(postprocess, "_BLOCK_BYTES", 7 * 4 * 6)
    np.testing.assert_allclose(pipeline.apply(vectors, "query"), whole, atol=1e-6)


def test_vectors_are_never_changed_in_place() -> None:
    vectors = some_vectors(40, 6)
    vectors[2] = 0
    vectors.setflags(write=False)
    for texts in SOME_OF_EACH:
        fitted(texts, vectors).apply(vectors, "gallery")


@pytest.mark.parametrize(
    ("texts", "size"),
    [
        ([], 24.0),
        (["l2"], 24.0),
        (["pca:5"], 20.0),
        (["sign"], 1.0),
        (["lsh:12"], 2.0),
        (["pca:5", "itq:3", "l2"], 1.0),
        (["pq:3"], 3.0),
        (["pq:3x3"], 2.0),
        (["opq:2x6"], 2.0),
        (["sq8"], 6.0),
        (["sq4"], 3.0),
        (["fp16"], 12.0),
    ],
    ids=str,
)
def test_bytes_per_image(texts: list[str], size: float) -> None:
    assert fitted(texts, some_vectors(300, 6)).bytes_per_image == size


def test_nothing_that_learns_needs_no_images() -> None:
    pipeline = postprocess.fit(postprocess.parse(["l2", "lsh:9"]), np.empty((0, 6), np.float32), None, 0)
    assert pipeline.apply(some_vectors(4, 6), "query").shape == (4, 9)


def test_images_that_all_lack_features_cannot_be_fitted() -> None:
    with pytest.raises(UserError, match=r"none of the 4 images to fit l2, pca:2 on has features"):
        fitted(["l2", "pca:2"], np.zeros((4, 6), np.float32))


def test_learned_whitening_without_pairs_says_what_to_do() -> None:
    for pairs in (None, np.empty((0, 2), np.int64)):
        with pytest.raises(UserError, match=r"no two of the 9 images .* labelled .* or use pca_whiten"):
            postprocess.fit(postprocess.parse(["learned_whiten"]), some_vectors(9, 6), pairs, 0)


def test_notes_name_their_step() -> None:
    notes = fitted(["l2", "pca_whiten:64"], some_vectors(4, 6)).notes
    assert notes == (
        "pca_whiten:64: 3 of 6 dimensions: fitted on only 4 images, which span at most 3; 64 were asked for",
    )


@pytest.mark.parametrize("text", [texts[0] for texts in SOME_OF_EACH] + ["opq:16", "pq:8x4", "pca:1"])
def test_a_step_is_named_as_it_is_written(text: str) -> None:
    assert [step.name for step in postprocess.parse([f" {text} "])] == [text]


def test_parameters_arrive() -> None:
    assert postprocess.parse(["pca:7", "pca_whiten:7", "pca_whiten:7:0.25", "opq:4x6"]) == (
        Pca(7, 0.0),
        Pca(7, 0.5),
        Pca(7, 0.25),
        ProductQuantization(4, 6, rotates=True),
    )


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["L2"], r"unknown step 'L2'; did you mean 'l2'\? \(known: center, l2, power, "),
        (["whiten"], r"unknown step 'whiten'; did you mean 'pca_whiten'\?"),
        ([""], r"unknown step '' \(known: center"),
        (["pca"], r"step 'pca': a parameter is missing; it is written pca:256"),
        (["pca:"], r"step 'pca:': the number of dimensions must be a whole number from 1 to 65536"),
        (["pca:0"], r"must be a whole number from 1"),
        (["pca:-3"], r"must be a whole number from 1"),
        (["pca:2.5"], r"must be a whole number from 1"),
        (["pca:99999999999999999999"], r"must be a whole number from 1"),
        (["pca:²"], r"must be a whole number from 1"),
        (["l2:3"], r"step 'l2:3': it has too many parameters; it is written l2"),
        (["pca_whiten:9:1"], r"the exponent of the variances must be a number above 0, at most 0\.5"),
        (
            ["pca_whiten:9:0.5:1"],
            r"too many parameters; it is written pca_whiten:256 or pca_whiten:256:0\.25",
        ),
        (["power:0"], r"the exponent must be a number above 0, at most 1"),
        (["power:nan"], r"the exponent must be a number above 0"),
        (["power:half"], r"the exponent must be a number above 0"),
        (["pq:16x"], r"the number of bits per part must be a whole number from 1 to 12"),
        (["pq:x8"], r"the number of parts must be a whole number"),
        (["opq:16x13"], r"the number of bits per part must be a whole number from 1 to 12"),
        (["itq:8", "l2", "pca:4"], r"step 'pca:4' after 'itq:8': a code must be the last step"),
        (["sq8", "pq:4"], r"step 'pq:4' after 'sq8': a code must be the last step"),
    ],
    ids=str,
)
def test_mistakes_in_steps_are_explained(texts: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        postprocess.parse(texts)


@given(st.one_of(st.text(max_size=12), st.from_regex(r"(pca|pq|power|itq|pca_whiten)(:[-0-9x.e]{0,4}){0,3}")))
def test_any_text_is_a_mistake_or_a_step_that_can_be_written_again(text: str) -> None:
    with contextlib.suppress(UserError):
        steps = postprocess.parse([text])
        assert postprocess.parse([step.name for step in steps]) == steps


@given(st.lists(st.integers(0, 4), max_size=14), st.integers(0, 40), st.integers(0, 3))
def test_matching_pairs_are_an_even_draw_from_all_pairs(labels: list[int], limit: int, seed: int) -> None:
    everything = [
        (i, j) for i in range(len(labels)) for j in range(i + 1, len(labels)) if labels[i] == labels[j]
    ]
    pairs = matching_pairs(np.array(labels, np.int64), limit, seed)
    assert pairs.dtype == np.int64
    assert pairs.shape == (min(limit, len(everything)), 2)
    drawn = [(int(i), int(j)) for i, j in pairs]
    assert drawn == sorted(set(drawn))
    assert set(drawn) <= set(everything)


def test_every_matching_pair_is_as_likely() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2])
    counts = np.zeros((9, 9))
    for seed in range(1500):
        for i, j in matching_pairs(labels, 4, seed):
            counts[i, j] += 1
    drawn = counts[counts > 0]
    assert len(drawn) == 3 + 6 + 1
    np.testing.assert_allclose(drawn, 1500 * 4 / 10, rtol=0.15)


def test_pairs_of_huge_classes_are_drawn_without_listing_them() -> None:
    labels = np.zeros(100_000, np.int64)
    pairs = matching_pairs(labels, 1000, 0)
    assert len(np.unique(pairs, axis=0)) == 1000
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert pairs.max() > 90_000
    np.testing.assert_array_equal(pairs, matching_pairs(labels, 1000, 0))
