"""From labels to relevant and ignored lists, checked against a naive double loop."""

from pathlib import Path

import numpy as np
import pytest

from ssl_retrieval.data.base import DataConfig, check, existing_folder, one_of
from ssl_retrieval.data.tasks import NO_GROUP, first_per_class, labelled, require_positives, task_from_groups
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import ImageSet, Protocol

ROOT = Path("/photos")


@pytest.mark.parametrize("self_match", ["ignored", "counted"])
def test_task_from_groups_equals_a_double_loop(self_match: str) -> None:
    rng = np.random.default_rng(0)
    gallery = ImageSet(ROOT, tuple(f"{i}.jpg" for i in range(40)))
    gallery_groups = rng.integers(NO_GROUP, 6, size=40)
    in_gallery = rng.permutation(40)[:15]
    query_paths = [gallery.paths[i] for i in in_gallery] + [f"new{i}.jpg" for i in range(5)]
    query_groups = np.append(gallery_groups[in_gallery], rng.integers(NO_GROUP, 8, size=5))
    task = task_from_groups(
        name="t",
        level="instance",
        queries=ImageSet(ROOT, tuple(query_paths)),
        gallery=gallery,
        query_groups=query_groups,
        gallery_groups=gallery_groups,
        protocol=Protocol(self_match=self_match),
    )
    for q, path in enumerate(query_paths):
        relevant, ignored = [], []
        for g, other in enumerate(gallery.paths):
            if path == other and self_match == "ignored":
                ignored.append(g)
            elif query_groups[q] == gallery_groups[g] and query_groups[q] != NO_GROUP:
                relevant.append(g)
        assert task.relevant[q].tolist() == relevant
        assert task.ignored[q].tolist() == ignored


def test_unlabelled_images_make_a_task_that_cannot_be_scored() -> None:
    images = ImageSet(ROOT, ("a.jpg", "b.jpg"))
    task = task_from_groups(name="t", level="category", queries=images, gallery=images)
    assert [i.tolist() for i in task.ignored] == [[0], [1]]
    with pytest.raises(UserError, match=r"no query of task 't' has a positive.*subfolders as classes"):
        require_positives(task)


def test_one_positive_is_enough() -> None:
    images = labelled(ROOT, ["a", "b", "c"], ["cat", "cat", "dog"])
    task = task_from_groups(name="t", level="category", queries=images, gallery=images)
    require_positives(task)
    assert task.num_queries_with_positives == 2


def test_first_per_class_keeps_the_order() -> None:
    images = labelled(ROOT, list("abcdef"), ["x", "y", "x", "x", "y", "z"])
    assert first_per_class(images, 2).paths == ("a", "b", "c", "e", "f")
    assert first_per_class(images, None) is images
    with pytest.raises(UserError, match="no labels"):
        first_per_class(ImageSet(ROOT, ("a",)), 2)


def test_check_refuses_an_unknown_error_rule() -> None:
    check(DataConfig(on_error="fail"))
    with pytest.raises(UserError, match=r"data\.on_error='skp': .*did you mean 'skip'"):
        check(DataConfig(on_error="skp"))


def test_one_of_without_anything_near() -> None:
    with pytest.raises(UserError, match=r"use one of train, test$"):
        one_of("data.split", "q", ("train", "test"))


def test_existing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photos").mkdir()
    (tmp_path / "a.zip").touch()
    assert existing_folder("data.root", "~/photos") == tmp_path / "photos"
    for value, message in (
        ("???", "not set"),
        ("", "not set"),
        ("~/b", "does not exist"),
        ("~/a.zip", "file"),
    ):
        with pytest.raises(UserError, match=message):
            existing_folder("data.root", value)
