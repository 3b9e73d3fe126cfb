"""Some classes of a dataset: which images and queries are left, and that ranges share none."""

from pathlib import Path
from typing import Any

import look_alike_classes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl_retrieval import config, plugins
from ssl_retrieval.data import some_classes
from ssl_retrieval.data.tasks import class_range
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import Task


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four classes, three photos each, queries and gallery apart."""
    for split in ("train", "test"):
        for label in "abcd":
            for i in range(3):
                file = tmp_path / "photos" / split / label / f"{i}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
    return tmp_path / "photos"


def section(root: Path, **options: Any) -> Any:
    of = {"name": "folder", "root": str(root), "queries": "test", "gallery": "train"}
    return config.plugin_config("dataset", {"name": "some_classes", "of": of} | options, "data")


def classes(paths: tuple[str, ...]) -> set[str]:
    return {path.split("/")[-2] for path in paths}


@given(st.integers(2, 300), st.floats(0.01, 0.99))
def test_ranges_that_meet_share_no_class_and_leave_none_out(num_classes: int, where: float) -> None:
    middle = round(where * num_classes)
    if 0 < middle < num_classes:
        assert class_range(num_classes, 0, where) == (0, middle)
        assert class_range(num_classes, where, 1) == (middle, num_classes)


def test_training_and_test_share_no_class(photos: Path) -> None:
    train, test = section(photos, end=0.5), section(photos, begin=0.5)
    images, task = some_classes.images(train), some_classes.load(test)
    assert classes(images.paths) == {"a", "b"}
    assert classes(task.queries.paths) == classes(task.gallery.paths) == {"c", "d"}
    assert (len(task.queries), len(task.gallery)) == (6, 6)
    assert "classes-3-to-4" in task.name
    assert task.queries.labels is not None
    assert task.gallery.labels is not None
    for query, relevant in enumerate(task.relevant):
        assert len(relevant) == 3
        assert (task.gallery.labels[relevant] == task.queries.labels[query]).all()


def test_post_processing_is_fitted_on_other_classes(tmp_path: Path) -> None:
    root = look_alike_classes.cub200(tmp_path / "birds")
    whole: Task = plugins.find("dataset", "cub200").load(
        config.plugin_config("dataset", {"name": "cub200", "root": str(root), "split": "official"}, "data")
    )
    of = {"name": "cub200", "root": str(root), "split": "official"}
    tree = {"name": "some_classes", "of": of, "begin": 0.5}
    task = some_classes.load(config.plugin_config("dataset", tree, "data"))
    assert whole.fit is not None
    assert task.fit is not None
    assert task.gallery.labels is not None
    assert task.fit.labels is not None
    assert not np.intersect1d(task.fit.labels, task.gallery.labels).size
    assert 0 < len(task.fit) < len(whole.fit)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"begin": 0.5, "end": 0.5}, "shares with 0 <= begin < end <= 1"),
        ({"end": 1.5}, "data.begin=0.0, end=1.5"),
        ({"begin": 0.0, "end": 0.1}, "no class of 4 lies between them"),
        ({"of": None}, "data.of: give the dataset"),
    ],
)
def test_a_mistake_is_one_line(photos: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        some_classes.images(section(photos, **options))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_classes_without_training_images_are_named(tmp_path: Path) -> None:
    of = {"name": "cub200", "root": str(look_alike_classes.cub200(tmp_path / "birds"))}
    with pytest.raises(UserError, match="name=cub200 has no training images of these classes"):
        some_classes.images(section(tmp_path, of=of, begin=0.5))


def test_images_without_labels_have_no_classes_to_choose(photos: Path) -> None:
    of = {"name": "folder", "root": str(photos), "labels": "none"}
    with pytest.raises(UserError, match="have no labels to choose classes by"):
        some_classes.images(section(photos, of=of, end=0.5))


def test_distractors_stay_and_photos_of_other_objects_go(tmp_path: Path) -> None:
    for name in [*(f"objects/ukbench{i:05d}.jpg" for i in range(16)), "others/x.jpg", "others/y.jpg"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    of = {"name": "ukbench", "root": str(tmp_path / "objects"), "distractors": str(tmp_path / "others")}
    tree = {"name": "some_classes", "of": of, "begin": 0.5}
    task = some_classes.load(config.plugin_config("dataset", tree, "data"))
    kept = tuple(f"objects/ukbench{i:05d}.jpg" for i in range(8, 16))
    assert task.queries.paths == kept
    assert task.gallery.paths == (*kept, "others/x.jpg", "others/y.jpg")
    assert [len(found) for found in task.relevant] == [3] * 8
    assert "3 to 4 of 4, and distractors" in task.description
