"""What is exported gives the same embeddings in timm and torchvision, and says how it came about."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from command_line import Command
from made_up_photos import photo
from safetensors.torch import save_file
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import nn

from ssl_retrieval import backbones, checkpoint
from ssl_retrieval.errors import UserError
from ssl_retrieval.export import export
from ssl_retrieval.network_input import InputSpec

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
RECIPE = {"epochs": 3, "optimizer": {"name": "sgd", "lr": 0.12}, "note": "größer"}

TIMM = [
    ("resnet10t", 64, {}),
    ("test_efficientnet", 64, {}),
    ("convnext_atto", 64, {}),
    ("test_vit", 160, {}),
    ("test_vit", 32, {"patch_size": 4}),
    ("vit_tiny_patch16_224.augreg_in21k", 32, {"patch_size": 4}),
    ("vit_tiny_patch16_224", 48, {"patch_size": 8, "dynamic_size": True}),
]


def images(side: int) -> torch.Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def trained(folder: Path, name: str, side: int = 64, stem: str = "standard", **sizes: Any) -> nn.Module:
    """Leave a run's checkpoint with weights and statistics as training would leave them."""
    model = backbones.make(name, image_size=side, stem=stem, seed=3, **sizes)
    generator = torch.Generator().manual_seed(1)
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            noise = 0.1 * torch.rand(value.shape, generator=generator)
            value.add_(noise if "var" in key else noise - 0.05)
    spec = InputSpec(side, MEAN, STD, interpolation="bilinear", crop=0.875)
    card = checkpoint.Card(
        backbone=name,
        stem=stem,
        input=spec.to_dict(),
        method="simclr",
        start="random",
        step=70,
        train_s=1.5,
        images=40,
        seed=9,
        network="teacher",
        recipe=RECIPE,
        data="0123abcd",
        scores={"knn_accuracy": 0.8125},
        **sizes,
    )
    checkpoint.save(model, card, folder / "checkpoint.safetensors")
    return model


def embeddings(model: nn.Module, side: int) -> torch.Tensor:
    with torch.inference_mode():
        return model(images(side))


def code_of(folder: Path) -> str:
    found = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def run_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run what the card tells a reader to run, where it tells to; give the ``model`` it makes."""
    monkeypatch.chdir(folder.parent)
    names: dict[str, Any] = {}
    exec(code_of(folder), names)
    return names["model"]


def user_error(*arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        export(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("name", "side", "sizes"), TIMM)
def test_timm_gives_the_same_embeddings_bit_by_bit(
    tmp_path: Path, name: str, side: int, sizes: dict[str, Any]
) -> None:
    model = trained(tmp_path / "run", name, side, **sizes)
    out = export(tmp_path / "run", tmp_path / "out")
    loaded = timm.create_model(f"local-dir:{out}", pretrained=True, num_classes=0).eval()
    assert torch.equal(embeddings(loaded, side), embeddings(model, side))
    if sizes.get("dynamic_size"):
        assert torch.equal(embeddings(loaded, 24), embeddings(model, 24))


def test_timm_learns_the_input_and_the_pooling(tmp_path: Path) -> None:
    trained(tmp_path, "test_vit", 32, patch_size=4)
    out = export(tmp_path / "checkpoint.safetensors", tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert config["global_pool"] == timm.create_model("test_vit").global_pool
    assert config["num_classes"] == 0
    loaded = timm.create_model(f"local-dir:{out}", pretrained=True, num_classes=0)
    data = resolve_model_data_config(loaded)
    assert tuple(data["input_size"]) == (3, 32, 32)
    assert (tuple(data["mean"]), tuple(data["std"])) == (MEAN, STD)
    ours = InputSpec(32, MEAN, STD, interpolation="bilinear", crop=0.875)
    picture = photo((120, 60, 30), 1, (90, 61))
    step = 1.01 / 255 / min(STD)
    torch.testing.assert_close(create_transform(**data)(picture), ours(picture), atol=step, rtol=0)


def test_timm_puts_a_new_classifier_on_top(tmp_path: Path) -> None:
    model = trained(tmp_path, "resnet10t")
    out = export(tmp_path, tmp_path / "out")
    classifier: Any = timm.create_model(f"local-dir:{out}", pretrained=True, num_classes=7).eval()
    assert embeddings(classifier, 64).shape == (2, 7)
    classifier.fc = nn.Identity()
    assert torch.equal(embeddings(classifier, 64), embeddings(model, 64))


def test_nothing_of_the_original_weights_is_claimed(tmp_path: Path) -> None:
    trained(tmp_path, "test_vit.r160_in1k", 160)
    text = (export(tmp_path, tmp_path / "out") / "config.json").read_text()
    for foreign in ("r160_in1k", "license", "paper", "hf_hub_id", "http", "label"):
        assert foreign not in text


@pytest.mark.parametrize(
    ("name", "stem", "side"),
    [("resnet18", "standard", 64), ("resnet18", "small", 32), ("resnet50", "standard", 64)],
)
def test_torchvision_gives_the_same_embeddings(
    tmp_path: Path, name: str, stem: str, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained(tmp_path / "run", name, side, stem)
    out = export(tmp_path / "run", tmp_path / "out", "torchvision")
    loaded = run_code(out, monkeypatch)
    assert type(loaded).__module__.startswith("torchvision.")
    assert not loaded.training
    torch.testing.assert_close(embeddings(loaded, side), embeddings(model, side), rtol=1e-5, atol=1e-5)


def test_only_the_classifier_is_missing_in_torchvision(tmp_path: Path) -> None:
    import torchvision

    trained(tmp_path, "resnet18")
    out = export(tmp_path, tmp_path / "out", "torchvision")
    state = torch.load(out / "resnet18.pth", weights_only=True)
    result = torchvision.models.resnet18(num_classes=5).load_state_dict(state, strict=False)
    assert sorted(result.missing_keys) == ["fc.bias", "fc.weight"]
    assert result.unexpected_keys == []


@pytest.mark.parametrize(
    ("name", "stem", "side", "sizes"),
    [
        ("resnet10t", "small", 32, {}),
        ("resnet18", "small", 32, {}),
        ("test_efficientnet", "small", 32, {}),
        ("test_vit", "standard", 32, {"patch_size": 4, "dynamic_size": True}),
    ],
)
@pytest.mark.parametrize("format", ["plain", "timm"])
def test_the_code_on_the_card_runs(
    tmp_path: Path,
    name: str,
    stem: str,
    side: int,
    sizes: dict[str, Any],
    format: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = trained(tmp_path / "run", name, side, stem, **sizes)
    if format == "timm" and stem == "small":
        wanted = "torchvision" if name == "resnet18" else "plain"
        assert f"small stem: use format={wanted}" in user_error(tmp_path / "run", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return
    out = export(tmp_path / "run", tmp_path / "out", format)
    loaded = run_code(out, monkeypatch)
    assert not loaded.training
    assert torch.equal(embeddings(loaded, side), embeddings(model, side))


def test_the_card_says_how_it_came_about(tmp_path: Path) -> None:
    model = trained(tmp_path, "resnet10t")
    out = export(tmp_path, tmp_path / "out")
    card = json.loads((out / "card.json").read_text())
    assert card["recipe"] == RECIPE
    assert card["data"] == "0123abcd"
    assert card["seeds"] == {"run": 9}
    assert card["scores"] == {"knn_accuracy": 0.8125}
    assert (card["method"], card["network"], card["step"], card["images"]) == ("simclr", "teacher", 70, 40)
    assert card["weights_digest"] == backbones.weights_digest(model)
    assert sorted(card["files"]) == sorted(path.name for path in out.iterdir())
    text = (out / "README.md").read_text()
    assert "short side resized to 73 px (bilinear), centre of 64 × 64 px" in text
    assert "512 numbers per image" in text
    assert "| knn_accuracy | 0.8125 |" in text
    recipe = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert recipe is not None
    assert yaml.safe_load(recipe[1]) == RECIPE


def test_an_old_checkpoint_without_a_recipe_can_be_exported(tmp_path: Path) -> None:
    spec = InputSpec(64, MEAN, STD)
    model = backbones.make("resnet10t")
    checkpoint.save(
        model, checkpoint.Card("resnet10t", "standard", spec.to_dict()), tmp_path / "c.safetensors"
    )
    text = (export(tmp_path / "c.safetensors", tmp_path / "out") / "README.md").read_text()
    assert "not recorded" in text
    assert "Scores: none" in text


def test_an_export_is_replaced_and_other_folders_are_not(tmp_path: Path) -> None:
    trained(tmp_path / "run", "resnet10t")
    out = tmp_path / "deep" / "out"
    export(tmp_path / "run", out, "plain")
    export(tmp_path / "run", out, "timm")
    assert {path.name for path in out.iterdir()} == {
        *("README.md", "card.json", "config.json", "model.safetensors")
    }
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    (out / "my notes.txt").write_text("precious")
    assert "(my notes.txt): give a new folder" in user_error(tmp_path / "run", out)
    assert (out / "my notes.txt").read_text() == "precious"
    assert "(checkpoint.safetensors): give a new folder" in user_error(tmp_path / "run", tmp_path / "run")
    (tmp_path / "empty").mkdir()
    assert export(tmp_path / "run", tmp_path / "empty") == (tmp_path / "empty").resolve()
    (tmp_path / "file").write_text("in the way")
    assert "is a file" in user_error(tmp_path / "run", tmp_path / "file")
    assert "is a file" in user_error(tmp_path / "run", tmp_path / "file" / "out")


@pytest.mark.parametrize("before", [False, True])
def test_an_export_that_is_interrupted_leaves_nothing_half(
    tmp_path: Path, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(tmp_path / "run", "resnet10t")
    out = tmp_path / "out"
    if before:
        export(tmp_path / "run", out)
    old = {path.name: path.read_bytes() for path in out.iterdir()} if before else None

    def stop(*_: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("ssl_retrieval.export._readme", stop)
    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "run", out, "plain")
    assert sorted(path.name for path in tmp_path.iterdir()) == (["out", "run"] if before else ["run"])
    if old is not None:
        assert {path.name: path.read_bytes() for path in out.iterdir()} == old


def test_a_folder_that_cannot_take_its_place_gives_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(tmp_path / "run", "resnet10t")
    out = export(tmp_path / "run", tmp_path / "out")
    replace = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if self.name == ".out.partial":
            raise OSError("disk gone")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk gone"):
        export(tmp_path / "run", tmp_path / "out", "plain")
    assert (out / "config.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_what_cannot_be_exported_is_named(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "no checkpoint" in user_error(tmp_path / "nowhere", out)
    (tmp_path / "run").mkdir()
    assert str(tmp_path / "run" / "checkpoint.safetensors") in user_error(tmp_path / "run", out)
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    assert "not a checkpoint of ssl_retrieval" in user_error(tmp_path / "foreign.safetensors", out)
    trained(tmp_path / "run", "resnet10t")
    assert "format='onnx': one of timm, torchvision, plain" in user_error(tmp_path / "run", out, "onnx")
    text = user_error(tmp_path / "run", out, "torchvision")
    assert "format=torchvision holds resnet18, resnet34" in text
    assert "not 'resnet10t'" in text
    assert not out.exists()


def test_a_family_that_timm_cannot_load_back_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(tmp_path / "run", "resnet10t")
    create = timm.create_model

    def fail(name: str, *arguments: Any, **more: Any) -> Any:
        if name.startswith("local-dir:"):
            raise RuntimeError("Missing key(s) in state_dict")
        return create(name, *arguments, **more)

    monkeypatch.setattr("timm.create_model", fail)
    assert "use format=plain" in user_error(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_exports_and_explains_mistakes(cli: Command, tmp_path: Path) -> None:
    model = trained(tmp_path / "run", "resnet18")
    done = cli("export", tmp_path / "run", "--to", tmp_path / "out", "--format", "torchvision")
    assert (done.code, done.out) == (0, f"{(tmp_path / 'out').resolve()}\n")
    state = torch.load(tmp_path / "out" / "resnet18.pth", weights_only=True)
    np.testing.assert_array_equal(state["conv1.weight"], model.state_dict()["conv1.weight"])
    assert "--to" in cli("export", tmp_path / "run").user_error()
    assert "one of timm" in cli("export", tmp_path / "run", "--to", "x", "--format", "onnx").user_error()
    assert "Example: ssl-retrieval export runs/simclr --to exported/simclr" in cli("export", "--help").out
