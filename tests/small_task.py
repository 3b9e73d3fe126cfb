"""A task of forty small pictures with images to fit on, and what its tests share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up_photos import COLOURS, write_photos
from PIL import Image

from ssl_retrieval import store as store_module
from ssl_retrieval.embed import embed
from ssl_retrieval.errors import UserError
from ssl_retrieval.extractors import color_histogram, pixels
from ssl_retrieval.features import Features
from ssl_retrieval.representation import Representation
from ssl_retrieval.store import Store
from ssl_retrieval.types import ImageSet, Protocol, Task, VectorArray

NUM_CLASSES, PER_CLASS = len(COLOURS), 9
CPU = torch.device("cpu")


def image_set(root: Path, numbers: range) -> ImageSet:
    names = tuple(COLOURS)
    paths = [f"{name}/{number}.png" for name in names for number in numbers]
    labels = np.repeat(np.arange(NUM_CLASSES), len(numbers))
    return ImageSet(root, tuple(paths), labels, names)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos", per_class=PER_CLASS)


@pytest.fixture
def task(root: Path) -> Task:
    """Two queries, three gallery images and four images to fit on of each class."""
    queries, gallery = image_set(root, range(2)), image_set(root, range(2, 5))
    assert queries.labels is not None
    assert gallery.labels is not None
    relevant = tuple(np.flatnonzero(gallery.labels == label) for label in queries.labels)
    nothing = (np.empty(0, np.int64),) * len(queries)
    fit = image_set(root, range(5, PER_CLASS))
    return Task("made-up", "category", queries, gallery, relevant, nothing, Protocol(), fit)


@pytest.fixture
def store(task: Task, tmp_path: Path) -> Store:
    return Store(task, tmp_path / "cache")


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Label and length of every list that was really embedded."""
    calls: list[tuple[str, int]] = []

    def counting(representation: Any, images: ImageSet, *args: Any, **options: Any) -> Any:
        calls.append((representation.label, len(images)))
        return embed(representation, images, *args, **options)

    monkeypatch.setattr(store_module, "embed", counting)
    return calls


def histogram(bins: int = 4) -> Representation:
    return Representation.make("histogram", color_histogram.Config(bins=bins), CPU)


def small_pixels() -> Representation:
    return Representation.make("pixels", pixels.Config(size=3), CPU)


def raw(representation: Representation, images: ImageSet) -> VectorArray:
    """Embed one by one, without any store."""
    vectors = []
    for number in range(len(images)):
        with Image.open(images.file(number)) as image:
            vectors.append(representation.extractor.preprocess(image.convert("RGB")).numpy())
    return np.stack(vectors)


def both(features: Features) -> tuple[VectorArray, VectorArray]:
    assert features.queries is not None
    assert features.gallery is not None
    return features.queries, features.gallery


def all_scores(features: Features) -> VectorArray:
    similarity = features.similarity
    return similarity.scores(slice(0, similarity.num_queries))


def message(action: Callable[[], object], kind: type[UserError] = UserError) -> str:
    with pytest.raises(kind) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)
