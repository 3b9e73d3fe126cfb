"""Low-rank adapters: what they leave alone, what they train, and that merging changes nothing."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from short_runs import go, go_until, same, user_error, write_job, write_many_sizes
from torch import Tensor, nn

from ssl_retrieval import adapters, backbones, checkpoint, ema, plugins
from ssl_retrieval.errors import UserError

pytest.importorskip("peft", reason="peft is not installed")

NETWORKS = ["test_vit", "test_resnet", "tf_efficientnet_lite0", "convnext_atto", "mobilenetv3_small_050"]


def moved(model: nn.Module) -> nn.Module:
    """Give the adapters something to say."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def vectors(model: nn.Module) -> Tensor:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return backbones.own_pooling(model, images)


@pytest.mark.parametrize("name", NETWORKS)
def test_merged_adapters_compute_the_same_in_a_plain_network(name: str) -> None:
    model = backbones.make(name, image_size=64)
    before, keys = vectors(model), list(model.state_dict())
    assert adapters.add(model, "lora", 3) > 0
    assert torch.equal(vectors(model), before)
    moved(model)
    adapted, state = vectors(model), backbones.weights_digest(model)
    plain = adapters.merged(model)
    assert list(plain.state_dict()) == keys
    torch.testing.assert_close(vectors(plain), adapted, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(adapted, before, rtol=1e-2)
    # The network in training goes on as it was.
    assert backbones.weights_digest(model) == state
    assert torch.equal(vectors(model), adapted)


def test_the_merged_weights_are_the_paper_s() -> None:
    model = moved_vit()
    layer = model.get_submodule("blocks.0.attn.qkv")
    a, b = (layer.get_parameter(f"{part}.default.weight") for part in ("lora_A", "lora_B"))
    own = backbones.make("test_vit", image_size=64).get_parameter("blocks.0.attn.qkv.weight")
    merged = adapters.merged(model).get_parameter("blocks.0.attn.qkv.weight")
    torch.testing.assert_close(merged, own + b @ a)


def moved_vit() -> nn.Module:
    model = backbones.make("test_vit", image_size=64)
    adapters.add(model, "lora", 2)
    return moved(model)


def adapted_layers(model: nn.Module) -> list[str]:
    return [name.removesuffix(".lora_A") for name, _ in model.named_modules() if name.endswith(".lora_A")]


def test_a_vit_is_adapted_in_its_blocks() -> None:
    model = backbones.make("test_vit", image_size=64)
    adapters.add(model, "lora", 2)
    kinds = {name.split(".", 2)[2] for name in adapted_layers(model)}
    assert kinds == {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)


def test_neither_depthwise_convolutions_nor_the_first_layer_nor_frozen_stages_are_adapted() -> None:
    model = backbones.make("tf_efficientnet_lite0", image_size=64)
    backbones.freeze(model, 4)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    adapters.add(model, "lora", 2)
    names = adapted_layers(model)
    assert names
    assert not [name for name in names if f"{name}.weight" in frozen]
    assert not [name for name in names if "conv_dw" in name or name == "conv_stem"]


def test_no_adapters_leave_the_network_as_it_is() -> None:
    model = backbones.make("test_resnet", image_size=32)
    state = backbones.weights_digest(model)
    assert adapters.add(model, "none", 8) == 0
    assert adapters.merged(model) is model
    assert backbones.weights_digest(model) == state
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_seed_makes_the_adapters_and_no_other_random_number_moves() -> None:
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    models = [backbones.make("test_vit", image_size=64) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        adapters.add(model, "lora", 2, seed)
    assert torch.equal(torch.rand(1), wanted)
    first, again, other = map(backbones.weights_digest, models)
    assert first == again != other


def test_a_teacher_follows_the_adapters() -> None:
    student = moved_vit()
    teacher = ema.copy_of(student)
    moved(student)
    ema.update(teacher, student, 0.0)
    torch.testing.assert_close(vectors(teacher), vectors(student))


def test_a_network_all_frozen_has_nothing_to_adapt() -> None:
    model = backbones.make("test_resnet", image_size=32).requires_grad_(False)
    with pytest.raises(UserError, match=r"model\.adapter=lora: no linear layer .* model\.freeze"):
        adapters.add(model, "lora", 8)


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'ssl-retrieval\[lora\]'"):
        adapters.check("lora", 8)
    adapters.check("none", 8)


# Runs


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    save_file(backbones.make("test_resnet", image_size=32, seed=3).state_dict(), folder / "start.safetensors")
    model = {"name": "test_resnet", "image_size": 32, "stem": "standard", "adapter": "lora"}
    model |= {"weights": str(folder / "start.safetensors"), "adapter_rank": 4}
    return write_job(folder, write_many_sizes(folder / "photos"), model=model)


@pytest.mark.parametrize(
    "settings", [["method.name=byol"], ["anchor.similarity=1"], ["anchor.interpolate=0.5", "accumulate=2"]]
)
def test_a_stopped_run_with_adapters_ends_as_if_nothing_had_happened(
    job: Path, tmp_path: Path, settings: list[str]
) -> None:
    whole = go(job, tmp_path / "whole", *settings)
    go_until(3, job, tmp_path / "run", *settings)
    assert same(go(job, tmp_path / "run", *settings), whole)


def test_a_run_leaves_a_plain_checkpoint_that_moved_by_the_adapters_alone(job: Path, tmp_path: Path) -> None:
    end = go(job, tmp_path / "run")
    start = backbones.make("test_resnet", image_size=32, seed=3)
    assert end.keys() == start.state_dict().keys()
    changed = {key for key, value in start.state_dict().items() if not torch.equal(end[key], value)}
    adapters.add(start, "lora", 4)
    # Not all: at random, timm's branches begin with a last scale of 0, which is frozen here.
    assert changed
    assert changed <= {f"{name}.weight" for name in adapted_layers(start)}
    model, card, _ = checkpoint.load(tmp_path / "run" / "checkpoint.safetensors")
    assert card.recipe["model"]["adapter"] == "lora"
    assert same(model.state_dict(), end)
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    module = plugins.find("method", "simclr")
    head = list(module.Method(module.Config(temperature=0.1, output_dim=16), start).head.parameters())
    trained = [p for p in [*start.parameters(), *head] if p.requires_grad]
    # The optimizer knows the adapters and the head, and nothing else.
    assert len(state["optimizer"]["state"]) == len(trained)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (["model.adapter=dora"], ["model.adapter='dora'", "none, lora"]),
        (["model.adapter_rank=0"], ["model.adapter_rank=0"]),
    ],
)
def test_a_mistake_is_one_line(job: Path, tmp_path: Path, settings: list[str], names: list[str]) -> None:
    said = user_error(job, tmp_path / "run", *settings)
    assert all(name in said for name in names), said
