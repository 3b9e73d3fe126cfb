"""Objectives on tuples: losses against loops, what becomes a tuple, and whole runs."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_photos import photo
from method_makers import method_of, views_for
from short_runs import go, go_until, rows, same, user_error, write_job
from torch import Tensor
from torch.nn import functional as nnf

from ssl_retrieval import checkpoint, train
from ssl_retrieval.methods.base import BaseMethod
from ssl_retrieval.methods.tuples import TuplesMethod, triplets_of
from ssl_retrieval.pairs import clusters
from ssl_retrieval.rounds import Round, Seen
from ssl_retrieval.train_images import open_images
from ssl_retrieval.tuple_sampler import TupleSampler

NUM_IMAGES, STEPS = 24, 12
"""Twenty-four photos, six of each colour; four a step, twice."""


def made(name: str, **options: Any) -> TuplesMethod:
    method = method_of(name, **options)
    assert isinstance(method, TuplesMethod)
    return method


def naive(name: str, vectors: Tensor, negatives: int, margin: float) -> float:
    """Go through the tuples; take the mean over what is not yet as it should be, as the library does."""
    length, positive_terms, negative_terms = 2 + negatives, [], []
    for start in range(0, len(vectors), length):
        query, positive, *others = vectors[start : start + length]
        near = float((query - positive).norm())
        positive_terms.append(near)
        for other in others:
            far = float((query - other).norm())
            negative_terms.append(
                max(0.0, margin - far if name == "pair_contrastive" else near - far + margin)
            )
    counted = [term for term in negative_terms if term > 0]
    mean = sum(counted) / len(counted) if counted else 0.0
    return mean + sum(positive_terms) / len(positive_terms) if name == "pair_contrastive" else mean


@pytest.mark.parametrize("name", ["pair_contrastive", "pair_triplet"])
@pytest.mark.parametrize(("negatives", "margin"), [(1, 1.2), (2, 0.4), (6, 1.9)])
def test_a_loss_is_that_of_a_loop_over_the_tuples(name: str, negatives: int, margin: float) -> None:
    method = made(name, negatives=negatives, margin=margin, dim=16)
    views = views_for(method, batch_size=16)
    whole = 16 // (2 + negatives) * (2 + negatives)
    vectors = nnf.normalize(method.head(method.encoder, views[0][:whole]).detach(), dim=1)
    wanted = naive(name, vectors, negatives, margin)
    assert wanted > 0
    assert method.step(views, 0.0).loss.item() == pytest.approx(wanted, rel=1e-4)


def seen_of(vectors: Tensor, last: Round | None = None, number: int = 0) -> Seen:
    paths = tuple(f"{i}.jpg" for i in range(len(vectors)))
    return Seen(nnf.normalize(vectors, dim=1).numpy(), paths, (), seed=3, number=number, last=last)


def random_vectors(count: int, seed: int) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))


def write_pairs(file: Path, pairs: list[list[int]]) -> str:
    lines = [f"{a}.jpg,{b}.jpg" for a, b in pairs]
    file.write_text("\n".join(["path_a,path_b", *lines]) + "\n")
    return str(file)


def assert_tuples_hold(found: Round, pairs: set[tuple[int, ...]]) -> None:
    assert found.tuples is not None
    groups = found.labels
    for query, positive, *negatives in found.tuples.tolist():
        assert tuple(sorted((query, positive))) in pairs
        taken = [int(groups[image]) for image in (query, *negatives)]
        assert groups[query] == groups[positive]
        assert len(set(taken)) == len(taken)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 99), pool=st.sampled_from([0, 25]), skip=st.sampled_from([-1, 0, 3]))
def test_negatives_are_of_other_clusters_and_each_pair_is_there_once(
    tmp_path_factory: pytest.TempPathFactory, seed: int, pool: int, skip: int
) -> None:
    draw = np.random.default_rng(seed)
    drawn = {tuple(sorted(draw.choice(30, 2, replace=False).tolist())) for _ in range(12)}
    file = write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.csv", [list(pair) for pair in drawn])
    method = made("pair_triplet", pairs=file, negatives=3, pool_size=pool, skip=skip)
    found = method.renew(seen_of(random_vectors(30, seed)))
    assert_tuples_hold(found, drawn)
    assert found.tuples is not None
    assert {tuple(sorted(row)) for row in found.tuples[:, :2].tolist()} == drawn
    assert len(found.tuples) == len(drawn)
    assert found.labels.tolist() == clusters(np.array(sorted(drawn)), 30).tolist()


@pytest.mark.parametrize("how", ["neighbours", "diffusion"])
def test_mined_pairs_follow_the_rules_too(how: str) -> None:
    method = made("pair_contrastive", pairs=how, negatives=3, k=2, skip=2)
    first = method.renew(seen_of(random_vectors(60, 0)))
    assert first.tuples is not None
    assert_tuples_hold(first, {tuple(sorted(row)) for row in first.tuples[:, :2].tolist()})
    again = method.renew(seen_of(random_vectors(60, 0)))
    assert again.tuples is not None
    assert torch.equal(first.tuples, again.tuples)


@pytest.mark.parametrize(("how", "remine"), [("file", True), ("neighbours", False), ("diffusion", False)])
@pytest.mark.parametrize("seed", [0, 1])
def test_pairs_that_stay_swap_roles_and_get_new_negatives(
    how: str, remine: bool, seed: int, tmp_path: Path
) -> None:
    pairs = write_pairs(tmp_path / "pairs.csv", [[0, 1], [2, 3], [3, 4]]) if how == "file" else how
    method = made("pair_triplet", pairs=pairs, remine=remine, negatives=3, k=2)
    first = method.renew(seen_of(random_vectors(30, seed)))
    second = method.renew(seen_of(random_vectors(30, seed + 10), first, 1))
    assert first.tuples is not None
    assert second.tuples is not None
    assert torch.equal(second.tuples[:, :2], first.tuples[:, [1, 0]])
    assert not torch.equal(second.tuples[:, 2:], first.tuples[:, 2:])


def test_pairs_are_mined_anew_unless_they_stay() -> None:
    method = made("pair_triplet", pairs="neighbours", negatives=3, k=2)
    first = method.renew(seen_of(random_vectors(30, 0)))
    second = method.renew(seen_of(random_vectors(30, 1), first, 1))
    fresh = method.renew(seen_of(random_vectors(30, 1)))
    assert second.tuples is not None
    assert fresh.tuples is not None
    assert torch.equal(second.tuples, fresh.tuples)


def test_the_pool_is_drawn_by_seed_and_round(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.csv", [[0, 1], [2, 3]])
    method = made("pair_triplet", pairs=pairs, negatives=4, pool_size=12)
    vectors = random_vectors(40, 0)
    rounds = [method.renew(seen_of(vectors, number=number)).tuples for number in (0, 0, 1)]
    assert rounds[0] is not None
    assert rounds[1] is not None
    assert rounds[2] is not None
    assert torch.equal(rounds[0], rounds[1])
    assert not torch.equal(rounds[0], rounds[2])
    assert len(rounds[0][:, 2:].unique()) <= 12


def test_near_images_are_spared_from_being_negatives(tmp_path: Path) -> None:
    vectors = random_vectors(40, 0)
    pairs = write_pairs(tmp_path / "pairs.csv", [[0, 1]])
    found = made("pair_triplet", pairs=pairs, negatives=3, skip=5).renew(seen_of(vectors))
    unit = nnf.normalize(vectors, dim=1)
    order = [i for i in (unit @ unit[0]).argsort(descending=True).tolist() if i != 0]
    assert found.tuples is not None
    assert found.tuples[0, 2:].tolist() == [i for i in order[5:] if i != 1][:3]


def test_a_later_round_that_finds_too_little_leaves_the_last_one(capsys: pytest.CaptureFixture[str]) -> None:
    method = made("pair_triplet", pairs="neighbours", negatives=3, k=2, skip=0)
    first = method.renew(seen_of(random_vectors(30, 0)))
    method.cfg.skip = 29
    assert method.renew(seen_of(random_vectors(30, 1), first, 1)) is first
    assert "What the last round found stays" in capsys.readouterr().err


def test_pairs_are_used_equally_often_while_rounds_are_shorter_than_a_pass(tmp_path: Path) -> None:
    pairs = [[i, i + 1] for i in range(0, 20, 2)]
    method = made("pair_triplet", pairs=write_pairs(tmp_path / "p.csv", pairs), negatives=2, skip=0)
    last, used = None, torch.zeros(30, dtype=torch.int64)
    for number in range(5):
        last = method.renew(seen_of(random_vectors(30, number), last, number))
        assert last.tuples is not None
        sampler = TupleSampler(last.tuples, 12, seed=0)
        for step in (2 * number, 2 * number + 1):
            rows = sampler.batch(step).view(-1, 4)
            used += torch.bincount(rows[:, :2].min(dim=1).values, minlength=30)
    assert used[0:20:2].tolist() == [3] * 10


def test_triplets_stand_where_tuples_do() -> None:
    queries, positives, negatives = triplets_of(3, 1, torch.device("cpu"))
    assert torch.stack([queries, positives, negatives], dim=1).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures") / "photos"
    for number in range(NUM_IMAGES):
        file = root / f"{number % 4}" / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        photo((30 + 60 * (number % 4), 120, 220 - 50 * (number % 4)), number, (32, 32)).save(file)
    return root


@pytest.fixture(scope="module")
def table(pictures: Path) -> Path:
    """Chains of images of one colour, a pair per row."""
    names = sorted(str(file.relative_to(pictures)) for file in pictures.rglob("*.png"))
    chains = [
        f"{first},{second}"
        for first, second in pairwise(names)
        if first.split("/")[0] == second.split("/")[0]
    ]
    file = pictures.parent / "pairs.csv"
    file.write_text("\n".join(["path_a,path_b", *chains]) + "\n")
    return file


@pytest.fixture
def job(tmp_path: Path, pictures: Path, table: Path) -> Path:
    data = {"name": "folder", "root": str(pictures), "labels": "folder"}
    method = {"name": "pair_contrastive", "pairs": str(table), "negatives": 2}
    return write_job(tmp_path, pictures, data=data, method=method)


@pytest.mark.parametrize("source", ["packed", "stream"])
@pytest.mark.parametrize("how", ["table", "neighbours", "diffusion"])
def test_batches_hold_whole_tuples(
    how: str, source: str, job: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[list[int]] = []
    forward = BaseMethod.forward

    def noting(self: BaseMethod, views: list[Tensor], progress: float) -> Any:
        found.append(views[-1].tolist())
        return forward(self, views, progress)

    monkeypatch.setattr(BaseMethod, "forward", noting)
    pairs = str(table) if how == "table" else how
    more = ["batch_size=8", "accumulate=2", "epochs=4", f"source={source}", "method.skip=0", "method.k=2"]
    go(job, tmp_path / "run", f"method.pairs={pairs}", *more)
    assert len(found) == 2 * 12
    for query, positive, *negatives in found:
        assert query == positive
        assert len({query, *negatives}) == 3
    card = checkpoint.read_card(tmp_path / "run" / "checkpoint.safetensors")
    assert card.family == ("fine-tuned" if how == "table" else "self-supervised")
    losses = [row["loss"] for row in rows(tmp_path / "run" / "metrics.jsonl")]
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("how", ["table", "neighbours", "diffusion"])
def test_the_labels_of_the_data_are_out_of_sight(
    how: str, job: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []

    def noting(*arguments: Any) -> Any:
        source, reason = open_images(*arguments)
        found.append(source.labels)
        return source, reason

    monkeypatch.setattr(train, "open_images", noting)
    more = [f"method.pairs={table if how == 'table' else how}", "method.skip=0", "method.k=2", "epochs=1"]
    ours = go(job, tmp_path / "with", *more, "data.labels=folder")
    theirs = go(job, tmp_path / "without", *more, "data.labels=none")
    assert found == [None, None]
    assert same(ours, theirs)


@pytest.mark.parametrize(
    ("step", "more"),
    [
        (4, ["method.pool_size=20"]),
        (6, ["method.pairs=neighbours", "method.k=2", "method.skip=0"]),
        (7, ["method.pairs=diffusion", "method.k=2", "method.skip=0", "method.remine=false"]),
    ],
)
def test_a_killed_run_ends_as_if_nothing_had_happened(
    step: int, more: list[str], job: Path, tmp_path: Path
) -> None:
    more = [*more, "method.name=pair_triplet", "method.margin=0.5", "renew_every=0.5"]
    whole = go(job, tmp_path / "whole", *more)
    go_until(step, job, tmp_path / "killed", *more)
    assert same(go(job, tmp_path / "killed", *more, "save_every_s=0"), whole)
    states = [torch.load(tmp_path / run / "state.pt", weights_only=True) for run in ("whole", "killed")]
    for key in ("method", "optimizer", "round"):
        torch.testing.assert_close(states[0][key], states[1][key], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method.pairs=neigbours"], "method.pairs='neigbours': there is no such file"),
        (["batch_size=10"], "batch_size=10: method.name=pair_contrastive takes its images in tuples of 4"),
        (["images_per_class=2"], "images_per_class=2: method.name=pair_contrastive takes its images in tup"),
        (["accumulate=2"], "tuples of 4 images: the 2 images of a process and part of a batch"),
        (["method.negatives=0"], "method.negatives=0: must be at least 1"),
        (["method.k=0"], "method.k=0: must be at least 1"),
        (["method.pool_size=-1"], "method.pool_size=-1: must be at least 0"),
        (["method.skip=-2"], "method.skip=-2: must be at least -1"),
        (["method.margin=0"], "method.margin=0"),
        (["method.negatives=4", "batch_size=6"], "method.negatives=4: an image has only 3 clusters to take"),
        (
            ["batch_size=24", "method.negatives=1", "method.pairs=neighbours", "method.k=1"],
            "batch_size=24 needs 8 tuples of 3 images, and there are 6",
        ),
    ],
)
def test_a_mistake_is_one_line(overrides: list[str], words: str, job: Path, tmp_path: Path) -> None:
    assert words in user_error(job, tmp_path / "run", *overrides)
