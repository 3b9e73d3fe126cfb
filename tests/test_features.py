"""What extractors make of a task: vectors or scores, embedded once, and counted where they are empty."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_task import (
    all_scores,
    both,
    embedded,
    histogram,
    image_set,
    message,
    raw,
    root,
    small_pixels,
    store,
    task,
)
from tiny_extractors import BlindConfig, LearnerConfig, ScorerConfig, make

from ssl_retrieval import store as store_module
from ssl_retrieval.features import derived, extracted, similarity_of
from ssl_retrieval.fitting import NothingToFitError
from ssl_retrieval.postprocess import l2_normalize
from ssl_retrieval.recipe import Derived
from ssl_retrieval.store import Shelf, Store
from ssl_retrieval.types import Task

__all__ = ["embedded", "root", "store", "task"]


def test_an_extractor_gives_normalised_vectors(store: Store, task: Task) -> None:
    found = extracted(small_pixels(), store)
    for vectors, images in zip(both(found), (task.queries, task.gallery), strict=True):
        np.testing.assert_allclose(vectors, l2_normalize(raw(small_pixels(), images)), atol=1e-6)
    queries, gallery = both(found)
    np.testing.assert_allclose(all_scores(found), queries @ gallery.T, atol=1e-6)
    assert found.task is task
    assert (found.label, found.family, found.dim) == ("pixels", "hand-crafted", 27)
    assert (found.bytes_per_image, found.train_s) == (108.0, None)
    assert found.images_per_s > 0
    assert found.peak_rss_mib > 10
    assert (found.notes, found.fitted, found.scores) == ((), None, None)
    assert found.to_fit is not None
    assert task.fit is not None
    np.testing.assert_allclose(found.to_fit(), l2_normalize(raw(small_pixels(), task.fit)), atol=1e-6)


def test_each_list_is_embedded_once(store: Store, embedded: list[tuple[str, int]]) -> None:
    parts = [extracted(histogram(), store), extracted(small_pixels(), store)]
    derived("joined", Derived(of=["histogram", "pixels"]), parts, store)
    assert embedded == [("histogram", 8), ("histogram", 12), ("pixels", 8), ("pixels", 12)]
    embedded.clear()
    for label in ("a", "b"):
        whitened = derived(label, Derived(of=["histogram"], steps=["pca_whiten:8"]), parts[:1], store)
    derived("c", Derived(of=["b"], steps=["center"]), [whitened], store)
    derived("d", Derived(of=["b", "pixels"], steps=["center"]), [whitened, parts[1]], store)
    assert embedded == [("histogram", 16), ("pixels", 16)]
    again = Store(store.task, store.cache, shelf=store.shelf)
    extracted(histogram(), again)
    assert embedded == [("histogram", 16), ("pixels", 16)]


def test_a_gallery_that_holds_the_queries_embeds_only_the_rest(
    task: Task, tmp_path: Path, embedded: list[tuple[str, int]]
) -> None:
    everything = image_set(task.queries.root, range(5))
    nothing = (np.empty(0, np.int64),) * len(task.queries)
    searched = Task("all", "category", task.queries, everything, nothing, nothing)
    found = extracted(small_pixels(), Store(searched, tmp_path / "cache"))
    assert embedded == [("pixels", 8), ("pixels", 12)]
    np.testing.assert_allclose(both(found)[1], l2_normalize(raw(small_pixels(), everything)), atol=1e-6)


def test_unreadable_images_of_the_task(store: Store, task: Task) -> None:
    task.queries.file(1).write_bytes(b"")
    task.gallery.file(2).write_bytes(b"")
    found = extracted(histogram(), store)
    assert (len(found.task.queries), len(found.task.gallery)) == (7, 11)
    assert found.skipped == (
        ("apple/1.png", "empty file (0 bytes)"),
        ("apple/4.png", "empty file (0 bytes)"),
    )
    white = derived("white", Derived(of=["histogram"], steps=["center"]), [found], store)
    assert white.task is found.task
    assert white.skipped == found.skipped


def test_a_task_that_fails_fails_whatever_another_has_skipped(task: Task, tmp_path: Path) -> None:
    task.queries.file(1).write_bytes(b"")
    shelf = Shelf()
    extracted(histogram(), Store(task, tmp_path / "cache", shelf=shelf))
    strict = Store(task, tmp_path / "cache", on_error="fail", shelf=shelf)
    assert "cannot read" in message(lambda: extracted(histogram(), strict))


def test_an_own_similarity_beside_vectors_serves_until_they_are_changed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    representation = make("scorer", ScorerConfig())
    monkeypatch.setattr(representation.extractor, "only_scores", False, raising=False)
    found = extracted(representation, store)
    queries, gallery = both(found)
    assert all_scores(found).max() <= 0
    centred = derived("c", Derived(of=["scorer"], steps=["center"]), [found], store)
    assert centred.scores is None
    joined = derived("j", Derived(of=["scorer"]), [found], store)
    np.testing.assert_allclose(all_scores(joined), queries @ gallery.T, atol=1e-6)


def test_similarity_of_some_vectors() -> None:
    queries, gallery = np.array([[3, 4]], np.float32), np.array([[0, 2], [3, 4]], np.float32)
    cosines = similarity_of(histogram().extractor, queries, gallery).scores(slice(0, 1))
    np.testing.assert_allclose(cosines, [[0.8, 1.0]], atol=1e-6)
    own = similarity_of(make("scorer", ScorerConfig()).extractor, queries, gallery).scores(slice(0, 1))
    np.testing.assert_allclose(own, [[-np.sqrt(13), 0]], atol=1e-6)


def test_images_without_features_are_counted_once(root: Path, tmp_path: Path) -> None:
    everything = image_set(root, range(3))
    nothing = (np.empty(0, np.int64),) * len(everything)
    task = Task("all", "category", everything, everything, nothing, nothing, fit=image_set(root, range(5, 9)))
    store = Store(task, tmp_path / "cache")
    blind, seeing = (extracted(make(f"blind {d}", BlindConfig(darkest=d)), store) for d in (0.5, 0.0))
    dark = {str(root.resolve() / name / f"{i}.png") for name in ("apple", "bear", "door") for i in range(3)}
    assert blind.without_features == dark
    assert seeing.without_features == frozenset()
    similarity = all_scores(blind)
    assert not similarity[[path in dark for path in store_module.files_of(everything)]].any()
    white = derived("white", Derived(of=["a"], steps=["center", "sign"]), [blind], store)
    assert white.without_features == dark
    assert "12 of 16 images without features were left out of fitting" in white.notes[0]
    joined = derived("joined", Derived(of=["a", "b"]), [blind, seeing], store)
    assert joined.without_features == frozenset(), "the other part sees them"
    assert (
        derived("late", Derived(of=["a", "a"], fuse="score_sum"), [blind] * 2, store).without_features == dark
    )
    alone = derived("alone", Derived(of=["a", "b"], weights=[1, 0]), [blind, seeing], store)
    assert alone.without_features == dark


def test_what_was_learned_is_said_of_what_is_derived(store: Store) -> None:
    words = extracted(make("words", LearnerConfig()), store)
    assert words.dim == 4
    assert words.fitted is not None
    assert words.fitted["num_images"] == 16
    part = extracted(histogram(), store)
    for recipe in (Derived(of=["histogram", "words"]), Derived(of=["a", "b"], fuse="score_sum")):
        assert derived("x", recipe, [part, words], store).fitted == words.fitted


def test_an_extractor_that_learned_for_another_task_learns_anew_for_a_late_fit(
    store: Store, task: Task, root: Path, tmp_path: Path
) -> None:
    learner = make("words", LearnerConfig(words=3))
    found = extracted(learner, store)
    elsewhere = replace(task, fit=image_set(root, range(8, 9)))
    other = extracted(learner, Store(elsewhere, tmp_path / "cache", shelf=store.shelf))
    assert found.key != other.key
    alone = Store(task, tmp_path / "alone")
    expected = extracted(make("words", LearnerConfig(words=3)), alone).to_fit
    assert expected is not None
    assert found.to_fit is not None
    np.testing.assert_allclose(found.to_fit(), expected(), atol=1e-6)


def test_an_extractor_with_nothing_to_learn_from(task: Task, tmp_path: Path) -> None:
    store = Store(replace(task, fit=None), tmp_path / "cache")
    line = message(lambda: extracted(make("words", LearnerConfig()), store), NothingToFitError)
    assert "no images to fit on" in line
