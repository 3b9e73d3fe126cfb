"""Doubtful labels: planted ones come first, and votes are those of a plain loop."""

from pathlib import Path

import numpy as np
import pytest

from ssl_retrieval.data.tasks import labelled, task_from_groups
from ssl_retrieval.errors import UserError
from ssl_retrieval.label_errors import among_themselves, suspects, vote_shares
from ssl_retrieval.metrics_knn import knn_accuracy
from ssl_retrieval.postprocess import l2_normalize
from ssl_retrieval.search import relevant_ranks, top_k
from ssl_retrieval.similarity import Cosine
from ssl_retrieval.types import ImageSet, VectorArray

NAMES = ("ape", "bee", "cat", "dog")


def clusters(per_class: int, seed: int) -> tuple[ImageSet, VectorArray]:
    draw = np.random.default_rng(seed)
    labels = np.repeat(np.arange(4), per_class)
    vectors = np.eye(4, 16, dtype=np.float32)[labels] * 3 + draw.normal(size=(4 * per_class, 16)) * 0.5
    paths = [f"{i}.jpg" for i in range(len(labels))]
    images = labelled(Path("/photos"), paths, [NAMES[label] for label in labels], NAMES)
    return images, l2_normalize(vectors.astype(np.float32))


def flipped(images: ImageSet, rows: list[int]) -> ImageSet:
    assert images.labels is not None
    names = [NAMES[label] for label in images.labels]
    for row in rows:
        names[row] = NAMES[(NAMES.index(names[row]) + 1) % 4]
    return labelled(images.root, images.paths, names, NAMES)


def test_planted_flips_come_first() -> None:
    images, vectors = clusters(40, seed=0)
    rows = [3, 17, 50, 88, 120, 159]
    wrong = flipped(images, rows)
    table = suspects(among_themselves(wrong), Cosine(vectors, vectors))
    assert set(table["id"][:6]) == {f"{row}.jpg" for row in rows}
    assert (table["margin"][:6] > 0.5).all()
    assert table["margin"][6] < 0
    # Their neighbours know the label that they had.
    assert images.labels is not None
    had = {f"{row}.jpg": NAMES[images.labels[row]] for row in rows}
    assert dict(zip(table["id"][:6], table["suggested"][:6], strict=True)) == had
    assert (table["behind"][:6] > 0.4).all()


def test_votes_are_those_of_a_plain_loop() -> None:
    images, vectors = clusters(6, seed=1)
    assert images.labels is not None
    ranking = top_k(vectors, vectors, 5)
    shares = vote_shares(ranking, images.labels, 4, 0.07)
    for row in range(len(vectors)):
        votes = [0.0] * 4
        for item, score in zip(ranking.indices[row], ranking.scores[row], strict=True):
            votes[images.labels[item]] += np.exp(float(score) / 0.07)
        np.testing.assert_allclose(shares[row], np.array(votes) / sum(votes), rtol=1e-6)
    assert not vote_shares(top_k(vectors[:1], vectors[:1], 2, [np.array([0])]), np.array([0]), 4, 0.07).any()


def test_a_negative_margin_is_a_right_answer() -> None:
    draw = np.random.default_rng(2)
    images, _ = clusters(10, seed=2)
    vectors = l2_normalize(draw.normal(size=(40, 3)).astype(np.float32))
    task = among_themselves(images)
    table = suspects(task, Cosine(vectors, vectors), k=7).set_index("id")
    assert images.labels is not None
    right = knn_accuracy(top_k(vectors, vectors, 7, task.ignored), images.labels, images.labels, k=7)
    assert {path for path, r in zip(images.paths, right, strict=True) if r} == set(
        table.index[table["margin"] < 0]
    )


def test_how_far_behind_is_the_rank_of_the_middle_relevant_one() -> None:
    images, vectors = clusters(5, seed=3)
    task = among_themselves(images)
    table = suspects(task, Cosine(vectors, vectors)).set_index("id")["behind"].to_dict()
    found = relevant_ranks(vectors, vectors, task.relevant, task.ignored)
    for row, path in enumerate(images.paths):
        # Four relevant ones: the lower of the middle two.
        assert table[path] == pytest.approx((found.ranks[row, 1] - 1) / (19 - 1))


def test_tasks_without_common_labels_are_refused() -> None:
    images, vectors = clusters(2, seed=0)
    bare = ImageSet(images.root, images.paths)
    task = task_from_groups(name="bare", level="category", queries=bare, gallery=bare)
    with pytest.raises(UserError, match="task 'bare' has no labels to doubt"):
        suspects(task, Cosine(vectors, vectors))
    other = labelled(images.root, images.paths, ["x"] * 8)
    task = task_from_groups(name="two", level="category", queries=images, gallery=other)
    with pytest.raises(UserError, match="queries and gallery have different labels"):
        suspects(task, Cosine(vectors, vectors))
