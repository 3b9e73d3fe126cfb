"""Compiled and uncompiled steps, and losses that are looked at late: the same run in the end."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from short_runs import STEPS, go, go_until, rows, same, user_error, write_job, write_many_sizes
from torch import Tensor, nn

from ssl_retrieval import augment, backbones, blur, checkpoint, compiling, ema, train
from ssl_retrieval.export import export
from ssl_retrieval.extractors.checkpoint import Config as ExtractorConfig
from ssl_retrieval.extractors.checkpoint import Extractor
from ssl_retrieval.images import list_images
from ssl_retrieval.methods.base import StepOutput
from ssl_retrieval.methods.simclr import Method
from ssl_retrieval.sampler import Sampler
from ssl_retrieval.train_step import compile_network

COMPILE = torch.compile
VIEW_PARTS = [
    (augment, "_compiled_color"),
    (augment, "_compiled_normalise"),
    (blur, "_compiled_down"),
    (blur, "_compiled_across"),
]
"""What the views compile; torch.compile was given these functions when the files were imported."""


@pytest.fixture(scope="module")
def photos_of_many_sizes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen photos; read only."""
    return write_many_sizes(tmp_path_factory.mktemp("many-sizes") / "photos")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, photos_of_many_sizes: Path) -> Path:
    return write_job(tmp_path_factory.mktemp("job"), photos_of_many_sizes)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, job: Path) -> dict[str, Tensor]:
    """The weights of a run without a compiler."""
    return go(job, tmp_path_factory.mktemp("plain") / "run")


def let_compile(monkeypatch: pytest.MonkeyPatch, compiler: Callable[..., Any]) -> None:
    """Put another compiler in torch's place, as if this process had begun with it."""
    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(compiling, "_failed", False)
    for module, name in VIEW_PARTS:
        monkeypatch.setattr(module, name, compiling.compiled(getattr(module, name).__wrapped__))


def no_compiler(function: Callable[..., Any], **how: Any) -> Callable[..., Any]:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("Failed to find\na C++ compiler")

    return fail


def quick_compiler(function: Callable[..., Any], **how: Any) -> Callable[..., Any]:
    """What torch.compile does but for making kernels."""
    return COMPILE(function, dynamic=how["dynamic"], backend="eager")


# A compiler that fails


@pytest.mark.parametrize("what", ["views", "all", "graphs"])
def test_a_run_whose_compiler_fails_is_a_run_without_one(
    job: Path,
    plain: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    what: str,
) -> None:
    let_compile(monkeypatch, no_compiler)
    assert same(go(job, tmp_path / "run", f"compile={what}"), plain)
    said = capsys.readouterr().err
    assert said.count("torch.compile does not work here, going on without it: Failed to find a C++") == 1
    assert f"torch.compile: {what} (as asked for)" in said
    assert json.loads((tmp_path / "run" / "runtime.json").read_text())["compile"] == what


def test_a_streamed_run_whose_compiler_fails_is_one_without(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = go(job, tmp_path / "plain", "source=stream")
    let_compile(monkeypatch, no_compiler)
    assert same(go(job, tmp_path / "run", "source=stream", "compile=views"), plain)


def test_a_network_that_does_not_compile_does_not_stop_a_run(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_views(function: Callable[..., Any], **how: Any) -> Callable[..., Any]:
        return no_compiler(function) if function.__name__ == "forward_features" else function

    let_compile(monkeypatch, only_views)
    go(job, tmp_path / "run", "compile=all")
    assert not compiling.works()
    assert len(rows(tmp_path / "run" / "metrics.jsonl")) == STEPS


# The choice


def test_what_was_chosen_to_be_compiled_holds_on_resume(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, str, float, bool]] = []

    def choose(requested: str, device: torch.device, pixels: float, is_costly: bool) -> tuple[str, str]:
        asked.append((requested, device.type, pixels, is_costly))
        return "views", "a test"

    # Not a compiler, but what it is given: the last bits tell it from views made one by one.
    let_compile(monkeypatch, lambda function, **how: function)
    monkeypatch.setattr(compiling, "choose", choose)
    go_until(3, job, tmp_path / "run", "compile=auto")
    # Two views of 32 px of each of sixteen photos in each of two epochs.
    assert asked == [("auto", "cpu", 2 * 32 * 32 * 16 * 2, True)]
    assert "torch.compile: views (a test)" in capsys.readouterr().err
    whole = go(job, tmp_path / "whole", "compile=auto")
    monkeypatch.setattr(compiling, "choose", lambda *arguments: ("none", "another time"))
    assert same(go(job, tmp_path / "run", "compile=auto"), whole)
    assert "views compiled" in capsys.readouterr().err
    assert not same(go(job, tmp_path / "none", "compile=auto"), whole)


def test_a_run_of_before_there_was_such_a_choice_goes_on(
    job: Path, plain: dict[str, Tensor], tmp_path: Path
) -> None:
    go_until(3, job, tmp_path / "run")
    (tmp_path / "run" / "runtime.json").write_text('{"precision": "fp32", "memory_format": "contiguous"}')
    assert same(go(job, tmp_path / "run"), plain)


# A compiled network


def test_a_compiled_run_leaves_a_checkpoint_like_any_other(
    job: Path, plain: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_compile(monkeypatch, quick_compiler)
    out = tmp_path / "run"
    watched = ["compile=all", "epochs=1", "monitor.every_epochs=1", "monitor.max_images=6"]
    weights = go(job, out, *watched)
    assert compiling.works()
    assert weights.keys() == plain.keys()
    assert [row["step"] for row in rows(out / "monitor.jsonl")] == [0, 4]
    model, card, _ = checkpoint.load(out / "checkpoint.safetensors")
    assert card.step == 4
    assert same(model.state_dict(), weights)
    extractor = Extractor(ExtractorConfig(path=str(out)))
    batch = torch.rand(3, 3, 32, 32)
    with torch.inference_mode():
        own = backbones.own_pooling(model, extractor.normalize(batch))
        torch.testing.assert_close(extractor(batch), own, rtol=1e-3, atol=1e-5)
    assert (export(out, tmp_path / "exported") / "README.md").is_file()


def compiled_and_plain(name: str, graphs: bool) -> list[nn.Module]:
    patch = 8 if "vit" in name else None
    both = [backbones.make(name, image_size=32, seed=1, patch_size=patch) for _ in range(2)]
    compile_network(both[0], graphs)
    return both


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_compiled_network_computes_the_same_under_the_same_names(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_compile(monkeypatch, quick_compiler)
    network, plain = compiled_and_plain(name, graphs=False)
    images = torch.rand(4, 3, 32, 32)
    for training in (True, False):
        first, second = (backbones.own_pooling(each.train(training), images) for each in (network, plain))
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)
        first.sum().backward()
        second.sum().backward()
    assert compiling.works()
    assert network.state_dict().keys() == plain.state_dict().keys()
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_what_a_replayed_graph_gave_outlives_the_next_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str | None] = []

    def replaying(function: Callable[..., Any], **how: Any) -> Callable[..., Any]:
        modes.append(how["mode"])
        memory: list[Tensor] = []

        def replay(images: Tensor) -> Tensor:
            memory[:] = [memory[0].copy_(function(images)) if memory else function(images)]
            return memory[0]

        return replay

    let_compile(monkeypatch, replaying)
    network, plain = (each.eval() for each in compiled_and_plain("test_vit", graphs=True))
    assert modes[-1] == "reduce-overhead"
    images = torch.rand(2, 4, 3, 32, 32)
    with torch.no_grad():
        # A ViT's pooled token is a part of its last map.
        made = [backbones.own_pooling(network, batch) for batch in images]
        for first, batch in zip(made, images, strict=True):
            assert torch.equal(first, backbones.own_pooling(plain, batch))


# Teachers


def test_the_target_moves_once_per_step_after_the_update_by_the_papers_momentum(
    photos_of_many_sizes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, Tensor]] = []
    update = ema.update

    def note(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
        seen.append((momentum, torch.cat([p.detach().flatten() for p in student.parameters()])))
        update(teacher, student, momentum)

    monkeypatch.setattr(ema, "update", note)
    method = {"name": "byol", "hidden_dim": 16, "output_dim": 8, "momentum": 0.9}
    optimizer = {"name": "sgd", "lr": 0.1, "warmup": 0.0}
    job = write_job(tmp_path, photos_of_many_sizes, method=method, optimizer=optimizer)
    # Both parts of a batch make one step.
    end = go(job, tmp_path / "run", "accumulate=2")
    networks = seen[::2]
    # tau = 1 - (1 - tau_0) (cos(pi k / K) + 1) / 2 at step k of K, counted from 0 as in the authors' code.
    wanted = [1 - 0.1 * (math.cos(math.pi * k / STEPS) + 1) / 2 for k in range(STEPS)]
    assert [momentum for momentum, _ in networks] == pytest.approx(wanted, abs=1e-12)
    assert [momentum for momentum, _ in seen[1::2]] == pytest.approx(wanted, abs=1e-12)
    names = [name for name, _ in backbones.make("test_resnet", image_size=32).named_parameters()]
    # What the last update saw is what the last step left.
    assert torch.equal(networks[-1][1], torch.cat([end[name].flatten() for name in names]))
    assert len({float(weights.sum()) for _, weights in networks}) == STEPS


# Losses that are not finite


@pytest.fixture
def bad_step(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the loss of step 3 be NaN; give the steps (from 1) that were taken."""
    taken: list[int] = []
    step = Method.step

    def step_or_nan(self: Method, views: list[Tensor], progress: float) -> StepOutput:
        output = step(self, views, progress)
        taken.append(round(progress * STEPS) + 1)
        return StepOutput(output.loss * float("nan"), output.logs) if taken[-1] == 3 else output

    monkeypatch.setattr(Method, "step", step_or_nan)
    return taken


def assert_names_step_3(text: str, job: Path, out: Path, photos: Path) -> None:
    paths = [list_images(photos)[i] for i in Sampler(16, 4, 0).batch(2).tolist()]
    assert text.startswith(f"{out}: the loss is nan at step 3 (batch with {', '.join(paths[:3])}, …")
    assert json.loads((out / "not_finite.json").read_text()) == {"step": 3, "batch": paths}


def test_on_a_cpu_a_bad_loss_stops_the_run_at_once(
    job: Path, tmp_path: Path, bad_step: list[int], photos_of_many_sizes: Path
) -> None:
    text = user_error(job, tmp_path / "run", "log_every=100")
    assert bad_step == [1, 2, 3]
    assert_names_step_3(text, job, tmp_path / "run", photos_of_many_sizes)
    assert "nothing was saved before" in text


@pytest.mark.parametrize(
    ("settings", "seen_at"),
    [
        # Read where the epoch's line is said, at the latest.
        (["log_every=100"], 4),
        # The monitor looks at weights before anything is written down, and they are bad by then.
        (["log_every=100", "monitor.every_steps=3", "monitor.max_images=4"], 3),
        (["log_every=100", "save_every_s=0"], 3),
    ],
)
def test_a_bad_loss_that_is_read_late_is_named_by_its_own_step(
    job: Path,
    tmp_path: Path,
    bad_step: list[int],
    photos_of_many_sizes: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: list[str],
    seen_at: int,
) -> None:
    monkeypatch.setattr(train._Run, "_reads_every_step", lambda self: False)
    out = tmp_path / "run"
    text = user_error(job, out, *settings)
    assert bad_step[-1] == seen_at
    assert_names_step_3(text, job, out, photos_of_many_sizes)
    saved = out / "checkpoint.safetensors"
    if "save_every_s=0" in settings:
        assert f"{saved} is the last good checkpoint" in text
        assert checkpoint.read_card(saved).step == 2
    else:
        assert not saved.exists()
        assert not (out / "state.pt").exists()
    assert all(row["loss"] == row["loss"] for row in rows(out / "metrics.jsonl"))


def test_losses_read_late_are_those_read_at_once(
    job: Path, plain: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(job, tmp_path / "at-once", "log_every=3")
    monkeypatch.setattr(train._Run, "_reads_every_step", lambda self: False)
    assert same(go(job, tmp_path / "late", "log_every=3"), plain)
    logs = [rows(tmp_path / name / "metrics.jsonl") for name in ("at-once", "late")]
    assert [row["step"] for row in logs[1]] == [1, 3, 6, 8]
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]
