"""Near-duplicates of a folder: exact answers, the same on every run, and what a user may get wrong."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_retrieval.copy_transformations import TRANSFORMATIONS
from ssl_retrieval.data import copies, emoji
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import Task


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six photos in three folders, the last one a byte-for-byte double of the first."""
    for number in range(5):
        file = tmp_path / "photos" / f"album{number % 2}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(256, size=(6, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((64, 48)).save(file)
    shutil.copy(tmp_path / "photos/album0/0.png", tmp_path / "photos/double.png")
    return tmp_path / "photos"


def load(photos: Path, **options: object) -> Task:
    """Load with copies beside the photos."""
    made = {"root": str(photos), "copies": str(photos.parent / "made"), **options}
    return copies.load(copies.Config(**made))  # type: ignore[arg-type]


def test_every_copy_finds_its_own_original(photos: Path) -> None:
    task = load(photos)
    assert len(task.queries) == 6 * len(TRANSFORMATIONS)
    assert len(task.gallery) == 6
    for query, relevant in zip(task.queries.paths, task.relevant, strict=True):
        (index,) = relevant
        original = Path(task.gallery.paths[index]).relative_to("photos")
        altered = Path(*Path(query).relative_to("made").parts[1:])
        assert altered.parent == original.parent
        assert altered.name.rpartition("-")[0] == original.stem
    assert all(task.queries.file(i).exists() for i in range(len(task.queries)))
    assert all(task.gallery.file(i).exists() for i in range(len(task.gallery)))


def test_doubles_and_backgrounds_do_not_count(photos: Path) -> None:
    task = load(photos, transformations=["flip", "collage"])
    position = {Path(path).name: i for i, path in enumerate(task.gallery.paths)}
    doubles = {position["0.png"], position["double.png"]}
    num_backgrounds = 0
    for query, relevant, ignored in zip(task.queries.paths, task.relevant, task.ignored, strict=True):
        (original,) = relevant
        uncounted = doubles - {original} if original in doubles else set()
        backgrounds = set(ignored.tolist()) - uncounted
        assert uncounted <= set(ignored.tolist())
        if "collage-" not in query:
            assert not backgrounds
            continue
        num_backgrounds += len(backgrounds) > 0
        assert original not in backgrounds
        assert len(backgrounds) <= 1 or backgrounds == doubles
    assert num_backgrounds >= 4


def test_a_second_run_makes_the_same_bytes_or_none(photos: Path) -> None:
    first = load(photos)
    content = {path: first.queries.file(i).read_bytes() for i, path in enumerate(first.queries.paths)}
    times = [first.queries.file(i).stat().st_mtime_ns for i in range(len(first.queries))]
    again = load(photos)
    assert [again.queries.file(i).stat().st_mtime_ns for i in range(len(again.queries))] == times
    shutil.rmtree(photos.parent / "made")
    anew = load(photos)
    assert {path: anew.queries.file(i).read_bytes() for i, path in enumerate(anew.queries.paths)} == content


def test_copies_do_not_depend_on_what_else_is_made(photos: Path) -> None:
    whole = load(photos)
    some = load(photos, transformations=["text", "collage"], copies=str(photos.parent / "some"))
    names = {Path(path).name: whole.queries.file(i) for i, path in enumerate(whole.queries.paths)}
    for i, path in enumerate(some.queries.paths):
        assert names[Path(path).name].read_bytes() == some.queries.file(i).read_bytes()


def test_another_seed_or_a_changed_photo_makes_other_files(photos: Path) -> None:
    before = set(load(photos, transformations=["crop"]).queries.paths)
    assert not before & set(load(photos, transformations=["crop"], seed=1).queries.paths)
    Image.new("RGB", (50, 50), "red").save(photos / "album1/1.png")
    after = set(load(photos, transformations=["crop"]).queries.paths)
    assert len(before - after) == 1


def test_some_originals_are_drawn_and_all_are_searched(photos: Path) -> None:
    task = load(photos, num_originals=2, transformations=["jpeg:20"])
    assert (len(task.queries), len(task.gallery)) == (2, 6)
    assert task.name == "copies-jpeg-20"
    drawn = {tuple(load(photos, num_originals=2, seed=seed).relevant[0]) for seed in range(6)}
    assert len(drawn) > 1


def test_a_broken_photo_is_left_out_or_refused(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "album1/broken.jpg").write_bytes(b"no image")
    task = load(photos, transformations=["flip"])
    assert len(task.queries) == 6
    assert "broken.jpg: not an image" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"broken\.jpg"):
        load(photos, transformations=["flip"], on_error="fail")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"transformations": ["corp"]}, "unknown transformation 'corp'"),
        ({"transformations": ["crop:much"]}, "no number after the colon"),
        ({"transformations": ["crop:7"]}, "at most 1"),
        ({"transformations": []}, "is empty"),
        ({"transformations": ["crop", "crop"]}, "given twice"),
        ({"num_originals": 0}, "must be at least 1"),
        ({"copies": ""}, "data.copies is not set"),
    ],
)
def test_users_mistakes_are_named(photos: Path, options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load(photos, **options)


def test_copies_within_the_photos_are_refused(photos: Path) -> None:
    with pytest.raises(UserError, match=r"lies within data\.root"):
        load(photos, copies=str(photos / "made"))


def test_one_photo_is_no_search(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "only.png")
    with pytest.raises(UserError, match="one image"):
        copies.load(copies.Config(root=str(tmp_path), copies=str(tmp_path.parent / "made")))


def test_copies_of_another_datasets_training_images(tmp_path: Path) -> None:
    of = emoji.Config(split="test")
    made = copies.Config(
        root="", of=of, copies=str(tmp_path / "made"), num_originals=2, transformations=["crop"]
    )
    task = copies.load(made)
    photos = emoji.images(of)
    assert [task.gallery.file(i).resolve() for i in range(len(photos))] == [
        photos.file(i).resolve() for i in range(len(photos))
    ]
    assert task.gallery.labels is None
    assert len(task.queries) == 2
    for query, relevant in zip(task.queries.paths, task.relevant, strict=True):
        (original,) = relevant.tolist()
        assert Path(task.gallery.paths[original]).stem in query
