"""Weights between the start and the end of training: in memory, in runs, in exports."""

import json
from pathlib import Path

import pytest
import torch
from command_line import Command
from safetensors.torch import load_file, save_file
from short_runs import go, rows, same, write_job, write_many_sizes
from torch import Tensor, nn

from ssl_retrieval import backbones, checkpoint
from ssl_retrieval.errors import UserError
from ssl_retrieval.export import export
from ssl_retrieval.train_step import compile_network
from ssl_retrieval.weight_interpolation import interpolated


def networks() -> tuple[nn.Module, nn.Module]:
    start, trained = (backbones.make("test_resnet", image_size=32, seed=seed) for seed in (3, 4))
    # Counts of batches and statistics that differ too.
    trained.train()(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    return start, trained


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_every_number_lies_between(share: float) -> None:
    start, trained = networks()
    digests = [backbones.weights_digest(network) for network in (start, trained)]
    found = interpolated(start, trained, share).state_dict()
    for key, begun in start.state_dict().items():
        ended = trained.state_dict()[key]
        wanted = (1 - share) * begun + share * ended if begun.is_floating_point() else ended
        torch.testing.assert_close(found[key], wanted)
        if share in (0.0, 1.0) and begun.is_floating_point():
            assert torch.equal(found[key], ended if share else begun)
    assert [backbones.weights_digest(network) for network in (start, trained)] == digests


def test_between_compiled_networks_lies_a_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    start, trained = networks()
    monkeypatch.setattr(torch, "compile", lambda function, **how: function)
    for network in (start, trained):
        compile_network(network, graphs=False)
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        found = backbones.own_pooling(interpolated(start, trained, 1.0), images)
        assert torch.equal(found, backbones.own_pooling(trained.eval(), images))
        assert not torch.allclose(found, backbones.own_pooling(start, images))


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    save_file(backbones.make("test_resnet", image_size=32, seed=3).state_dict(), folder / "start.safetensors")
    model = {"name": "test_resnet", "image_size": 32, "stem": "standard"}
    model["weights"] = str(folder / "start.safetensors")
    monitor = {"every_epochs": 1, "max_images": 8}
    return write_job(folder, write_many_sizes(folder / "photos"), model=model, monitor=monitor)


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory, job: Path) -> Path:
    """A run without interpolation; read only."""
    out = tmp_path_factory.mktemp("free") / "run"
    go(job, out)
    return out


def lerped(job: Path, end: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    start = load_file(job.parent / "start.safetensors")
    mixed = {k: start[k].lerp(v, share) if v.is_floating_point() else v for k, v in end.items()}
    assert not same(mixed, end)
    return mixed


def test_a_run_keeps_what_lies_between_and_says_so(job: Path, free: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    kept = go(job, out, "anchor.interpolate=0.3")
    end = load_file(free / "checkpoint.safetensors")
    # Training itself is not touched.
    assert [row["loss"] for row in rows(out / "metrics.jsonl")] == [
        row["loss"] for row in rows(free / "metrics.jsonl")
    ]
    assert same(kept, lerped(job, end, 0.3))
    model, card, _ = checkpoint.load(out / "checkpoint.safetensors")
    assert card.extra["interpolate"] == 0.3
    seen = rows(out / "monitor.jsonl")
    assert seen[0] == rows(free / "monitor.jsonl")[0]
    assert {k: card.scores[k] for k in ("self_mAP", "std")} == {k: seen[-1][k] for k in ("self_mAP", "std")}
    # What was watched last is what was exported: a run that begins there begins with its score.
    go(job, tmp_path / "again", f"model.weights={out / 'checkpoint.safetensors'}")
    first = rows(tmp_path / "again" / "monitor.jsonl")[0]
    assert first["std"] == pytest.approx(card.scores["std"], rel=1e-5)
    assert first["self_mAP"] == pytest.approx(card.scores["self_mAP"], rel=1e-5)
    assert same(model.state_dict(), kept)


def test_all_of_what_was_trained_is_the_run_without(job: Path, free: Path, tmp_path: Path) -> None:
    assert same(go(job, tmp_path / "run", "anchor.interpolate=1"), load_file(free / "checkpoint.safetensors"))


def test_nearly_nothing_of_what_was_trained_is_the_start(job: Path, tmp_path: Path) -> None:
    kept = go(job, tmp_path / "run", "anchor.interpolate=1e-6")
    start = load_file(job.parent / "start.safetensors")
    for key, value in start.items():
        if value.is_floating_point():
            torch.testing.assert_close(kept[key], value, rtol=1e-4, atol=1e-5)


def test_a_finished_run_is_interpolated_while_it_is_exported(
    job: Path, free: Path, tmp_path: Path, cli: Command
) -> None:
    done = cli("export", free, "--to", tmp_path / "half", "--format", "plain", "--interpolate", 0.5)
    assert done.code == 0, done.err
    found = torch.load(tmp_path / "half" / "test_resnet.pth", weights_only=True)
    assert same(found, lerped(job, load_file(free / "checkpoint.safetensors"), 0.5))
    card = json.loads((tmp_path / "half" / "card.json").read_text())
    assert card["extra"]["interpolate"] == 0.5
    assert card["scores"] == {}
    assert "0.5 · trained + 0.5 · start" in (tmp_path / "half" / "README.md").read_text("utf-8")


def test_an_export_that_cannot_be_interpolated_is_one_line(job: Path, free: Path, tmp_path: Path) -> None:
    def refused(source: Path, share: float) -> str:
        with pytest.raises(UserError) as caught:
            export(source, tmp_path / "out", "plain", share)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "interpolate=0" in refused(free, 0)
    assert "interpolate=1.5" in refused(free, 1.5)
    go(job, tmp_path / "mixed", "anchor.interpolate=0.3", "monitor.every_epochs=0")
    assert "anchor.interpolate=0.3" in refused(tmp_path / "mixed", 0.5)
    go(job, tmp_path / "random", "model.weights=random", "monitor.every_epochs=0")
    assert "random weights" in refused(tmp_path / "random", 0.5)
    mine = tmp_path / "start.safetensors"
    mine.write_bytes((job.parent / "start.safetensors").read_bytes())
    go(job, tmp_path / "anchored", "anchor.feature=1", f"model.weights={mine}", "monitor.every_epochs=0")
    save_file(backbones.make("test_resnet", image_size=32, seed=5).state_dict(), mine)
    assert "other weights now" in refused(tmp_path / "anchored", 0.5)
