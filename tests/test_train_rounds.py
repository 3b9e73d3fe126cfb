"""Labels that a run makes for itself: when, from what, for whom, and exactly again after a kill."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up_photos import photo
from method_makers import in_tuples, needs_labels
from short_runs import go, go_until, rows, same, user_error, write_job
from torch import Tensor
from torch.nn import functional as nnf

from ssl_retrieval import backbones, checkpoint, feed, plugins, pseudo_labels, train_images
from ssl_retrieval.data import folder
from ssl_retrieval.methods.base import BaseMethod
from ssl_retrieval.methods.labelled import LabelledMethod
from ssl_retrieval.network_input import InputSpec
from ssl_retrieval.packing import pack
from ssl_retrieval.rounds import Round, Seen
from ssl_retrieval.streaming import Stream
from ssl_retrieval.train_rounds import Rounds, embed_all

LABELLED = [name for name in plugins.known("method") if needs_labels(name) and not in_tuples(name)]
NUM_IMAGES, STEPS = 24, 12
"""Twenty-four photos, four a step, twice."""


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos as large as views are, so that a pack and a stream show the same; in folders that lie."""
    root = tmp_path_factory.mktemp("squares") / "photos"
    for number in range(NUM_IMAGES):
        file = root / f"{number % 2}" / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        photo((40 + 70 * (number % 3), 120, 200 - 50 * (number % 4)), number, (32, 32)).save(file)
    return root


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, squares: Path) -> Path:
    data = {"name": "folder", "root": str(squares), "labels": "folder"}
    method = {"name": "supcon", "labels": "clusters", "clusters": 5}
    return write_job(tmp_path_factory.mktemp("job"), squares, data=data, method=method, images_per_class=2)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Seen]:
    """What each round of the runs of a test began with."""
    found: list[Seen] = []
    renew = LabelledMethod.renew

    def noting(self: LabelledMethod, seen: Seen) -> Round:
        found.append(seen)
        return renew(self, seen)

    monkeypatch.setattr(LabelledMethod, "renew", noting)
    return found


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The labels of each step of the runs of a test."""
    found: list[list[int]] = []
    forward = BaseMethod.forward

    def noting(self: BaseMethod, views: list[Tensor], progress: float) -> Any:
        found.append(views[-1].tolist())
        return forward(self, views, progress)

    monkeypatch.setattr(BaseMethod, "forward", noting)
    return found


def numbered(monkeypatch: pytest.MonkeyPatch, tuples: Tensor | None = None) -> list[Seen]:
    """Let every image's label be the round's number, or with tuples its own."""
    found: list[Seen] = []

    def renew(self: LabelledMethod, seen: Seen) -> Round:
        found.append(seen)
        if tuples is not None:
            return Round(torch.arange(len(seen.paths)), tuples)
        return Round(torch.full((len(seen.paths),), len(found) - 1))

    monkeypatch.setattr(LabelledMethod, "renew", renew)
    return found


@pytest.mark.parametrize(
    ("source", "every", "wanted"),
    [
        ("packed", None, [0] * 6 + [1] * 6),
        ("stream", "0.5", [n // 3 for n in range(STEPS)]),
        ("packed", "0.01", list(range(STEPS))),
        ("packed", "9", [0] * STEPS),
    ],
)
def test_rounds_begin_on_time_and_no_step_gets_the_labels_of_another(
    source: str,
    every: str | None,
    wanted: list[int],
    job: Path,
    tmp_path: Path,
    steps: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbered(monkeypatch)
    more = [] if every is None else [f"renew_every={every}"]
    go(job, tmp_path / "run", "images_per_class=0", "method.name=contrastive", f"source={source}", *more)
    assert steps == [[number] * 4 for number in wanted]


def test_batches_of_tuples_hold_them_whole_and_in_order(
    job: Path, tmp_path: Path, steps: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tuples = torch.randperm(NUM_IMAGES, generator=torch.Generator().manual_seed(0)).reshape(-1, 2)
    numbered(monkeypatch, tuples)
    go(job, tmp_path / "run", "method.name=contrastive", "accumulate=2")
    assert len(steps) == 2 * STEPS
    for epoch in range(2):
        shown = steps[epoch * STEPS : (epoch + 1) * STEPS]
        assert sorted(shown) == sorted(tuples.tolist())
    assert steps[:STEPS] != steps[STEPS:], "each round is shuffled anew"


def test_tuples_that_parts_of_a_batch_would_cut_are_named(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbered(monkeypatch, torch.arange(NUM_IMAGES).reshape(-1, 4))
    said = user_error(job, tmp_path / "run", "accumulate=2")
    assert said.startswith("tuples of 4 images: the 2 images of a process and part of a batch")


def test_a_look_sees_all_images_plain_and_leaves_no_trace(squares: Path, tmp_path: Path) -> None:
    module = plugins.find("method", "supcon")
    method = module.Method(module.Config(dim=8), backbones.make("test_resnet", image_size=32))
    method.set_mode("train")
    spec = InputSpec(32, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    images = folder.images(folder.Config(root=str(squares)))
    packed = pack(images, 32, tmp_path / "images.npy", "fail")
    pixels = packed.tensor().float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    method.eval()
    with torch.no_grad():
        wanted = nnf.normalize(method.head(method.encoder, (pixels - mean) / std), dim=1)
    method.set_mode("train")
    before = {key: value.clone() for key, value in method.state_dict().items()}
    modes, random = [m.training for m in method.modules()], torch.get_rng_state()
    for source in (packed, Stream(images, seed=0, num_workers=0)):
        shown, _ = feed.make(source, method.views(32), 0, torch.device("cpu"))
        vectors = embed_all(method, shown, spec)
        np.testing.assert_allclose(vectors, wanted.numpy(), rtol=0, atol=1e-5)
    assert same(method.state_dict(), before)
    assert modes == [m.training for m in method.modules()]
    assert torch.equal(random, torch.get_rng_state())


def test_the_labels_of_the_data_are_out_of_sight(
    job: Path, tmp_path: Path, looks: list[Seen], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []
    real = train_images.open_images

    def noting(*arguments: Any) -> Any:
        source, reason = real(*arguments)
        found.append(source.labels)
        return source, reason

    monkeypatch.setattr("ssl_retrieval.train.open_images", noting)
    go(job, tmp_path / "with", "data.labels=folder")
    go(job, tmp_path / "without", "data.labels=none")
    assert found == [None, None]
    states = [torch.load(tmp_path / run / "state.pt", weights_only=True) for run in ("with", "without")]
    assert torch.equal(states[0]["round"]["labels"], states[1]["round"]["labels"])
    assert same(states[0]["method"], states[1]["method"])
    assert len(looks) == 4
    assert checkpoint.read_card(tmp_path / "with" / "checkpoint.safetensors").family == "self-supervised"


@pytest.mark.parametrize("name", LABELLED)
def test_every_objective_learns_from_clusters(
    name: str, job: Path, tmp_path: Path, looks: list[Seen]
) -> None:
    fresh = backbones.make("test_resnet", image_size=32).state_dict()
    trained = go(job, tmp_path / "run", f"method.name={name}")
    assert not any(torch.equal(trained[key], fresh[key]) for key in fresh if key.endswith("conv1.weight"))
    found = [row["loss"] for row in rows(tmp_path / "run" / "metrics.jsonl")]
    assert len(found) == STEPS
    assert np.isfinite(found).all()
    assert [seen.last is None for seen in looks] == [True, False]


@pytest.mark.parametrize(
    ("name", "step"), [("softmax", 4), ("multi_similarity", 6), ("subcenter_arcface", 7)]
)
def test_a_killed_run_ends_as_if_nothing_had_happened(
    name: str, step: int, job: Path, tmp_path: Path, steps: list[list[int]]
) -> None:
    more = [f"method.name={name}", "renew_every=0.5"]
    if name == "multi_similarity":
        more += ["method.memory=16", "method.memory_start=0"]
    whole = go(job, tmp_path / "whole", *more)
    wanted = list(steps)
    steps.clear()
    go_until(step, job, tmp_path / "killed", *more)
    assert same(go(job, tmp_path / "killed", *more, "save_every_s=0"), whole)
    again = len(steps) - STEPS
    assert steps[: step + again] == wanted[: step + again]
    assert steps[step + again :] == wanted[step:]
    states = [torch.load(tmp_path / run / "state.pt", weights_only=True) for run in ("whole", "killed")]
    for key in ("method", "optimizer", "round"):
        torch.testing.assert_close(states[0][key], states[1][key], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["softmax", "arcface", "proxy_nca", "subcenter_arcface"])
def test_vectors_of_classes_begin_at_the_centres_of_clusters(
    name: str, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[Tensor, float]] = []
    real = Rounds._begin

    def vectors_of_classes(method: BaseMethod) -> Tensor:
        criterion = method.get_submodule("criterion")
        key, values = next((n, p.detach()) for n, p in criterion.named_parameters() if n != "bias")
        return (values.T if key == "W" else values).clone()

    def noting(self: Rounds, number: int, batches: Any) -> Any:
        before = vectors_of_classes(self.method)
        found = real(self, number, batches)
        vectors, now = embed_all(self.method, batches.feed, self.spec), vectors_of_classes(self.method)
        assert self.state.round is not None
        assert self.state.round.centres is None
        centres = torch.from_numpy(pseudo_labels.centres(vectors, self.state.round.labels.numpy()))
        taken.append((nnf.normalize(now, dim=1) @ centres.T, float(now.norm() / before.norm())))
        known = self.optimizer.state
        assert not any(p in known for p in self.method.get_submodule("criterion").parameters())
        return found

    monkeypatch.setattr(Rounds, "_begin", noting)
    go(job, tmp_path / "run", f"method.name={name}")
    assert len(taken) == 2
    for cosines, growth in taken:
        own = torch.arange(5).repeat_interleave(len(cosines) // 5)
        assert torch.equal(cosines.argmax(dim=1), own)
        if len(own) == 5:
            torch.testing.assert_close(cosines[own, own], torch.ones(5))
        # As long as they were on average; the square of lengths that differ is a little more.
        assert growth == pytest.approx(1, abs=0.05)


def test_a_memory_forgets_vectors_of_the_last_round(job: Path, tmp_path: Path) -> None:
    more = ["method.memory=64", "method.memory_start=0", "renew_every=0.5", "epochs=1"]
    go(job, tmp_path / "run", *more)
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert int(state["method"]["memory.num_added"]) == 3 * 4


def test_a_later_round_that_makes_no_batches_leaves_the_last_one(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def renew(self: LabelledMethod, seen: Seen) -> Round:
        labels = torch.arange(NUM_IMAGES)
        return Round(labels // 4 if seen.last is None else labels)

    monkeypatch.setattr(LabelledMethod, "renew", renew)
    whole = go(job, tmp_path / "run")
    said = capsys.readouterr().err
    assert "What the last round found stays" in said
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert state["round"]["number"] == 1
    assert torch.equal(state["round"]["labels"], torch.arange(NUM_IMAGES) // 4)
    go_until(8, job, tmp_path / "killed")
    assert same(go(job, tmp_path / "killed", "save_every_s=0"), whole)


def test_each_round_is_described(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    go(job, tmp_path / "run")
    said = capsys.readouterr().err
    assert "step 0: round 0" in said
    assert "5 clusters of" in said
    assert "step 6: round 1" in said
    assert "with the last round" in said


def test_the_number_of_clusters_is_chosen_by_the_images(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    go(job, tmp_path / "run", "method.clusters=null", "epochs=1")
    assert "method.clusters=2 (ten images in each on average)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method.clusters=25"], "method.clusters=25: there are 24 training images"),
        (["method.clusters=1"], "method.clusters=1: at least 2"),
        (["method.labels=given"], "method.clusters=5: at least 2, together with method.labels=clusters"),
        (["method.labels=cluster"], "method.labels='cluster': use one of given, clusters"),
        (
            ["method.name=softmax", "method.num_classes=5"],
            "method.num_classes=5: with method.labels=clusters",
        ),
        (["renew_every=0"], "renew_every=0"),
        (["method.labels=given", "method.clusters=null", "renew_every=1"], "makes no labels of its own here"),
        (["batch_size=16", "images_per_class=8"], "batch_size=16 with images_per_class=8 needs 2 classes"),
    ],
)
def test_a_mistake_is_one_line(overrides: list[str], words: str, job: Path, tmp_path: Path) -> None:
    assert words in user_error(job, tmp_path / "run", *overrides)
