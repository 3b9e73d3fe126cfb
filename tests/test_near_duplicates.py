"""Copies among lists of images: planted ones, and against double loops."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_perceptual_hash import scene

from ssl_retrieval import near_duplicates, perceptual_hash
from ssl_retrieval.errors import UserError
from ssl_retrieval.near_duplicates import Pictures, find_pairs, within_cosine
from ssl_retrieval.postprocess import l2_normalize
from ssl_retrieval.types import ImageSet


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight scenes, copies of the first four, and a file that is no image, twice."""
    root = tmp_path_factory.mktemp("copies")
    for seed in range(8):
        scene(seed).save(root / f"{seed}.png")
    shutil.copy(root / "0.png", root / "same.png")
    scene(1).resize((80, 60), Image.Resampling.BICUBIC).save(root / "small.png")
    scene(2).save(root / "compressed.jpg", quality=20)
    flipped = scene(3).transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((300, 200), Image.Resampling.BICUBIC)
    flipped.save(root / "flipped.jpg", quality=40)
    for name in ("broken.png", "broken2.png"):
        (root / name).write_bytes(b"no image")
    return root


ORIGINALS = [f"{seed}.png" for seed in range(8)]
COPIES = ["same.png", "small.png", "compressed.jpg", "flipped.jpg"]


def pictures(root: Path, names: list[str]) -> Pictures:
    return Pictures.of(ImageSet(root, tuple(names)))


def test_planted_copies_are_found_and_nothing_else(folder: Path) -> None:
    first, second = pictures(folder, ORIGINALS), pictures(folder, [*COPIES[::-1], "broken.png"])
    pairs = find_pairs(first, second, max_hamming=8, min_cosine=0.9)
    found = {
        (first.images.paths[i], second.images.paths[j])
        for i, j in zip(pairs["first"], pairs["second"], strict=True)
    }
    assert found == set(zip(ORIGINALS[:4], COPIES, strict=True))
    by_second = pairs.set_index("second").to_dict()
    assert by_second["found_by"][3] == "content+hash"
    assert by_second["hamming"][3] == 0
    assert by_second["mirrored"] == {0: True, 1: False, 2: False, 3: False}
    assert pairs["same_content"].tolist() == [True, False, False, False]
    assert pairs["cosine"].isna().all()


def test_a_list_in_itself_gives_each_pair_once(folder: Path) -> None:
    every = pictures(folder, [*ORIGINALS, *COPIES, "broken.png", "broken2.png"])
    pairs = find_pairs(every, every, max_hamming=8, min_cosine=0.9)
    found = set(zip(pairs["first"], pairs["second"], strict=True))
    # Broken files are no pictures, and copies all the same.
    assert found == {(0, 8), (1, 9), (2, 10), (3, 11), (12, 13)}
    later = near_duplicates.later_copies(pairs, len(every.images))
    assert later.tolist() == [8, 9, 10, 11, 13]


def test_the_same_file_in_both_lists_is_no_pair(folder: Path) -> None:
    link = folder.parent / "linked"
    link.symlink_to(folder)
    pairs = find_pairs(pictures(folder, ["0.png", "1.png"]), pictures(link, ["1.png", "same.png"]), 8, 0.9)
    assert list(zip(pairs["first"], pairs["second"], strict=True)) == [(0, 1)]
    link.unlink()


def test_vectors_find_what_hashes_do_not(folder: Path) -> None:
    first, second = pictures(folder, ORIGINALS[:2]), pictures(folder, ORIGINALS[4:6])
    vectors = l2_normalize(np.array([[1, 0, 0], [0, 1, 0], [3, 1, 0], [0, 0, 1]], np.float32))
    first = Pictures(first.images, first.digests, first.hashes, vectors[:2])
    second = Pictures(second.images, second.digests, second.hashes, vectors[2:])
    pairs = find_pairs(first, second, max_hamming=4, min_cosine=0.9)
    assert pairs[["first", "second", "found_by"]].to_numpy().tolist() == [[0, 0, "embedding"]]
    assert pairs["cosine"][0] == pytest.approx(3 / np.sqrt(10))
    assert pairs["hamming"][0] > 4


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 30), st.integers(1, 90), st.sampled_from([0.3, 0.8, 0.99]), st.integers(0, 999))
def test_the_search_by_cosine_finds_what_a_double_loop_finds(q: int, n: int, least: float, seed: int) -> None:
    draw = np.random.default_rng(seed)
    # Few different directions, so that lists of copies are longer than the first search.
    first, second = (l2_normalize(draw.integers(-1, 2, (count, 3)).astype(np.float32)) for count in (q, n))
    wanted = {(i, j) for i in range(q) for j in range(n) if float(first[i] @ second[j]) >= least}
    left, right = within_cosine(first, second, least)
    assert len(left) == len(wanted)
    assert set(zip(left.tolist(), right.tolist(), strict=True)) == wanted


@pytest.mark.parametrize("least", [0.0, -0.5, 1.5, float("nan")])
def test_a_cosine_out_of_range_is_refused(folder: Path, least: float) -> None:
    one = pictures(folder, ORIGINALS)
    with pytest.raises(UserError, match=f"min_cosine={least}: .*e.g. 0.95"):
        find_pairs(one, one, 8, least)


def test_too_many_pairs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptual_hash, "MAX_PAIRS", 5)
    vectors = np.ones((9, 1), np.float32)
    with pytest.raises(UserError, match=r"more than 5 pairs pass min_cosine=0\.5"):
        within_cosine(vectors, vectors, 0.5)
    with pytest.raises(UserError, match="more than 5 pairs pass equality of content"):
        near_duplicates.same_content(["a"] * 3, ["a"] * 3)
