"""Anchors: against loops, around every method, in runs that stop and go on, and in two processes."""

import math
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from method_makers import IMAGE_SIZE, method_of, needs_labels, views_for
from safetensors.torch import save_file
from short_runs import STEPS, go, go_until, rows, same, user_error, write_job, write_many_sizes
from test_distributed import ROUNDING, assert_near, smooth
from test_train_step import let_compile
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from ssl_retrieval import backbones, distributed, plugins
from ssl_retrieval.anchor import AnchorConfig, Anchored, similarity_divergence, watched

METHODS = plugins.known("method")
VIEWS_SEEN = {"mae": 1, "ibot": 1, "moco_v2": 1}
"""Full-size views that are anchored, where that is not both: others are masked, or the teacher's."""


def naive_divergence(before: np.ndarray, now: np.ndarray, temperature: float) -> float:
    """KL(start ‖ trained), written out: float [V, B, D] each."""
    views, images, _ = before.shape
    total = 0.0
    for v in range(views):
        for i in range(images):
            others = [(w, j) for w in range(views) for j in range(images) if j != i]
            shares = []
            for vectors in (before, now):
                unit = vectors / np.linalg.norm(vectors, axis=2, keepdims=True)
                weights = [math.exp(float(unit[v, i] @ unit[w, j]) / temperature) for w, j in others]
                shares.append([weight / sum(weights) for weight in weights])
            total += sum(p * math.log(p / q) for p, q in zip(*shares, strict=True))
    return total / (views * images)


@pytest.mark.parametrize("shape", [(1, 2, 3), (1, 6, 4), (2, 5, 3), (3, 2, 2)])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_the_divergence_is_that_of_a_loop(shape: tuple[int, int, int], temperature: float) -> None:
    draw = np.random.default_rng(sum(shape))
    before, now = draw.normal(size=shape), draw.normal(size=shape)
    start, trained = (torch.from_numpy(values).float() for values in (before, now))
    wanted = naive_divergence(before, now, temperature)
    found = similarity_divergence(start, trained, temperature).item()
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_the_divergence_sees_no_lengths_no_turns_and_not_how_views_of_an_image_meet() -> None:
    rows_ = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    turned = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))[0]
    assert similarity_divergence(rows_, 7 * rows_ @ turned, 0.05).item() == pytest.approx(0, abs=1e-4)
    one = rows_[:, :1]
    # Of one image alone there is nothing to say, however its views lie.
    assert similarity_divergence(one, -one, 0.05).item() == 0


def test_a_view_whose_vectors_are_all_alike_has_a_finite_gradient() -> None:
    now = torch.ones(1, 4, 3, requires_grad=True)
    similarity_divergence(torch.eye(4, 3)[None], now, 0.01).backward()
    assert now.grad is not None
    assert now.grad.isfinite().all()


def shaken(name: str) -> tuple[Any, nn.Module]:
    """A method whose encoder has left its start, and the start."""
    method = method_of(name)
    start = backbones.copied(method.encoder)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in method.encoder.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return method, start


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_a_step_with_all_anchors(name: str) -> None:
    method, start = shaken(name)
    # Then vectors do not depend on what else is in the batch, and can be computed one view at a time.
    method.encoder.eval()
    views = views_for(method)
    whole = [v for v in views if v.ndim == 4 and v.shape[-1] == IMAGE_SIZE]
    whole = whole[: 1 if needs_labels(name) else VIEWS_SEEN.get(name, 2)]
    before_digest = backbones.weights_digest(start)
    cfg = AnchorConfig(similarity=3.0, feature=2.0, weights=0.5)
    anchored = Anchored(method, start, cfg, IMAGE_SIZE)
    with torch.no_grad():
        before, now = (
            torch.stack([backbones.own_pooling(network, view) for view in whole])
            for network in (start, method.encoder)
        )
        similarity = naive_divergence(before.double().numpy(), now.double().numpy(), 0.05)
        cosines = torch.nn.functional.cosine_similarity(before, now, dim=2)
        squares = sum(
            float((p - q).double().square().sum())
            for p, q in zip(method.encoder.parameters(), start.parameters(), strict=True)
            if p.requires_grad
        )
    plain_loss, plain_logs = shaken_loss(name, views)
    loss, logs = anchored(views, 0.0)
    assert logs.keys() == plain_logs.keys() | {"anchor_similarity", "anchor_feature", "anchor_weights"}
    assert logs["anchor_similarity"].item() == pytest.approx(similarity, rel=1e-3, abs=1e-6)
    assert logs["anchor_feature"].item() == pytest.approx(1 - float(cosines.mean()), rel=1e-3, abs=1e-6)
    assert logs["anchor_weights"].item() == pytest.approx(squares / 2, rel=1e-4)
    added = 3 * logs["anchor_similarity"] + 2 * logs["anchor_feature"] + 0.5 * logs["anchor_weights"]
    assert loss.item() == pytest.approx(plain_loss + added.item(), rel=1e-4)
    loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in start.parameters())
    assert backbones.weights_digest(start) == before_digest
    assert any(p.grad is not None and p.grad.any() for p in method.encoder.parameters())
    assert not {"forward_features", "forward_head"} & vars(method.encoder).keys()


def shaken_loss(name: str, views: list[Tensor]) -> tuple[float, dict[str, Tensor]]:
    method, _ = shaken(name)
    method.encoder.eval()
    loss, logs = method(views, 0.0)
    return loss.item(), logs


def test_the_gradient_is_that_of_the_sum() -> None:
    gradients = []
    for similarity in (0.0, 1.0, 2.0):
        method, start = shaken("simclr")
        loss, _ = Anchored(method, start, AnchorConfig(similarity=similarity), IMAGE_SIZE)(
            views_for(method), 0.0
        )
        loss.backward()
        gradients.append(
            torch.cat([p.grad.flatten() for p in method.encoder.parameters() if p.grad is not None])
        )
    plain, once, twice = gradients
    assert not torch.allclose(plain, once)
    torch.testing.assert_close(twice - plain, 2 * (once - plain), rtol=1e-3, atol=1e-5)


def test_a_watched_network_computes_and_is_left_as_before_even_after_an_error() -> None:
    network = backbones.make("test_resnet", image_size=32)
    features = network.forward_features
    network.forward_features = lambda images: features(images)  # type: ignore[operator,assignment]
    own = network.forward_features
    images = torch.rand(3, 3, 32, 32)
    with pytest.raises(ZeroDivisionError), watched(network, 32):
        _ = 1 / 0
    assert network.forward_features is own
    assert "forward_head" not in vars(network)
    with watched(network, 32) as seen:
        vectors = backbones.own_pooling(network, images)
        backbones.own_pooling(network, images[..., :16, :16])
        last_map = network.forward_features(images)  # type: ignore[operator]
    assert [len(views) for views, _ in seen] == [3, 3]
    assert seen[0][1] is vectors
    assert torch.equal(seen[1][1], vectors)
    assert last_map.ndim == 4


# Runs


@pytest.fixture(scope="module")
def start_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that count as learned; read only."""
    file = tmp_path_factory.mktemp("start") / "start.safetensors"
    save_file(backbones.make("test_resnet", image_size=32, seed=3).state_dict(), file)
    return file


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, start_file: Path) -> Path:
    folder = tmp_path_factory.mktemp("job")
    photos = write_many_sizes(folder / "photos")
    model = {"name": "test_resnet", "image_size": 32, "stem": "standard", "weights": str(start_file)}
    return write_job(folder, photos, model=model)


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory, job: Path) -> dict[str, Tensor]:
    """The weights of a run without anchors; read only."""
    return go(job, tmp_path_factory.mktemp("free") / "run")


def network_with(weights: dict[str, Tensor]) -> nn.Module:
    network = backbones.make("test_resnet", image_size=32)
    network.load_state_dict(weights)
    return network


def change(weights: dict[str, Tensor], anchor: str) -> float:
    """How far a network has left the start in what an anchor holds, on images that it has not seen."""
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    start, end = backbones.make("test_resnet", image_size=32, seed=3), network_with(weights)
    with torch.inference_mode():
        if anchor == "weights":
            return sum(float((weights[n] - p).square().sum()) for n, p in start.named_parameters())
        both = [backbones.own_pooling(network, images) for network in (start, end)]
        if anchor == "similarity":
            return similarity_divergence(both[0][None], both[1][None], 0.05).item()
        return float((1 - torch.nn.functional.cosine_similarity(both[0], both[1])).mean())


def test_anchors_of_weight_zero_are_no_anchors(job: Path, free: dict[str, Tensor], tmp_path: Path) -> None:
    assert same(go(job, tmp_path / "run", "anchor.similarity=0", "anchor.temperature=1"), free)
    assert not [name for row in rows(tmp_path / "run" / "metrics.jsonl") for name in row if "anchor" in name]


@pytest.mark.parametrize("anchor", ["similarity", "feature", "weights"])
def test_a_heavy_anchor_keeps_what_was_there(
    job: Path, free: dict[str, Tensor], tmp_path: Path, anchor: str
) -> None:
    # By plain gradient descent a heavy term moves weights as heavily, so the rate must fit the weight.
    settings = ["model.batchnorm=eval", "optimizer.lr=3e-4", "epochs=4"]
    loose = change(go(job, tmp_path / "free", *settings), anchor)
    held = change(go(job, tmp_path / "held", *settings, f"anchor.{anchor}=1000"), anchor)
    assert held < 0.5 * loose
    logged = [row[f"anchor_{anchor}"] for row in rows(tmp_path / "held" / "metrics.jsonl")]
    assert logged[0] == pytest.approx(0, abs=1e-5)
    assert max(logged) > 0


@pytest.mark.parametrize(
    "settings",
    [
        ["anchor.similarity=1", "accumulate=2"],
        ["anchor.feature=1", "anchor.weights=0.1", "anchor.interpolate=0.4"],
        ["anchor.similarity=1", "method.name=byol"],
    ],
)
def test_a_stopped_run_with_anchors_ends_as_if_nothing_had_happened(
    job: Path, tmp_path: Path, settings: list[str]
) -> None:
    whole = go(job, tmp_path / "whole", *settings)
    go_until(3, job, tmp_path / "run", *settings)
    assert same(go(job, tmp_path / "run", *settings), whole)
    ended = [[row["loss"] for row in rows(tmp_path / run / "metrics.jsonl")] for run in ("whole", "run")]
    assert ended[0] == ended[1]
    assert len(ended[0]) == STEPS


def test_a_compiled_network_is_anchored_as_a_plain_one(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["anchor.similarity=1", "anchor.interpolate=0.5", "epochs=1"]
    seen: list[str] = []

    def compiler(function: Any, **how: Any) -> Any:
        seen.append(function.__name__)
        return function

    let_compile(monkeypatch, compiler)
    plain = go(job, tmp_path / "plain", "compile=views", *settings)
    assert "forward_features" not in seen
    assert same(go(job, tmp_path / "run", "compile=all", *settings), plain)
    # The network in training, and the start.
    assert seen.count("forward_features") == 2


def test_another_start_is_refused_on_resume(tmp_path: Path, job: Path, start_file: Path) -> None:
    mine = tmp_path / "start.safetensors"
    mine.write_bytes(start_file.read_bytes())
    settings = [f"model.weights={mine}", "anchor.similarity=1"]
    go_until(3, job, tmp_path / "run", *settings)
    save_file(backbones.make("test_resnet", image_size=32, seed=4).state_dict(), mine)
    said = user_error(job, tmp_path / "run", *settings)
    assert said.startswith(f"{tmp_path / 'run'}: model.weights are no longer those that the run began with")


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (["anchor.similarity=-1"], ["anchor.similarity=-1", "negative"]),
        (["anchor.feature=.inf"], ["anchor.feature=inf"]),
        (["anchor.temperature=0"], ["anchor.temperature=0"]),
        (["anchor.interpolate=0"], ["anchor.interpolate=0", "at most 1"]),
        (["anchor.interpolate=1.5"], ["anchor.interpolate=1.5"]),
        (["anchor.similarity=1", "model.weights=random"], ["random", "nothing to keep"]),
        (["anchor.interpolate=0.5", "model.weights=random"], ["random", "nothing to keep"]),
        (["anchor.lambda=1"], ["anchor.lambda", "similarity"]),
        (["anchor.weights=1", "model.adapter=lora"], ["anchor.weights=1", "model.adapter=lora"]),
    ],
)
def test_a_mistake_is_one_line(job: Path, tmp_path: Path, settings: list[str], names: list[str]) -> None:
    said = user_error(job, tmp_path / "run", *settings)
    assert all(name in said for name in names), said


def test_a_projection_that_the_start_lacks_cannot_be_interpolated(
    job: Path, tmp_path: Path, photos: Path
) -> None:
    method = ["method.name=arcface", "method.dim=4", f"data.root={photos}", "data.labels=folder"]
    said = user_error(job, tmp_path / "run", "anchor.interpolate=0.5", *method)
    assert said.startswith("anchor.interpolate=0.5: method.dim=4 adds a projection")


# Two processes


def gradients(name: str, world: int, rank: int) -> dict[str, Any]:
    """The loss and gradients of one anchored step on this rank's rows, and what is logged."""
    torch.set_num_threads(1)
    method, start = shaken(name)
    smooth(method)
    smooth(start)
    distributed.synchronise_batchnorm(method, torch.device("cpu"))
    module: nn.Module = Anchored(
        method, start, AnchorConfig(similarity=1.0, feature=1.0, weights=0.1), IMAGE_SIZE
    )
    if world > 1:
        module = distributed.parallel(module)
    mine = slice(rank * 8 // world, (rank + 1) * 8 // world)
    loss, logs = module([view[mine] for view in views_for(method)], 0.1)
    loss.backward()
    return {
        "loss": distributed.mean(loss.detach()).item(),
        "logs": {key: value.item() for key, value in logs.items() if key.startswith("anchor_")},
        "gradients": {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None},
    }


TOGETHER = ["simclr", "dino", "mae"]


def worker(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    distributed.start(torch.device("cpu"))
    for name in TOGETHER:
        torch.save(gradients(name, 2, rank), Path(folder) / f"{name}-{rank}.pt")
    distributed.stop()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two-processes")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(worker, (port, str(folder)), nprocs=2)
    return folder


@pytest.mark.parametrize("name", TOGETHER)
def test_two_processes_are_held_as_one_is(name: str, two: Path) -> None:
    alone = gradients(name, 1, 0)
    for rank in range(2):
        together = torch.load(two / f"{name}-{rank}.pt", weights_only=True)
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-3)
        assert together["logs"] == pytest.approx(alone["logs"], rel=1e-3, abs=1e-6)
        assert_near(together["gradients"], alone["gradients"], 2 * ROUNDING)
