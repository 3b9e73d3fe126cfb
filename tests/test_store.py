"""Each image is embedded once per extractor, whatever lists and tasks it stands in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up_photos import write_flat_photos

from ssl_retrieval import store as store_module
from ssl_retrieval.embed import EmbedOptions, embed
from ssl_retrieval.errors import UserError
from ssl_retrieval.extractors import pixels
from ssl_retrieval.representation import Representation
from ssl_retrieval.store import Shelf, Store, without
from ssl_retrieval.types import ImageSet, Protocol, Task


@pytest.fixture
def photos(tmp_path: Path) -> ImageSet:
    root = write_flat_photos(tmp_path / "photos", 6)
    return ImageSet(root, tuple(sorted(file.name for file in root.iterdir())))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the lists that were really embedded."""
    lengths: list[int] = []

    def counting(representation: Any, image_set: ImageSet, *args: Any, **options: Any) -> Any:
        lengths.append(len(image_set))
        return embed(representation, image_set, *args, **options)

    monkeypatch.setattr(store_module, "embed", counting)
    return lengths


def some(photos: ImageSet, *numbers: int) -> ImageSet:
    return photos.take(np.array(numbers, np.int64))


def store_of(photos: ImageSet, cache: Path, shelf: Shelf | None = None, **options: Any) -> Store:
    nothing = (np.empty(0, np.int64),) * len(photos)
    task = Task("made-up", "instance", photos, photos, nothing, nothing, Protocol())
    return Store(task, cache, shelf=shelf or Shelf(), **options)


def small_pixels(size: int = 4) -> Representation:
    return Representation.make("pixels", pixels.Config(size=size), torch.device("cpu"))


def test_an_overlapping_list_embeds_only_what_is_new(
    photos: ImageSet, tmp_path: Path, counted: list[int]
) -> None:
    store = store_of(photos, tmp_path / "cache")
    store.vectors(small_pixels(), some(photos, 0, 1, 2, 3))
    mixed = store.vectors(small_pixels(), some(photos, 5, 2, 0))
    whole = embed(small_pixels(), some(photos, 5, 2, 0), tmp_path / "alone", options=EmbedOptions())
    assert counted == [4, 1]
    assert mixed.ids == whole.ids
    assert np.array_equal(mixed.vectors, whole.vectors)
    assert mixed.key == whole.key


def test_tasks_share_a_shelf_and_folders_with_other_roots(
    photos: ImageSet, tmp_path: Path, counted: list[int]
) -> None:
    shelf = Shelf()
    store_of(photos, tmp_path / "cache", shelf).vectors(small_pixels(), photos)
    above = ImageSet(photos.root.parent, tuple(f"photos/{path}" for path in photos.paths))
    again = store_of(above, tmp_path / "cache", shelf).vectors(small_pixels(), above)
    assert counted == [6]
    assert again.ids == above.paths


def test_another_extractor_starts_anew(photos: ImageSet, tmp_path: Path, counted: list[int]) -> None:
    store = store_of(photos, tmp_path / "cache")
    store.vectors(small_pixels(4), photos)
    store_of(photos, tmp_path / "cache", store.shelf).vectors(small_pixels(5), photos)
    assert counted == [6, 6]


def test_a_broken_image_is_known_as_such(photos: ImageSet, tmp_path: Path, counted: list[int]) -> None:
    photos.file(2).write_bytes(b"")
    store = store_of(photos, tmp_path / "cache")
    store.vectors(small_pixels(), some(photos, 1, 2))
    found = store.vectors(small_pixels(), some(photos, 1, 2, 3))
    assert found.ids == (photos.paths[1], photos.paths[3])
    assert found.skipped == ((photos.paths[2], "empty file (0 bytes)"),)
    assert counted == [2, 1]


def test_a_rest_that_is_all_broken_leaves_the_others(photos: ImageSet, tmp_path: Path) -> None:
    photos.file(2).write_bytes(b"")
    store = store_of(photos, tmp_path / "cache")
    store.vectors(small_pixels(), some(photos, 0, 1))
    assert len(store.vectors(small_pixels(), some(photos, 0, 1, 2)).ids) == 2


def test_nothing_readable_is_refused(photos: ImageSet, tmp_path: Path) -> None:
    photos.file(2).write_bytes(b"")
    store = store_of(photos, tmp_path / "cache")
    store.vectors(small_pixels(), some(photos, 2, 3))
    with pytest.raises(UserError, match="none of the 1 images"):
        store.vectors(small_pixels(), some(photos, 2))


def test_images_with_boxes_are_never_taken_for_whole_ones(
    photos: ImageSet, tmp_path: Path, counted: list[int]
) -> None:
    store = store_of(photos, tmp_path / "cache")
    whole = store.vectors(small_pixels(), some(photos, 0))
    boxes = np.array([[0, 0, 9, 9]], np.float32)
    cut = store.vectors(small_pixels(), ImageSet(photos.root, photos.paths[:1], boxes=boxes))
    again = store.vectors(small_pixels(), some(photos, 0, 1))
    assert counted == [1, 1, 1]
    assert not np.array_equal(whole.vectors, cut.vectors)
    assert np.array_equal(again.vectors[0], whole.vectors[0])


def test_a_list_of_which_nothing_is_known_stays_itself(photos: ImageSet) -> None:
    assert without(photos, {}) is photos
