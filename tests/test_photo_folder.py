"""What lies in a folder of photos: distinct ones, copies, broken ones."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from made_up_photos import photo, write_flat_photos
from PIL import Image

from ssl_retrieval.adaptation import photo_folder
from ssl_retrieval.errors import UserError


def textured(seed: int, size: tuple[int, int] = (80, 60)) -> Image.Image:
    """A picture of a few large patches, which survives recompression as photos do."""
    patches = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC)


def test_different_photos_all_count(photos: Path) -> None:
    looked = photo_folder.look(photos)
    assert len(looked.images) == len(looked.distinct) == looked.num_drawn == 40
    assert looked.groups == ()
    assert looked.short_sides == (30,) * 40
    assert "40 image files." in looked.in_words()[0]


def test_of_copies_the_first_stays(tmp_path: Path) -> None:
    for i in range(5):
        textured(i).save(tmp_path / f"{i}.png")
    for i in (7, 8):
        shutil.copy(tmp_path / "1.png", tmp_path / f"{i}.png")
    textured(3, (160, 120)).save(tmp_path / "9.jpg", quality=70)
    looked = photo_folder.look(tmp_path)
    assert looked.distinct.paths == tuple(f"{i}.png" for i in range(5))
    assert looked.groups == (3, 2)
    assert looked.num_copies == 3
    assert any("3 are copies" in said and "has 3" in said for said in looked.in_words())


def test_broken_files_are_no_copies_of_each_other(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(bytes([i]) * 30)
    looked = photo_folder.look(tmp_path)
    assert len(looked.distinct) == 3
    assert looked.short_sides == ()


def test_too_many_look_alike_leave_only_the_same_bytes_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(4):
        textured(0, (80 + i, 60)).save(tmp_path / f"{i}.png")
    shutil.copy(tmp_path / "0.png", tmp_path / "4.png")
    monkeypatch.setattr("ssl_retrieval.perceptual_hash.MAX_PAIRS", 2)
    assert len(photo_folder.look(tmp_path).distinct) == 4


def test_a_large_folder_is_drawn_from_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photo_folder, "MOST_PHOTOS", 4)
    write_flat_photos(tmp_path / "many", 10)
    looked = photo_folder.look(tmp_path / "many")
    assert len(looked.images) == 10
    assert looked.distinct.paths == ("0.png", "3.png", "6.png", "9.png")
    assert "4 of them" in looked.in_words()[1]


def test_the_key_follows_names_and_contents(tmp_path: Path) -> None:
    write_flat_photos(tmp_path / "a", 3)
    key = photo_folder.look(tmp_path / "a").key
    assert photo_folder.look(tmp_path / "a").key == key
    photo((1, 2, 3), seed=99).save(tmp_path / "a" / "1.png")
    assert photo_folder.look(tmp_path / "a").key != key


def test_other_files_and_subfolders(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "film.mp4").write_bytes(b"film")
    (tmp_path / "notes.txt").write_text("notes")
    textured(1).save(tmp_path / "deep" / "er" / "a.png")
    assert photo_folder.look(tmp_path).images.paths == ("deep/er/a.png",)


@pytest.mark.parametrize("what", ["missing", "empty", "file"])
def test_no_folder_of_photos(tmp_path: Path, what: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("a")
    with pytest.raises(UserError, match=what):
        photo_folder.look(tmp_path / what)
