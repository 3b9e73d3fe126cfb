"""The central types refuse what does not fit, at birth."""

from pathlib import Path

import numpy as np
import pytest

from ssl_retrieval.errors import UserError
from ssl_retrieval.types import EmbeddingSet, ImageSet, Protocol, Ranking, Report, Task, digest_of

ROOT = Path("/photos")


def indices(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def small_task(**changes: object) -> Task:
    """Two queries that are in a gallery of three; 0 and 2 belong together."""
    images = ImageSet(ROOT, ("a.jpg", "b.jpg", "c.jpg"), indices(0, 1, 0), ("cat", "dog"))
    fields: dict = {
        "name": "small",
        "level": "category",
        "queries": images.take(indices(0, 1)),
        "gallery": images,
        "relevant": (indices(2), indices()),
        "ignored": (indices(0), indices(1)),
    }
    return Task(**(fields | changes))


def test_image_set_gives_files_and_parts() -> None:
    images = ImageSet(ROOT, ("a.jpg", "sub/b.jpg"), indices(0, 1), ("cat", "dog"))
    part = images.take(indices(1))
    assert len(images) == 2
    assert images.file(1) == Path("/photos/sub/b.jpg")
    assert part.paths == ("sub/b.jpg",)
    assert part.labels is not None
    assert part.labels.tolist() == [1]
    assert part.class_names == ("cat", "dog")
    assert ImageSet(ROOT, ("a.jpg",)).take(indices()).labels is None


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (("a.jpg", "b.jpg", "a.jpg"), "'a.jpg'"),
        (("/etc/a.jpg",), "leaves its root"),
        (("sub/../../a.jpg",), "leaves its root"),
    ],
)
def test_image_set_refuses_bad_ids(paths: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ImageSet(ROOT, paths)


@pytest.mark.parametrize("labels", [indices(0), indices(0, 2), indices(-1, 0), np.array([0, 1], np.int32)])
def test_image_set_refuses_labels_that_do_not_fit(labels: np.ndarray) -> None:
    with pytest.raises(AssertionError):
        ImageSet(ROOT, ("a.jpg", "b.jpg"), labels, ("cat", "dog"))


@pytest.mark.parametrize(
    "fields",
    [
        {"self_match": "dropped"},
        {"query_crop": "circle"},
        {"average_precision": "other"},
        {"ties": "random"},
        {"similarity": "l1"},
        {"junk": "kept"},
        {"image_size": 0},
    ],
)
def test_protocol_refuses_what_no_stage_implements(fields: dict) -> None:
    with pytest.raises(UserError, match=f"protocol.{next(iter(fields))}="):
        Protocol(**fields)


def test_protocol_hash_follows_every_field() -> None:
    hashes = {
        protocol.to_dict()["hash"]
        for protocol in (
            Protocol(),
            Protocol(image_size=224),
            Protocol(self_match="counted"),
            Protocol(scales=(1.0, 0.5)),
            Protocol(cutoff=100),
            Protocol(whitening="train"),
        )
    }
    assert len(hashes) == 6
    assert Protocol().to_dict()["hash"] == Protocol(image_size=None).to_dict()["hash"]


def test_task_counts_queries_with_positives() -> None:
    assert small_task().num_queries_with_positives == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"level": "object"}, "level must be instance or category"),
        ({"relevant": (indices(3), indices())}, "out of range 0..2"),
        ({"ignored": (indices(-1), indices())}, "out of range"),
        ({"relevant": (indices(0), indices())}, "both relevant and ignored"),
        ({"gallery": ImageSet(ROOT, ())}, "0 gallery images"),
        ({"queries": ImageSet(ROOT, ()), "relevant": (), "ignored": ()}, "0 queries"),
    ],
)
def test_task_refuses_lists_that_do_not_fit(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        small_task(**changes)


def test_task_restrict_renumbers_the_gallery() -> None:
    task = small_task().restrict({"a.jpg"}, {"a.jpg", "c.jpg"})
    assert task.queries.paths == ("a.jpg",)
    assert task.gallery.paths == ("a.jpg", "c.jpg")
    assert [r.tolist() for r in task.relevant] == [[1]]
    assert [i.tolist() for i in task.ignored] == [[0]]


def test_task_restrict_drops_what_left_the_gallery() -> None:
    task = small_task().restrict({"a.jpg", "b.jpg"}, {"b.jpg"})
    assert [r.tolist() for r in task.relevant] == [[], []]
    assert [i.tolist() for i in task.ignored] == [[], [0]]
    whole = small_task()
    assert whole.restrict(set(whole.queries.paths), set(whole.gallery.paths)) is whole


def test_embedding_set_names_the_image_that_is_not_finite() -> None:
    vectors = np.ones((2, 3), np.float32)
    assert EmbeddingSet(("a", "b"), vectors, "key").dim == 3
    vectors[1, 2] = np.nan
    with pytest.raises(UserError, match="'b' is not finite"):
        EmbeddingSet(("a", "b"), vectors, "key")


def test_ranking_must_descend_and_be_padded() -> None:
    scores = np.array([[0.9, 0.1, -np.inf]], np.float32)
    assert Ranking(np.array([[4, 2, -1]]), scores).indices.shape == (1, 3)
    with pytest.raises(AssertionError):
        Ranking(np.array([[4, 2, 1]]), scores)
    with pytest.raises(AssertionError):
        Ranking(np.array([[4, 2, 1]]), np.array([[0.1, 0.9, 0.0]], np.float32))


def test_report_wants_one_value_per_query() -> None:
    with pytest.raises(AssertionError):
        Report("task", {}, {}, ("a", "b"), {"mAP": np.zeros(3)})


def test_digest_of_tells_values_apart() -> None:
    assert digest_of([1, 2]) != digest_of([2, 1])
    assert digest_of({"a": None}) != digest_of({"a": "None"})
    assert len(digest_of("x")) == 16
