"""Re-ranked representations: what they see, what they cost, and what is refused."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from small_grids import evaluation, grid, markdown_table, mistake, split
from small_task import all_scores, both, histogram, message, root, small_pixels, store, task
from tiny_extractors import ScorerConfig, make, tiny_extractors

from ssl_retrieval import rerank
from ssl_retrieval.diffusion import diffusion_ranking, mutual_graph
from ssl_retrieval.errors import UserError
from ssl_retrieval.evaluate import evaluate
from ssl_retrieval.features import Features, derived, extracted
from ssl_retrieval.grid import run_grid
from ssl_retrieval.k_reciprocal import encode_gallery, reciprocal_similarity
from ssl_retrieval.neighbours import neighbours
from ssl_retrieval.query_expansion import augment_gallery, expand_queries
from ssl_retrieval.recipe import Derived
from ssl_retrieval.search import relevant_ranks, top_k
from ssl_retrieval.searching import own_places, search_of
from ssl_retrieval.store import Store
from ssl_retrieval.types import Protocol, Task

__all__ = ["root", "split", "store", "task", "tiny_extractors"]

STEPS = [
    "aqe(n=3)",
    "alpha_qe(n=3)",
    "dqe(n=2)",
    "dba(n=3)",
    "diffusion(k=5, kq=3)",
    "k_reciprocal(k1=5, k2=2)",
]
EACH = [*STEPS, "spatial(top=3)"]

each_step = pytest.mark.parametrize("step", EACH)


def reranked(part: Features, store: Store, *steps: str) -> Features:
    return derived("again", Derived(of=[part.label], rerank=list(steps)), [part], store)


def leave_one_out(task: Task, self_match: str = "ignored") -> Task:
    """Every gallery image searches among all, itself ignored or counted."""
    labels = task.gallery.labels
    assert labels is not None
    own = np.arange(len(labels))
    counted = self_match == "counted"
    relevant = tuple(np.flatnonzero((labels == labels[i]) & (counted | (own != i))) for i in own)
    ignored = tuple(np.array([] if counted else [i], np.int64) for i in own)
    return replace(
        task,
        queries=task.gallery,
        relevant=relevant,
        ignored=ignored,
        protocol=Protocol(self_match=self_match),
    )


def test_each_step_is_its_function(store: Store) -> None:
    part = extracted(histogram(), store)
    queries, gallery = both(part)
    np.testing.assert_array_equal(
        both(reranked(part, store, "alpha_qe(n=3, alpha=2)"))[0], expand_queries(queries, gallery, 3, 2.0)
    )
    augmented = augment_gallery(gallery, 3, 0.0)
    twice = reranked(part, store, "dba(n=3)", "aqe(n=2)")
    np.testing.assert_array_equal(both(twice)[1], augmented)
    np.testing.assert_array_equal(both(twice)[0], expand_queries(queries, augmented, 2, 0.0))

    nothing = (np.empty(0, np.int64),) * len(queries)
    found = reciprocal_similarity(queries, encode_gallery(gallery, 5, 2), 0.5, nothing)
    again = reranked(part, store, "k_reciprocal(k1=5, k2=2, lambda=0.5)")
    assert (again.queries, again.gallery, again.to_fit) == (None, None, None)
    np.testing.assert_array_equal(all_scores(again), found.scores(slice(0, len(queries))))

    spread = diffusion_ranking(
        part.similarity,
        neighbours(queries, gallery, 3),
        mutual_graph(gallery, 5, 3.0),
        gamma=3.0,
        alpha=0.99,
        iterations=20,
        top=1000,
        own=nothing,
    )
    found_again = all_scores(reranked(part, store, "diffusion(k=5, kq=3)"))
    np.testing.assert_array_equal(found_again, spread.scores(slice(0, len(queries))))


@each_step
def test_what_is_relevant_or_junk_changes_nothing(store: Store, task: Task, step: str) -> None:
    part = extracted(histogram(), store)
    before = all_scores(reranked(part, store, step))
    nothing = (np.empty(0, np.int64),) * len(task.queries)
    junk = tuple(np.array([i % 12, (i + 5) % 12], np.int64) for i in range(len(task.queries)))
    shuffled = replace(
        part, task=replace(task, relevant=nothing, ignored=junk, queries=replace(task.queries, labels=None))
    )
    np.testing.assert_array_equal(all_scores(reranked(shuffled, store, step)), before)


def test_a_step_sees_no_labels(task: Task) -> None:
    seen = search_of(task, None, None, None)
    for images in (seen.query_images, seen.gallery_images):
        assert images.labels is None
        assert images.class_names == ()
    assert not {"relevant", "ignored", "task"} & set(vars(seen))


def test_own_places(task: Task) -> None:
    assert [len(own) for own in own_places(task)] == [0] * 8
    assert [own.tolist() for own in own_places(leave_one_out(task))] == [[i] for i in range(12)]
    assert not any(map(len, own_places(leave_one_out(task, "counted"))))


@each_step
@pytest.mark.parametrize("self_match", ["ignored", "counted"])
def test_leave_one_out(task: Task, tmp_path: Path, step: str, self_match: str) -> None:
    searched = leave_one_out(task, self_match)
    store = Store(searched, tmp_path / "cache")
    again = reranked(extracted(histogram(), store), store, step)
    scores = all_scores(again)
    assert scores.shape == (12, 12)
    assert np.isfinite(scores).all()
    ranks = relevant_ranks(again.similarity, None, searched.relevant, searched.ignored)
    assert (ranks.num_candidates == (12 if self_match == "counted" else 11)).all()
    if self_match == "counted" and step != "dqe(n=2)":
        assert (top_k(again.similarity, None, 3).indices == np.arange(12)[:, None]).any(axis=1).all()
    noted = any("their own photos took part" in note for note in again.notes)
    compares_gallery = step.startswith(("dba", "diffusion", "k_reciprocal"))
    assert noted == (compares_gallery and self_match == "ignored")


def test_own_photos_do_not_expand_their_own_query(task: Task, tmp_path: Path) -> None:
    """With its own photo among its neighbours, each query would get itself twice."""
    searched = leave_one_out(task)
    store = Store(searched, tmp_path / "cache")
    part = extracted(histogram(), store)
    queries, gallery = both(part)
    found = both(reranked(part, store, "aqe(n=1)"))[0]
    for row in range(12):
        others = np.delete(np.arange(12), row)
        nearest = others[np.argmax(gallery[others] @ queries[row])]
        expected = queries[row] + gallery[nearest]
        np.testing.assert_allclose(found[row], expected / np.linalg.norm(expected), atol=1e-5)


@each_step
def test_costs(store: Store, step: str) -> None:
    part = extracted(histogram(), store)
    assert part.rerank_costs == {}
    again = reranked(part, store, step)
    costs = again.rerank_costs
    assert costs.keys() == {"rerank_ms_per_query", "rerank_offline_s", "rerank_bytes_per_image"}
    on_gallery = step.startswith(("dba", "diffusion", "k_reciprocal", "spatial"))
    assert (costs["rerank_offline_s"] > 0) == on_gallery
    assert (costs["rerank_ms_per_query"] > 0) == (not step.startswith("dba"))
    assert again.bytes_per_image == part.bytes_per_image + costs["rerank_bytes_per_image"]
    twice = derived("twice", Derived(of=["again", "pixels"], fuse="score_sum"), [again, part], store)
    assert twice.rerank_costs == costs


def test_augmented_codes_are_vectors_again(store: Store) -> None:
    part = extracted(histogram(), store)
    coded = derived("coded", Derived(of=["histogram"], steps=["lsh:32"]), [part], store)
    assert coded.bytes_per_image == 4
    assert reranked(coded, store, "aqe(n=2)").bytes_per_image == 4
    assert reranked(coded, store, "dba(n=2)").bytes_per_image == 4 * 32


def test_what_has_only_scores_can_be_verified(store: Store) -> None:
    part = extracted(make("scorer", ScorerConfig()), store)
    again = reranked(part, store, "spatial(top=3)")
    assert again.dim == part.dim
    assert top_k(again.similarity, None, 3).indices.shape == (8, 3)
    for step in STEPS:
        line = message(functools.partial(reranked, part, store, step))
        assert line.startswith("'again': 'scorer' has scores and no vectors")


def test_late_fusion_is_verified_and_reranked_parts_are_fused(store: Store) -> None:
    parts = [extracted(histogram(), store), extracted(small_pixels(), store)]
    fused = Derived(of=["histogram", "pixels"], fuse="score_sum")
    plain = derived("late", fused, parts, store)
    again = derived("late", replace(fused, rerank=["spatial(top=2)"]), parts, store)
    np.testing.assert_array_equal(
        top_k(again.similarity, None, 12).indices[:, 2:], top_k(plain.similarity, None, 12).indices[:, 2:]
    )
    one = reranked(parts[0], store, "k_reciprocal(k1=4)")
    both_ways = derived("f", fused, [one, parts[1]], store)
    np.testing.assert_allclose(all_scores(both_ways), all_scores(one) + all_scores(parts[1]), atol=1e-6)


def test_the_key_knows_the_steps(store: Store) -> None:
    part = extracted(histogram(), store)
    keys = [reranked(part, store, *steps).key for steps in (["aqe"], ["aqe(n=2)"], ["dba"], ["dba", "aqe"])]
    assert len({part.key, *keys}) == 5
    assert reranked(part, store, "aqe( n=10 )").key == keys[0]


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (Derived(of=["a"], rerank=["aqee"]), r"derived\.x\.rerank: unknown re-ranking step 'aqee'"),
        (Derived(of=["a"], rerank=["spatial", "aqe"]), r"derived\.x\.rerank: aqe needs vectors"),
        (
            Derived(of=["a", "b"], fuse="score_sum", rerank=["spatial", "diffusion"]),
            r"derived\.x\.rerank: diffusion needs vectors",
        ),
        (
            Derived(of=["a", "b"], fuse="score_sum", rerank=["dba"]),
            r"derived\.x: fuse=score_sum gives scores, and dba needs vectors",
        ),
    ],
)
def test_recipes_that_cannot_be(recipe: Derived, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        recipe.check("x", ["a", "b"])
    assert "\n" not in str(caught.value)


def test_a_grid_and_evaluate_rerank_alike(split: Path, tmp_path: Path) -> None:
    derived_sections: dict[str, Any] = {
        "expanded": {"of": ["histogram"], "rerank": ["aqe(n=2)"]},
        "spread": {"of": ["histogram"], "rerank": ["diffusion(k=4, kq=2)"]},
        "checked": {"of": ["spread"], "rerank": ["spatial(top=2)"]},
    }
    comparison = run_grid(grid(tmp_path / "grid", split, derived=derived_sections))
    table = markdown_table(tmp_path / "grid")
    assert table.columns[-1] == "re-rank ms"
    assert ((table["re-rank ms"] != "–") == table.index.isin(derived_sections)).all()
    long = pd.read_csv(tmp_path / "grid" / "table.csv").set_index("representation")
    offline = long["rerank_offline_s"].groupby(level=0).max()
    assert offline["spread"] > 0
    assert np.isnan(offline["histogram"])
    assert ">re-rank ms</th>" in (tmp_path / "grid" / "report.html").read_text()
    report = evaluate(evaluation(tmp_path / "one", split, rerank=["aqe(n=2)"]))
    entry = comparison.tasks[0].entry("expanded")
    assert entry is not None
    np.testing.assert_array_equal(report.per_query["mAP"], entry.report.per_query["mAP"])
    assert report.costs["rerank_ms_per_query"] is not None
    assert report.config["rerank"] == ["aqe(n=2)"]


def test_mistakes_are_found_before_anything_is_embedded(
    tiny_extractors: None, split: Path, tmp_path: Path
) -> None:
    wrong = {"x": {"of": ["histogram"], "rerank": ["aqe(n=0)"]}}
    line = mistake(grid(tmp_path / "grid", split, derived=wrong))
    assert line.startswith("derived.x.rerank: re-ranking step 'aqe(n=0)': n must be a whole number")
    vectors_gone = {
        "x": {"of": ["histogram"], "rerank": ["diffusion"]},
        "y": {"of": ["x"], "steps": ["center"]},
    }
    line = mistake(grid(tmp_path / "grid", split, derived=vectors_gone))
    assert line.startswith("'y': 'x' has scores and no vectors")
    for keys, expected in (
        ({"rerank": ["aqe(n=0)"]}, "n must be a whole number"),
        ({"rerank": ["aqe"], "model": {"name": "scorer"}}, "'rerank': 'scorer' has scores and no vectors"),
    ):
        assert expected in message(functools.partial(evaluate, evaluation(tmp_path / "one", split, **keys)))
    assert not (tmp_path / "grid" / "embeddings").exists()
    assert not (tmp_path / "one").exists()


def test_every_step_is_tried_here() -> None:
    assert {text.partition("(")[0] for text in EACH} == set(rerank.FORMS)
