"""On which images something may be fitted: never silently on the queries."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_retrieval.errors import UserError
from ssl_retrieval.fitting import NothingToFitError, fit_set
from ssl_retrieval.types import ImageSet, Task

ROOT = Path("/photos")


def image_set(first: int, stop: int, root: Path = ROOT, labelled: bool = False) -> ImageSet:
    paths = tuple(f"{number}.png" for number in range(first, stop))
    if not labelled:
        return ImageSet(root, paths)
    return ImageSet(root, paths, np.arange(first, stop) % 3, ("a", "b", "c"))


def task_of(queries: ImageSet, gallery: ImageSet, fit: ImageSet | None = None) -> Task:
    nothing = (np.empty(0, np.int64),) * len(queries)
    return Task("made-up", "category", queries, gallery, nothing, nothing, fit=fit)


def test_a_tasks_own_training_images_are_taken() -> None:
    task = task_of(image_set(0, 5), image_set(5, 10), fit=image_set(8, 30, labelled=True))
    chosen = fit_set(task, None, limit=100, on_test=False, seed=0)
    assert chosen.images is task.fit
    assert chosen.to_dict() == {
        "source": "the task's own training images",
        "num_images": 22,
        "num_in_gallery": 2,
        "num_in_queries": 0,
    }


def test_another_set_comes_first() -> None:
    task = task_of(image_set(0, 5), image_set(5, 10), fit=image_set(8, 30))
    given_images = image_set(0, 4, root=Path("/elsewhere"))
    chosen = fit_set(task, given_images, limit=100, on_test=False, seed=0)
    assert chosen.images is given_images
    assert (chosen.source, chosen.num_in_gallery, chosen.num_in_queries) == ("another set", 0, 0)


def test_queries_among_them_are_refused_unless_forced() -> None:
    task = task_of(image_set(0, 5), image_set(5, 10), fit=image_set(3, 30))
    with pytest.raises(UserError, match=r"2 of the 27 images to fit on are queries") as caught:
        fit_set(task, None, limit=100, on_test=False, seed=0)
    assert not isinstance(caught.value, NothingToFitError)
    assert "\n" not in str(caught.value)
    assert "fit_on_test=true" in str(caught.value)
    chosen = fit_set(task, None, limit=100, on_test=True, seed=0)
    assert (len(chosen.images), chosen.num_in_gallery, chosen.num_in_queries) == (27, 5, 2)


def test_given_images_are_checked_too() -> None:
    task = task_of(image_set(0, 5), image_set(5, 10), fit=image_set(20, 30))
    with pytest.raises(UserError, match="are queries"):
        fit_set(task, image_set(4, 9), limit=100, on_test=False, seed=0)


def test_a_file_is_the_same_under_another_root(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    below = ImageSet(tmp_path / "photos", ("1.png",))
    above = ImageSet(tmp_path, ("photos/1.png", "photos/2.png"))
    linked = ImageSet(tmp_path / "link", ("1.png", "2.png"))
    for others in (above, linked):
        with pytest.raises(UserError, match="1 of the 2 images to fit on are queries"):
            fit_set(task_of(below, below), others, limit=9, on_test=False, seed=0)


def test_without_a_set_the_gallery_must_be_forced() -> None:
    task = task_of(image_set(0, 6), image_set(0, 6))
    with pytest.raises(NothingToFitError, match=r"'made-up' has no images to fit on: .*fit\.name=") as caught:
        fit_set(task, None, limit=100, on_test=False, seed=0)
    assert "\n" not in str(caught.value)
    chosen = fit_set(task, None, limit=100, on_test=True, seed=0)
    assert chosen.images is task.gallery
    assert (chosen.source, chosen.num_in_gallery, chosen.num_in_queries) == ("the gallery (forced)", 6, 6)


def test_a_gallery_without_queries_is_counted_as_such() -> None:
    chosen = fit_set(task_of(image_set(0, 5), image_set(5, 12)), None, limit=4, on_test=True, seed=0)
    assert (len(chosen.images), chosen.num_in_gallery, chosen.num_in_queries) == (4, 4, 0)


@pytest.mark.parametrize("limit", [1, 0, -3])
def test_one_image_is_nothing_to_fit_on(limit: int) -> None:
    task = task_of(image_set(0, 5), image_set(5, 10), fit=image_set(10, 20))
    with pytest.raises(UserError, match=f"fit_limit={limit}: at least 2"):
        fit_set(task, None, limit=limit, on_test=False, seed=0)


@settings(max_examples=100, deadline=None)
@given(count=st.integers(2, 60), limit=st.integers(2, 60), seed=st.integers(-(2**40), 2**40))
def test_a_limit_draws_in_order_and_the_same_for_a_seed(count: int, limit: int, seed: int) -> None:
    fit = image_set(100, 100 + count, labelled=True)
    task = task_of(image_set(0, 5), image_set(5, 10), fit=fit)
    drawn = fit_set(task, None, limit, False, seed).images
    assert len(drawn) == min(count, limit)
    places = [fit.paths.index(path) for path in drawn.paths]
    assert places == sorted(set(places))
    assert fit.labels is not None
    assert drawn.labels is not None
    assert drawn.labels.tolist() == fit.labels[places].tolist()
    assert fit_set(task, None, limit, False, seed).images.paths == drawn.paths


def test_other_seeds_draw_other_images() -> None:
    task = task_of(image_set(0, 5), image_set(5, 10), fit=image_set(10, 200))
    draws = {fit_set(task, None, 20, False, seed).images.paths for seed in range(5)}
    assert len(draws) == 5


def test_what_was_drawn_decides_whether_queries_are_among_them() -> None:
    fit = image_set(0, 100)
    for seed in range(20):
        task = task_of(image_set(0, 1), image_set(200, 210), fit=fit)
        drawn = fit_set(task, None, 50, True, seed)
        assert drawn.num_in_queries == ("0.png" in drawn.images.paths)
