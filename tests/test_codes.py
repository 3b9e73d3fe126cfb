"""Compact codes: binary ones against angles and faiss, product and scalar quantisers against faiss."""

import faiss
import numpy as np
import pytest

from ssl_retrieval import codes_binary
from ssl_retrieval.codes_binary import Itq, Lsh, Sign, rotate
from ssl_retrieval.codes_faiss import HalfPrecision, ProductQuantization, ScalarQuantization
from ssl_retrieval.postprocess import l2_normalize
from ssl_retrieval.types import FloatArray, VectorArray
from ssl_retrieval.whitening import Pca


def clustered(num: int, dim: int, num_clusters: int = 30, seed: int = 0) -> VectorArray:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((num_clusters, dim)) * np.geomspace(2, 0.2, dim)
    vectors = centres[rng.integers(0, num_clusters, num)] + 0.2 * rng.standard_normal((num, dim)) + 1
    return vectors.astype(np.float32)


def error(vectors: VectorArray, decoded: VectorArray) -> float:
    return float(((vectors - decoded) ** 2).sum())


def quantisation_loss(values: FloatArray) -> float:
    values = values / np.sqrt((values**2).mean())
    return float(((np.where(values >= 0, 1, -1) - values) ** 2).mean())


def test_the_sign_code_is_the_sign_of_each_value() -> None:
    code = Sign().fit(np.empty((0, 3), np.float32))
    assert code.apply(np.array([[0.1, -3, 0]], np.float32)).tolist() == [[1, -1, 1]]
    assert code.bits_per_image == 3


def test_the_cosine_of_binary_codes_counts_the_bits_that_differ() -> None:
    codes = Lsh(40).fit(np.empty((0, 16), np.float32)).apply(clustered(20, 16))
    cosines = l2_normalize(codes) @ l2_normalize(codes).T
    differing = (codes[:, None] != codes[None]).sum(axis=2)
    np.testing.assert_allclose(cosines, 1 - 2 * differing / 40, atol=1e-6)


def test_lsh_bits_differ_as_often_as_the_angle_says() -> None:
    vectors = np.random.default_rng(0).standard_normal((40, 24)).astype(np.float32)
    vectors[20:] = vectors[:20] + 0.5 * vectors[20:]
    codes = Lsh(20_000).fit(vectors[:0], seed=3).apply(vectors)
    differing = (codes[:, None] != codes[None]).mean(axis=2)
    normal = l2_normalize(vectors)
    angles = np.arccos(np.clip(normal @ normal.T, -1, 1))
    np.testing.assert_allclose(differing, angles / np.pi, atol=0.02)


def test_lsh_depends_on_the_seed_alone() -> None:
    vectors = clustered(50, 12)
    first = Lsh(16).fit(vectors, seed=0).apply(vectors)
    np.testing.assert_array_equal(first, Lsh(16).fit(vectors[:0], seed=0).apply(vectors))
    assert (first != Lsh(16).fit(vectors, seed=1).apply(vectors)).any()


def test_the_loss_of_itq_never_rises_and_falls() -> None:
    for seed in range(3):
        losses = np.array(Itq(16).fit(clustered(500, 24), seed=seed).losses)
        assert len(losses) == 51
        assert (np.diff(losses) <= 1e-12).all()
        assert losses[-1] < 0.9 * losses[0]


def test_itq_rounds_less_than_the_signs_of_pca_and_its_loss_is_what_it_says() -> None:
    vectors = clustered(500, 24)
    values = Pca(16).fit(vectors).apply(vectors).astype(np.float64)
    code = Itq(16).fit(vectors)
    assert code.projection is not None
    rotated = code.projection.apply(vectors).astype(np.float64)
    assert code.losses[-1] == pytest.approx(quantisation_loss(rotated), rel=1e-4)
    assert code.losses[-1] < 0.8 * quantisation_loss(values)
    # A rotation changes no distance.
    np.testing.assert_allclose(rotated @ rotated.T, values @ values.T, atol=1e-3)


def test_itq_is_the_alternation_of_the_paper() -> None:
    vectors = clustered(300, 12)
    values = Pca(8).fit(vectors).apply(vectors).astype(np.float64)
    start = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0]
    rotation = start
    for _ in range(50):
        codes = np.where(values @ rotation >= 0, 1.0, -1.0)
        left, _, right = np.linalg.svd(codes.T @ values)
        rotation = right.T @ left.T
    np.testing.assert_allclose(rotate(values, start)[0], rotation, atol=1e-8)


def test_itq_loses_less_than_that_of_faiss_which_is_why_it_is_our_own() -> None:
    vectors = clustered(2000, 16)
    values = Pca(16).fit(vectors).apply(vectors)
    start = np.linalg.qr(np.random.default_rng(0).standard_normal((16, 16)))[0]
    theirs = faiss.ITQMatrix(16)
    faiss.copy_array_to_vector(start.ravel(), theirs.init_rotation)
    theirs.train(values)
    ours = rotate(values.astype(np.float64), start)[1][-1]
    assert ours < 0.9 * quantisation_loss(theirs.apply(values).astype(np.float64))


def test_itq_finds_neighbours_better_than_lsh() -> None:
    vectors = clustered(600, 32, num_clusters=60)
    centred = vectors - vectors.mean(axis=0)
    true_best = (l2_normalize(centred) @ l2_normalize(centred).T - 2 * np.eye(600)).argsort(axis=1)[:, -10:]

    def share_found(codes: VectorArray) -> float:
        found = (codes @ codes.T - 1e3 * np.eye(600)).argsort(axis=1)[:, -10:]
        return float(np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(found, true_best, strict=True)]))

    assert share_found(Itq(24).fit(vectors).apply(vectors)) > share_found(Lsh(24).fit(centred).apply(centred))


def test_itq_has_no_more_bits_than_directions() -> None:
    code = Itq(64).fit(clustered(200, 12))
    assert code.bits_per_image == 12
    assert code.notes == ("all 12 dimensions: 64 were asked for",)
    assert Itq(64).fit(clustered(5, 12)).bits_per_image == 4


def test_itq_learns_from_a_draw_when_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = clustered(500, 12)
    monkeypatch.setattr(codes_binary, "_ITQ_ROWS", 100)
    code = Itq(8).fit(vectors, seed=1)
    assert code.projection is not None
    np.testing.assert_allclose(code.projection.mean, vectors.mean(axis=0, dtype=np.float64))
    np.testing.assert_array_equal(code.apply(vectors), Itq(8).fit(vectors, seed=1).apply(vectors))


def test_pq_is_that_of_faiss() -> None:
    vectors, others = clustered(700, 16), clustered(50, 16, seed=1)
    oracle = faiss.IndexPQ(16, 4, 6)
    oracle.pq.cp.seed = 5
    oracle.train(vectors)
    code = ProductQuantization(4, 6).fit(vectors, seed=5)
    np.testing.assert_array_equal(code.apply(others, "gallery"), oracle.sa_decode(oracle.sa_encode(others)))
    assert code.bits_per_image == 24
    assert oracle.sa_code_size() == 3


def test_each_part_of_a_pq_code_is_the_nearest_centroid() -> None:
    vectors = clustered(300, 6)
    code = ProductQuantization(3, 4).fit(vectors)
    decoded = code.apply(vectors, "gallery")
    centroids = faiss.vector_to_array(code.quantizer.centroids).reshape(3, 16, 2)
    for part in range(3):
        values = vectors[:, 2 * part : 2 * part + 2]
        nearest = ((values[:, None] - centroids[part][None]) ** 2).sum(axis=2).argmin(axis=1)
        np.testing.assert_array_equal(decoded[:, 2 * part : 2 * part + 2], centroids[part][nearest])


def test_queries_are_not_coded() -> None:
    vectors = clustered(300, 8)
    for step in (ProductQuantization(4), ProductQuantization(3), ScalarQuantization(4), HalfPrecision()):
        code = step.fit(vectors)
        np.testing.assert_array_equal(code.apply(vectors, "query"), vectors)
        assert (code.apply(vectors, "gallery") != vectors).any()


@pytest.mark.parametrize("parts", [4, 3])
def test_opq_turns_queries_and_loses_less_than_pq(parts: int) -> None:
    vectors = clustered(600, 16)
    code = ProductQuantization(parts, 4, rotates=True).fit(vectors)
    queries, gallery = code.apply(vectors, "query"), code.apply(vectors, "gallery")
    np.testing.assert_allclose(queries @ queries.T, vectors @ vectors.T, rtol=1e-4, atol=1e-3)
    plain = ProductQuantization(parts, 4).fit(vectors).apply(vectors, "gallery")
    assert error(queries, gallery) < error(vectors, plain)


def test_more_bytes_lose_less() -> None:
    vectors, others = clustered(600, 16), clustered(100, 16, seed=1)
    errors = []
    for parts in (1, 2, 4, 8, 16):
        errors.append(error(others, ProductQuantization(parts).fit(vectors).apply(others, "gallery")))
    for step in (ScalarQuantization(4), ScalarQuantization(8), HalfPrecision()):
        errors.append(error(others, step.fit(vectors).apply(others, "gallery")))
    # 16 parts of one dimension and 8 bits each stand beside 4 bits with equal steps: not comparable.
    assert errors[:5] == sorted(errors[:5], reverse=True)
    assert errors[5:] == sorted(errors[5:], reverse=True)


def test_dimensions_that_do_not_divide_are_filled_up() -> None:
    vectors = clustered(300, 10)
    code = ProductQuantization(4, 5).fit(vectors)
    assert code.notes == ("10 dimensions were filled up with zeros to 12, a multiple of 4",)
    decoded = code.apply(vectors, "gallery")
    assert decoded.shape == (300, 10)
    assert error(vectors, decoded) < 0.5 * error(vectors, np.broadcast_to(vectors.mean(axis=0), (300, 10)))


def test_more_parts_than_dimensions_are_cut() -> None:
    code = ProductQuantization(16, 4).fit(clustered(100, 9))
    assert code.bits_per_image == 9 * 4
    assert code.notes == ("9 parts: the vectors have only 9 dimensions",)


@pytest.mark.parametrize("rotates", [False, True])
@pytest.mark.parametrize(("num", "bits"), [(1, 1), (2, 1), (3, 1), (9, 3), (200, 7), (256, 8)])
def test_few_images_have_fewer_centroids(num: int, bits: int, rotates: bool) -> None:
    vectors = clustered(num, 24)
    code = ProductQuantization(4, rotates=rotates).fit(vectors)
    assert code.bits_per_image == 4 * bits
    assert code.quantizer.ksub == 2**bits
    expected = f"{2**bits} centroids per part ({bits} bits): fitted on only {num} images"
    assert code.notes == (() if bits == 8 else (expected,))
    assert np.isfinite(code.apply(clustered(20, 24, seed=1), "gallery")).all()


def test_training_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    ProductQuantization(4, rotates=True).fit(clustered(300, 8))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("bits", "kind"), [(8, "SQ8"), (4, "SQ4")])
def test_scalar_codes_are_those_of_faiss(bits: int, kind: str) -> None:
    vectors, others = clustered(300, 7), 2 * clustered(50, 7, seed=1)
    oracle = faiss.index_factory(7, kind)
    oracle.train(vectors)
    code = ScalarQuantization(bits).fit(vectors)
    np.testing.assert_array_equal(code.apply(others, "gallery"), oracle.sa_decode(oracle.sa_encode(others)))
    assert code.bits_per_image == 7 * bits
    steps = (vectors.max(axis=0) - vectors.min(axis=0)) / (2**bits - 1)
    assert (np.abs(code.apply(vectors, "gallery") - vectors) <= 1.01 * steps).all()


def test_half_precision_is_that_of_faiss_and_never_infinite() -> None:
    vectors = clustered(300, 7)
    oracle = faiss.index_factory(7, "SQfp16")
    oracle.train(vectors)
    code = HalfPrecision().fit(vectors[:0])
    np.testing.assert_array_equal(code.apply(vectors, "gallery"), oracle.sa_decode(oracle.sa_encode(vectors)))
    assert code.apply(np.array([[1e6, -1e6]], np.float32), "gallery").tolist() == [[65504, -65504]]


def test_codes_depend_on_the_seed_alone() -> None:
    vectors = clustered(300, 8)
    for step in (ProductQuantization(4, 4), Itq(8)):
        first, again, other = (step.fit(vectors, seed=seed).apply(vectors, "gallery") for seed in (0, 0, 7))
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()
