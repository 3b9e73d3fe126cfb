"""What a comparison says about the time it takes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from made_up_photos import write_flat_photos
from PIL import Image
from tiny_extractors import LearnerConfig, make

from ssl_retrieval import pace as pace_module
from ssl_retrieval.errors import UserError
from ssl_retrieval.extractors import pixels, timm_model
from ssl_retrieval.pace import Pace, in_words
from ssl_retrieval.representation import Representation
from ssl_retrieval.store import Store
from ssl_retrieval.types import ImageSet, Protocol, Task


@pytest.fixture
def photos(tmp_path: Path) -> ImageSet:
    root = write_flat_photos(tmp_path / "photos", 12)
    return ImageSet(root, tuple(f"{number}.png" for number in range(12)))


@pytest.fixture
def one_second(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let every image take a second; gives the labels that were tried."""
    tried: list[str] = []

    def second(representation: Representation, image_set: ImageSet, store: Store) -> float:
        tried.append(representation.label)
        return 1.0

    monkeypatch.setattr(pace_module, "_seconds_per_image", second)
    return tried


def some(photos: ImageSet, *numbers: int) -> ImageSet:
    return photos.take(np.array(numbers, np.int64))


def store_of(
    tmp_path: Path,
    queries: ImageSet,
    gallery: ImageSet,
    fit: ImageSet | None = None,
    protocol: Protocol | None = None,
) -> Store:
    nothing = (np.empty(0, np.int64),) * len(queries)
    task = Task("made-up", "instance", queries, gallery, nothing, nothing, protocol or Protocol(), fit)
    return Store(task, tmp_path / "cache")


def small_pixels(label: str = "pixels") -> Representation:
    return Representation.make(label, pixels.Config(size=2), torch.device("cpu"))


def seconds(
    models: list[Representation], stores: list[Store], fitted_on: set[str] | None = None
) -> list[float]:
    expected = Pace.measured(models, stores, fitted_on or set(), 0).expected
    return [expected[model.label] for model in models]


def test_every_image_counts_once(photos: ImageSet, tmp_path: Path, one_second: list[str]) -> None:
    overlapping = store_of(tmp_path, some(photos, 0, 1, 2), some(photos, 1, 2, 3, 4))
    whole = store_of(tmp_path, photos, photos)
    assert seconds([small_pixels()], [overlapping]) == [5]
    assert seconds([small_pixels()], [overlapping, whole]) == [12]
    assert seconds([small_pixels("a"), small_pixels("b")], [whole]) == [12, 12]


def test_what_is_stored_costs_nothing(photos: ImageSet, tmp_path: Path, one_second: list[str]) -> None:
    lists = some(photos, 0, 1, 2), some(photos, 1, 2, 3, 4)
    store = store_of(tmp_path, *lists)
    store.vectors(small_pixels(), lists[0])
    assert seconds([small_pixels()], [store_of(tmp_path, *lists)]) == [2]
    store.vectors(small_pixels(), lists[1])
    one_second.clear()
    assert seconds([small_pixels()], [store_of(tmp_path, *lists)]) == [0]
    assert one_second == [], "what has nothing to embed is not even tried"


def test_images_to_fit_on_count_where_something_is_fitted(
    photos: ImageSet, tmp_path: Path, one_second: list[str]
) -> None:
    store = store_of(tmp_path, some(photos, 0), some(photos, 1, 2), fit=some(photos, 2, 3, 4, 5))
    models = [small_pixels("plain"), small_pixels("whitened")]
    assert seconds(models, [store], {"whitened", "whitened 2"}) == [3, 6]
    without = store_of(tmp_path, some(photos, 0), some(photos, 1, 2))
    assert seconds(models, [without], {"whitened"}) == [3, 3]


def test_learning_counts_until_it_is_done(photos: ImageSet, tmp_path: Path, one_second: list[str]) -> None:
    lists = some(photos, 0), some(photos, 1, 2)
    store = store_of(tmp_path, *lists, fit=some(photos, 2, 3, 4, 5))
    learner = make("words", LearnerConfig())
    assert seconds([learner], [store]) == [4 + 3]
    assert seconds([learner], [store, store]) == [4 + 3], "tasks share the lesson"
    store.teach(learner)
    assert seconds([learner], [store]) == [3]
    assert seconds([learner], [store_of(tmp_path, *lists)]) == [0], "it will be left out"


def test_parts_of_images_count_for_themselves(
    photos: ImageSet, tmp_path: Path, one_second: list[str]
) -> None:
    boxes = np.tile(np.array([0, 0, 9, 9], np.float32), (2, 1))
    cut = ImageSet(photos.root, photos.paths[:2], boxes=boxes)
    assert seconds([small_pixels()], [store_of(tmp_path, cut, some(photos, 0, 1, 2))]) == [5]
    assert seconds([small_pixels()], [store_of(tmp_path, some(photos, 0, 1), cut)]) == [4]


def test_it_says_what_it_will_do(
    photos: ImageSet, tmp_path: Path, one_second: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    stores = [store_of(tmp_path, some(photos, 0), some(photos, 1, 2)), store_of(tmp_path, photos, photos)]
    pace = Pace.measured([small_pixels("a"), small_pixels("b")], stores, set(), num_derived=3)
    first = "5 representations on 2 task(s) with 12 gallery images; embedding takes about 24 s\n"
    assert capsys.readouterr().err == first
    pace.announce("a")
    pace.finished("a")
    pace.announce("b")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["[1/5] a: about 24 s to go in all", "[2/5] b: about 12 s to go in all"]


def test_those_that_are_finished_correct_the_rest() -> None:
    pace = Pace({"a": 10.0, "b": 20.0, "c": 0.5, "d": 0.0}, 5)
    assert pace.left() == 30.5
    pace.taken["c"] = 5.5
    assert pace.left() == 30 + 4 * 5
    pace.taken["a"] = 17.0
    assert pace.left() == 20 + 3 * 6
    pace.taken["d"] = 1.0
    assert pace.left() == 20 + 2 * 5, "one that took little else does not make the rest quick"
    pace.taken["derived"] = 5.0
    pace.taken["b"] = 60.0
    assert pace.left() == 0.0


def test_what_went_faster_than_expected_takes_nothing_from_the_rest() -> None:
    pace = Pace({"a": 10.0, "b": 20.0}, 2, taken={"a": 4.0})
    assert pace.left() == 20.0


def test_a_trial_takes_time_whatever_is_tried(photos: ImageSet, tmp_path: Path) -> None:
    photos.file(0).write_bytes(b"")
    cfg = timm_model.Config(name="resnet10t", weights="random", image_size=32)
    network = Representation.make("network", cfg, torch.device("cpu"))
    store = store_of(tmp_path, some(photos, 0, 1), photos, fit=some(photos, 3, 4, 5))
    for representation in (small_pixels(), make("words", LearnerConfig()), network):
        assert seconds([representation], [store])[0] > 0


def test_a_trial_is_made_of_what_is_embedded(
    photos: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    representation = small_pixels()
    sizes: list[tuple[int, int]] = []
    preprocess = representation.extractor.preprocess

    def looking(image: Image.Image) -> torch.Tensor:
        sizes.append(image.size)
        return preprocess(image)

    monkeypatch.setattr(representation.extractor, "preprocess", looking)
    seconds([representation], [store_of(tmp_path, photos, photos, protocol=Protocol(image_size=15))])
    assert sizes == [(20, 15)] * 16, "eight images, twice"


def test_a_trial_goes_past_images_that_cannot_be_read(photos: ImageSet, tmp_path: Path) -> None:
    for number in range(11):
        photos.file(number).write_bytes(b"")
    assert seconds([small_pixels()], [store_of(tmp_path, photos, photos)])[0] > 0
    photos.file(11).unlink()
    with pytest.raises(UserError, match=r"none of the 12 images .*'0\.png': empty file") as caught:
        seconds([small_pixels()], [store_of(tmp_path, photos, photos)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("duration", "words"),
    [(0.2, "0 s"), (89, "89 s"), (90, "2 min"), (3569, "59 min"), (3571, "1 h 0 min"), (86400, "24 h 0 min")],
)
def test_durations_in_words(duration: float, words: str) -> None:
    assert in_words(duration) == words
