"""Representations made of others: joined, post-processed, fused."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
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
from tiny_extractors import ScorerConfig, make

from ssl_retrieval import postprocess
from ssl_retrieval.errors import UserError
from ssl_retrieval.features import Features, derived, extracted
from ssl_retrieval.fitting import NothingToFitError
from ssl_retrieval.fusion import concatenate
from ssl_retrieval.postprocess import l2_normalize
from ssl_retrieval.recipe import FUSIONS, Derived
from ssl_retrieval.store import FitOptions, Store
from ssl_retrieval.types import ImageSet, Task

__all__ = ["embedded", "root", "store", "task"]


def test_concatenation(store: Store) -> None:
    parts = [extracted(histogram(), store), extracted(small_pixels(), store)]
    found = derived("joined", Derived(of=["histogram", "pixels"], weights=[1.0, 0.5]), parts, store)
    for side in range(2):
        expected = concatenate([both(part)[side] for part in parts], [1.0, 0.5])
        np.testing.assert_array_equal(both(found)[side], expected)
    assert found.to_fit is not None
    expected = concatenate([part.to_fit() for part in parts if part.to_fit is not None], [1.0, 0.5])
    np.testing.assert_array_equal(found.to_fit(), expected)
    assert (found.label, found.dim) == ("joined", 64 + 27)
    assert found.bytes_per_image == 4 * (64 + 27)
    slowest = min(part.images_per_s for part in parts)
    assert found.images_per_s < slowest
    assert found.images_per_s == pytest.approx(1 / sum(1 / part.images_per_s for part in parts))
    assert found.peak_rss_mib == max(part.peak_rss_mib for part in parts)


def test_a_derivation_without_steps_of_one_part_is_that_part(store: Store) -> None:
    part = extracted(histogram(), store)
    found = derived("same", Derived(of=["histogram"]), [part], store)
    for side in range(2):
        np.testing.assert_array_equal(both(found)[side], both(part)[side])


def test_steps_are_fitted_on_the_tasks_training_images(store: Store, task: Task) -> None:
    part = extracted(histogram(), store)
    found = derived("white", Derived(of=["histogram"], steps=["pca_whiten:6", "l2"]), [part], store)
    assert task.fit is not None
    lesson = l2_normalize(raw(histogram(), task.fit))
    pipeline = postprocess.fit(postprocess.parse(["pca_whiten:6", "l2"]), lesson, None, 0)
    for vectors, before, role in zip(both(found), both(part), ("query", "gallery"), strict=True):
        np.testing.assert_allclose(vectors, l2_normalize(pipeline.apply(before, role)), atol=1e-4)
    assert (found.dim, found.bytes_per_image) == (6, 24.0)
    assert found.fitted == {
        "source": "the task's own training images",
        "num_images": 16,
        "num_in_gallery": 0,
        "num_in_queries": 0,
    }
    assert found.to_fit is not None
    np.testing.assert_allclose(found.to_fit(), l2_normalize(pipeline.apply(lesson, "query")), atol=1e-4)


def test_steps_are_fitted_on_given_images_instead(task: Task, root: Path, tmp_path: Path) -> None:
    given = image_set(root, range(5, 7))
    store = Store(task, tmp_path / "cache", fit=FitOptions(images=given))
    part = extracted(histogram(), store)
    found = derived("centred", Derived(of=["histogram"], steps=["center"]), [part], store)
    mean = l2_normalize(raw(histogram(), given)).mean(axis=0)
    np.testing.assert_allclose(both(found)[0], l2_normalize(both(part)[0] - mean), atol=1e-5)
    assert found.fitted is not None
    assert (found.fitted["source"], found.fitted["num_images"]) == ("another set", 8)


def test_few_images_to_fit_on_are_noted(store: Store) -> None:
    part = extracted(histogram(), store)
    found = derived("white", Derived(of=["histogram"], steps=["pca:40"]), [part], store)
    assert found.dim <= 15
    (note,) = found.notes
    assert note.startswith("pca:40: ")
    assert "fitted on only 16 images" in note
    again = derived("twice", Derived(of=["white", "white"], weights=[1, 2]), [found, found], store)
    assert again.notes == (note,), "what two parts have in common is said once"


def test_nothing_to_fit_on(task: Task, tmp_path: Path, embedded: list[tuple[str, int]]) -> None:
    store = Store(replace(task, fit=None), tmp_path / "cache")
    part = extracted(histogram(), store)
    recipe = Derived(of=["histogram"], steps=["center"])
    assert "no images to fit on" in message(lambda: derived("c", recipe, [part], store), NothingToFitError)
    plain = derived("p", Derived(of=["histogram"], steps=["power:0.5", "lsh:32"]), [part], store)
    assert plain.fitted is None
    assert plain.dim == 32
    assert plain.bytes_per_image == 4.0
    with pytest.raises(NothingToFitError):
        derived("c", Derived(of=["p"], steps=["center"]), [plain], store)


def test_queries_are_fitted_on_only_when_forced(task: Task, tmp_path: Path) -> None:
    searched = replace(task, fit=image_set(task.queries.root, range(1, 6)))
    recipe = Derived(of=["histogram"], steps=["center"])
    store = Store(searched, tmp_path / "cache")
    part = extracted(histogram(), store)
    assert "4 of the 20 images to fit on are queries" in message(lambda: derived("c", recipe, [part], store))
    forced = Store(searched, tmp_path / "cache", fit=FitOptions(on_test=True))
    found = derived("c", recipe, [extracted(histogram(), forced)], forced)
    assert found.fitted is not None
    assert (found.fitted["num_in_queries"], found.fitted["num_in_gallery"]) == (4, 12)


def test_learned_whitening_takes_labels_as_pairs(store: Store, task: Task) -> None:
    part = extracted(histogram(2), store)
    found = derived("white", Derived(of=["histogram"], steps=["learned_whiten:3"]), [part], store)
    assert task.fit is not None
    assert task.fit.labels is not None
    labels = task.fit.labels
    pairs = [(i, j) for j in range(16) for i in range(j) if labels[i] == labels[j]]
    lesson = l2_normalize(raw(histogram(2), task.fit))
    steps = postprocess.parse(["learned_whiten:3"])
    pipeline = postprocess.fit(steps, lesson, np.array(sorted(pairs), np.int64), 0)
    np.testing.assert_allclose(
        both(found)[0], l2_normalize(pipeline.apply(both(part)[0], "query")), atol=1e-3
    )


def test_learned_whitening_without_pairs_is_nothing_to_fit_on(task: Task, tmp_path: Path) -> None:
    assert task.fit is not None
    recipe = Derived(of=["histogram"], steps=["learned_whiten"])
    for fit, why in (
        (ImageSet(task.fit.root, task.fit.paths), "the 16 images to fit on have no labels"),
        (task.fit.take(np.array([0, 4, 8])), "the 3 images to fit on are all of different classes"),
    ):
        store = Store(replace(task, fit=fit), tmp_path / "cache")
        part = extracted(histogram(), store)
        line = message(functools.partial(derived, "w", recipe, [part], store), NothingToFitError)
        assert why in line


def test_unreadable_images_to_fit_on_are_left_out(store: Store, task: Task) -> None:
    assert task.fit is not None
    task.fit.file(0).write_bytes(b"")
    task.fit.file(5).write_text("no image")
    parts = [extracted(histogram(), store), extracted(small_pixels(), store)]
    recipe = Derived(of=["histogram", "pixels"], steps=["learned_whiten:3"])
    found = derived("white", recipe, parts, store)
    assert found.notes[0] == "2 of 16 images without features were left out of fitting"
    assert found.family == "fine-tuned", "it was fitted on labels"
    assert found.dim == 3
    assert found.to_fit is not None
    rows = found.to_fit()
    assert rows.shape == (16, 3)
    assert np.flatnonzero(~rows.any(axis=1)).tolist() == [0, 5]


def test_parts_of_other_images_are_refused(store: Store, task: Task) -> None:
    one, other = extracted(histogram(), store), extracted(small_pixels(), store)
    fewer = task.restrict(set(task.queries.paths[1:]), set(task.gallery.paths))
    other = replace(other, task=fewer)
    recipe = Derived(of=["histogram", "pixels"])
    line = message(lambda: derived("joined", recipe, [one, other], store))
    assert line.startswith("'joined': 'histogram' and 'pixels' could read different images")


@pytest.mark.parametrize("fuse", ["score_sum", "reciprocal_rank"])
def test_fused_scores(store: Store, fuse: str) -> None:
    parts = [extracted(histogram(), store), extracted(make("scorer", ScorerConfig()), store)]
    found = derived("late", Derived(of=["histogram", "scorer"], fuse=fuse, weights=[1.0, 2.0]), parts, store)
    assert (found.queries, found.gallery, found.to_fit) == (None, None, None)
    assert (found.dim, found.bytes_per_image) == (64 + 3, 4 * 64 + 1.5)
    one, other = (all_scores(part) for part in parts)
    if fuse == "score_sum":
        expected = one + 2 * other
    else:
        ranks = [1 + (scores[:, None] > scores[:, :, None]).sum(axis=2) for scores in (one, other)]
        expected = 1 / (60 + ranks[0]) + 2 / (60 + ranks[1])
    np.testing.assert_allclose(all_scores(found), expected, rtol=1e-5)
    nested = derived("nested", Derived(of=["late", "histogram"], fuse="score_sum"), [found, parts[0]], store)
    np.testing.assert_allclose(all_scores(nested), all_scores(found) + one, rtol=1e-5)


def test_one_embeds_the_queries_and_another_the_gallery(store: Store) -> None:
    asking, searched = extracted(histogram(), store), extracted(histogram(), store)
    searched = replace(searched, label="other", key="other", gallery=l2_normalize(both(searched)[1] ** 2))
    searched = replace(searched, images_per_s=asking.images_per_s / 4, bytes_per_image=17.0)
    recipe = Derived(of=["histogram", "other"], fuse="asymmetric")
    found = derived("x", recipe, [asking, searched], store)
    np.testing.assert_array_equal(both(found)[0], both(asking)[0])
    np.testing.assert_array_equal(both(found)[1], both(searched)[1])
    assert (found.dim, found.images_per_s, found.bytes_per_image) == (64, asking.images_per_s, 17.0)
    swapped = derived("x", recipe, [searched, asking], store)
    assert found.key != swapped.key
    small = extracted(small_pixels(), store)
    line = message(functools.partial(derived, "x", recipe, [asking, small], store))
    assert line.startswith("'x': 'histogram' has 64 dimensions and 'pixels' has 27: queries and gallery need")


def test_what_has_only_scores_cannot_be_joined(store: Store) -> None:
    parts = [extracted(histogram(), store), extracted(make("scorer", ScorerConfig()), store)]
    assert (parts[1].queries, parts[1].gallery, parts[1].to_fit) == (None, None, None)
    expected = "'joined': 'scorer' has scores and no vectors"
    for recipe in (
        Derived(of=["histogram", "scorer"]),
        Derived(of=["scorer"], steps=["center"]),
        Derived(of=["scorer"]),
    ):
        chosen = parts if len(recipe.of) > 1 else parts[1:]
        line = message(functools.partial(derived, "joined", recipe, chosen, store))
        assert line.startswith(expected)


def test_only_the_gallery_is_coded_by_products(store: Store) -> None:
    part = extracted(histogram(2), store)
    found = derived("coded", Derived(of=["histogram"], steps=["pq:2x3"]), [part], store)
    np.testing.assert_allclose(both(found)[0], both(part)[0], atol=1e-6)
    assert len(np.unique(both(found)[1].round(5), axis=0)) < 12
    assert found.bytes_per_image == 1.0
    joined = derived("j", Derived(of=["coded", "histogram"]), [found, part], store)
    assert joined.bytes_per_image == 1 + 4 * 8, "each part is kept as it is"
    half = derived("half", Derived(of=["histogram"], steps=["fp16"]), [part], store)
    assert derived("same", Derived(of=["half"]), [half], store).bytes_per_image == 16


def test_the_key_knows_everything_but_names(store: Store, task: Task, tmp_path: Path) -> None:
    part, other = extracted(histogram(), store), extracted(small_pixels(), store)

    def key(parts: list[Features], at: Store = store, **recipe: Any) -> str:
        return derived("x", Derived(of=[p.label for p in parts], **recipe), parts, at).key

    reseeded = Store(task, tmp_path / "cache", fit=FitOptions(seed=1))
    limited = Store(task, tmp_path / "cache", fit=FitOptions(limit=8))
    keys = [
        part.key,
        key([part]),
        key([part], steps=["center"]),
        key([extracted(histogram(), limited)], limited, steps=["center"]),
        key([part], steps=["lsh:8"]),
        key([extracted(histogram(), reseeded)], reseeded, steps=["lsh:8"]),
        key([part], steps=["lsh:9"]),
        key([part, other]),
        key([other, part]),
        key([part, other], weights=[1.0, 2.0]),
        key([part, other], fuse="score_sum"),
        key([part, other], fuse="reciprocal_rank"),
        key([part, part], fuse="asymmetric"),
        key([part, part]),
        key([part, other], steps=["center"]),
    ]
    assert len(set(keys)) == len(keys)
    assert key([part, other], weights=[1.0, 1.0]) == key([part, other])
    assert key([replace(part, label="renamed")], steps=["center"]) == key([part], steps=["center"])
    before = key([part], steps=["center"])
    assert task.fit is not None
    Image.new("RGB", (9, 9), "red").save(task.fit.file(0))
    fresh = Store(task, tmp_path / "other cache")
    assert key([extracted(histogram(), fresh)], fresh, steps=["center"]) != before


def test_the_family_is_that_of_the_part_that_learned_most(store: Store) -> None:
    part = extracted(histogram(), store)
    ours = replace(part, family="self-supervised", train_s=7.0)
    theirs = replace(part, family="off-the-shelf")
    found = derived("x", Derived(of=["a", "b", "c"]), [part, ours, theirs], store)
    assert (found.family, found.train_s) == ("self-supervised", 7.0)
    assert derived("x", Derived(of=["a", "c"]), [part, theirs], store).family == "off-the-shelf"
    assert derived("x", Derived(of=["b", "b"]), [ours, ours], store).train_s == 14.0


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (Derived(), r"derived\.x\.of is empty"),
        (Derived(of=["a", "c"]), r"derived\.x\.of: no representation 'c' before it \(known: a, b\)"),
        (Derived(of=["a"], fuse="sum"), r"derived\.x\.fuse='sum': use one of concat, score_sum"),
        (Derived(of=["a", "b"], weights=[1.0]), r"derived\.x\.weights has 1 values for 2 parts"),
        (Derived(of=["a", "b"], weights=[1.0, -1.0]), r"derived\.x\.weights=.*from 0 to 1,000,000"),
        (Derived(of=["a", "b"], weights=[1.0, float("nan")]), r"derived\.x\.weights=.*from 0 to"),
        (Derived(of=["a", "b"], weights=[float("inf"), 1.0]), r"derived\.x\.weights=.*from 0 to"),
        (Derived(of=["a", "b"], weights=[0.0, 0.0]), r"derived\.x\.weights are all 0"),
        (Derived(of=["a", "b"], fuse="score_sum", steps=["l2"]), r"derived\.x: fuse=score_sum gives scores"),
        (Derived(of=["a"], steps=["pca_witen:8"]), r"derived\.x\.steps: .*did you mean 'pca_whiten'"),
        (Derived(of=["a"], steps=["sign", "center"]), r"derived\.x\.steps: .*a code must be the last"),
        (Derived(of=["a"], fuse="asymmetric"), r"derived\.x: fuse=asymmetric takes two representations"),
        (
            Derived(of=["a", "b"], fuse="asymmetric", weights=[1.0, 1.0]),
            r"derived\.x: fuse=asymmetric takes two",
        ),
    ],
)
def test_recipes_that_cannot_be(recipe: Derived, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        recipe.check("x", ["a", "b"])
    assert "\n" not in str(caught.value)


def test_recipes_that_can_be() -> None:
    for recipe in (
        Derived(of=["a", "a"]),
        Derived(of=["a", "b"], weights=[0.0, 2.5], steps=["l2", "pca_whiten:8", "itq:4"]),
        Derived(of=["a", "b"], fuse="reciprocal_rank"),
    ):
        recipe.check("x", ["a", "b"])
    assert not Derived(of=["a"], steps=["l2", "lsh:8"]).learns
    assert Derived(of=["a"], steps=["l2", "itq:8"]).learns
    assert set(FUSIONS) == {"concat", "score_sum", "reciprocal_rank", "asymmetric"}
