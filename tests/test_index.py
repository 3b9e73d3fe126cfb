"""Approximate search against brute force."""

from pathlib import Path

import faiss
import numpy as np
import pytest

from ssl_retrieval import index as module
from ssl_retrieval.errors import UserError
from ssl_retrieval.index import BuiltIndex, build, empty, search, threads
from ssl_retrieval.index_syntax import IndexSpec, parse
from ssl_retrieval.postprocess import l2_normalize
from ssl_retrieval.types import Ranking, VectorArray

DIM = 32


def clustered(num: int, seed: int = 0) -> VectorArray:
    """Vectors around 40 centres, of different lengths."""
    centres = np.random.default_rng(99).standard_normal((40, DIM))
    rng = np.random.default_rng(seed)
    vectors = centres[rng.integers(40, size=num)] + 0.5 * rng.standard_normal((num, DIM))
    return (vectors * rng.uniform(0.5, 20, (num, 1))).astype(np.float32)


def brute_force(queries: VectorArray, vectors: VectorArray, k: int) -> list[list[int]]:
    cosines = queries.astype(np.float64) @ l2_normalize(vectors).astype(np.float64).T
    return [np.argsort(-row, kind="stable")[:k].tolist() for row in cosines]


def share_found(found: Ranking, wanted: list[list[int]]) -> float:
    return float(
        np.mean([len(set(a.tolist()) & set(b)) / len(b) for a, b in zip(found.indices, wanted, strict=True)])
    )


@pytest.fixture(scope="module")
def vectors() -> VectorArray:
    return clustered(1500)


@pytest.fixture(scope="module")
def queries() -> VectorArray:
    return l2_normalize(clustered(60, seed=1))


def made(text: str, vectors: VectorArray) -> tuple[BuiltIndex, IndexSpec]:
    spec = parse(text)
    return build(spec, vectors), spec


@pytest.mark.parametrize(
    ("text", "least"),
    [
        ("Flat", 1.0),
        ("SQ8", 0.95),
        ("HNSW16 efSearch=64", 0.98),
        ("IVF16,Flat nprobe=16", 1.0),
        ("IVF16,Flat nprobe=4", 0.95),
        ("PQ16x4", 0.45),
        ("OPQ8,PQ8x4", 0.35),
        ("RaBitQ", 0.4),
        ("IVF16,RaBitQ nprobe=8", 0.45),
        ("HNSW16_PQ16", 0.8),
        ("LSH", 0.35),
        ("PQ16x4fs,RFlat k_factor_rf=8", 0.98),
        ("RaBitQ rescore=20", 0.98),
        ("LSH rescore=40", 0.98),
    ],
)
def test_what_brute_force_finds_is_found(
    text: str, least: float, vectors: VectorArray, queries: VectorArray
) -> None:
    built, spec = made(text, vectors)
    found = search(built, spec, queries, 10, vectors=vectors)
    assert share_found(found, brute_force(queries, vectors, 10)) >= least
    assert all(len(set(row)) == 10 for row in found.indices.tolist())


def test_rows_are_those_of_the_gallery_whatever_the_blocks(
    vectors: VectorArray, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", 4 * DIM * 97)
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    built, spec = made("HNSW16 efSearch=100", mapped)
    found = search(built, spec, l2_normalize(vectors), 1)
    assert (found.indices[:, 0] == np.arange(len(vectors))).mean() > 0.995
    assert found.scores[:, 0] == pytest.approx(1, abs=1e-5)


def test_rescored_scores_are_cosines_in_order(vectors: VectorArray, queries: VectorArray) -> None:
    built, spec = made("LSH rescore=3", vectors)
    found = search(built, spec, queries, 5, vectors=vectors)
    cosines = queries @ l2_normalize(vectors).T
    assert found.scores == pytest.approx(np.take_along_axis(cosines, found.indices, axis=1), abs=1e-5)


def test_ignored_rows_do_not_appear_and_others_take_their_place(
    vectors: VectorArray, queries: VectorArray
) -> None:
    built, spec = made("Flat", vectors)
    wanted = brute_force(queries, vectors, 8)
    ignored = [np.array(rows[:3] if place % 2 else rows[:1], np.int64) for place, rows in enumerate(wanted)]
    found = search(built, spec, queries, 5, ignored)
    for place, row in enumerate(found.indices.tolist()):
        assert row == wanted[place][3:8] if place % 2 else row == wanted[place][1:6]


def test_equal_scores_are_ordered_by_row() -> None:
    same = np.ones((6, 4), np.float32)
    built, spec = made("Flat", same)
    assert search(built, spec, l2_normalize(same[:1]), 6).indices.tolist() == [[0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("text", ["Flat", "HNSW16", "RaBitQ rescore=3"])
def test_more_results_than_images_are_padded(text: str, queries: VectorArray) -> None:
    few = clustered(7)
    built, spec = made(text, few)
    found = search(built, spec, queries[:2], 10, ignored=[np.array([0]), np.array([], np.int64)], vectors=few)
    assert (found.indices >= 0).sum(axis=1).tolist() == [6, 7]
    assert (found.scores[found.indices < 0] == -np.inf).all()


@pytest.mark.parametrize("text", ["HNSW16", "IVF16,PQ8x4", "OPQ8,PQ8x4", "RR32,RaBitQ"])
def test_with_one_thread_the_same_index_comes_out(text: str, vectors: VectorArray) -> None:
    with threads(1):
        one, other = (faiss.serialize_index(build(parse(text), vectors).index) for _ in range(2))
    assert (one == other).all()


def test_training_sees_a_bounded_sample(vectors: VectorArray, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = faiss.IndexIVFFlat.train

    def train(self: faiss.IndexIVFFlat, rows: VectorArray) -> None:
        seen.append(len(rows))
        original(self, rows)

    monkeypatch.setattr(faiss.IndexIVFFlat, "train", train)
    built = build(parse("IVF4,Flat"), vectors, train_images=200)
    assert seen == [200]
    assert built.index.ntotal == len(vectors)


def test_bytes_are_those_of_the_file_and_only_images_grow(vectors: VectorArray, tmp_path: Path) -> None:
    built, _ = made("IVF16,PQ8x4", vectors)
    faiss.write_index(built.index, str(tmp_path / "a.faiss"))
    assert built.num_bytes == (tmp_path / "a.faiss").stat().st_size
    assert built.bytes_at(len(vectors)) == pytest.approx(built.num_bytes)
    twice, _ = made("IVF16,PQ8x4", np.concatenate([vectors, vectors]))
    assert built.bytes_at(2 * len(vectors)) == pytest.approx(twice.num_bytes, rel=0.01)


def test_few_images_leave_a_note_and_nothing_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    built, _ = made("IVF16,PQ8x4", clustered(100))
    assert built.notes == ("16 centroids were learned from 100 images; 624 or more are advised",)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "text", ["IVF16,Flat", "PQ8", "IVF16,PQ8x4", "HNSW16_PQ8", "PQ8x4,RFlat", "OPQ8,PQ8x4"]
)
def test_too_few_images_to_train_on_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(
        UserError, match=r"^index .*: \d+ centroids cannot be learned from 12 images: use fewer"
    ) as e:
        build(parse(text), clustered(12))
    assert len(str(e.value).splitlines()) == 1


def test_opq_with_fewer_images_than_dimensions_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(
        UserError, match="OPQ needs at least as many images as the 400 dimensions, there are 300"
    ):
        build(parse("OPQ4,PQ4x4"), rng.standard_normal((300, 400)).astype(np.float32))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Foo", "faiss makes no 'Foo' of 32 dimensions"),
        ("PQ7", "should be a multiple"),
        ("IVF16", "faiss makes no"),
        ("IVF99999999999,Flat", "faiss makes no"),
        ("IDMap,Flat", "leave IDMap out"),
        ("Flat nprobe=3", "Flat has no setting 'nprobe'"),
        ("IVF16,Flat efSearch=3", "has no setting 'efSearch'"),
        ("IVF16,Flat efConstruction=3", "has no setting 'efConstruction'"),
    ],
)
def test_a_wrong_index_is_one_line(text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        empty(parse(text), DIM)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert words in message
    assert "/project/" not in message


def test_other_dimensions_and_no_results_are_refused(vectors: VectorArray) -> None:
    built, spec = made("Flat", vectors)
    with pytest.raises(UserError, match=r"queries have 5 dimensions, the index 'Flat' has 32"):
        search(built, spec, np.ones((1, 5), np.float32), 3)
    with pytest.raises(UserError, match="k=0"):
        search(built, spec, vectors[:1], 0)


def test_nothing_to_index_is_refused() -> None:
    with pytest.raises(UserError, match="no images"):
        build(parse("Flat"), np.empty((0, 4), np.float32))


def test_threads_are_given_back() -> None:
    before = faiss.omp_get_max_threads()
    with threads(before + 1):
        assert faiss.omp_get_max_threads() == before + 1
    assert faiss.omp_get_max_threads() == before
