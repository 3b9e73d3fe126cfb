"""The learning rate in numbers, and which parameters decay."""

from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
from torch import nn

from ssl_retrieval import defaults, optim
from ssl_retrieval.defaults import Facts
from ssl_retrieval.errors import UserError
from ssl_retrieval.optim import OptimizerConfig, lr_factor, peak_lr


@dataclass
class Job:
    optimizer: OptimizerConfig


def filled(**values: Any) -> OptimizerConfig:
    cfg = OptimizerConfig(**{"name": "sgd"} | values)
    known = cfg if cfg.name in optim.KNOWN else OptimizerConfig(name="sgd")
    return defaults.fill(Job(cfg), optim.choices(known, {}, Facts()))[0].optimizer


def decaying(model: nn.Module, **values: Any) -> tuple[set[str], set[str]]:
    """Names of the parameters that decay, and of those that are updated without decay."""
    optimizer = optim.make(filled(**values), model, 8)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay, plain = sorted(optimizer.param_groups, key=lambda group: -group["weight_decay"])
    assert decay["weight_decay"] > 0
    assert plain["weight_decay"] == 0
    return {names[id(p)] for p in decay["params"]}, {names[id(p)] for p in plain["params"]}


@pytest.mark.parametrize(
    ("progress", "warmup", "final", "expected"),
    [
        (0.0, 0.1, 0.0, 0.0),
        (0.05, 0.1, 0.0, 0.5),
        (0.1, 0.1, 0.0, 1.0),
        (0.55, 0.1, 0.0, 0.5),
        (0.325, 0.1, 0.0, 0.5 + 0.5 * 2**-0.5),
        (1.0, 0.1, 0.0, 0.0),
        (0.0, 0.0, 0.0, 1.0),
        (0.5, 0.0, 0.1, 0.55),
        (1.0, 0.0, 0.1, 0.1),
    ],
)
def test_learning_rate(progress: float, warmup: float, final: float, expected: float) -> None:
    assert lr_factor(progress, warmup, final) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("scale", "batch_size", "expected"),
    [("none", 512, 0.3), ("linear", 256, 0.3), ("linear", 64, 0.075), ("sqrt", 256, 4.8)],
)
def test_scaling_rules(scale: str, batch_size: int, expected: float) -> None:
    assert peak_lr(filled(lr=0.3, scale=scale), batch_size) == pytest.approx(expected)


def test_biases_and_batch_normalisation_do_not_decay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    decay, plain = decaying(model)
    assert decay == {"0.weight", "3.weight"}
    assert plain == {"0.bias", "1.weight", "1.bias", "3.bias"}


def test_what_a_vit_exempts_does_not_decay_inside_a_method_either() -> None:
    method = nn.ModuleDict({"encoder": timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0)})
    decay, plain = decaying(method)
    assert {"encoder.pos_embed", "encoder.cls_token"} <= plain
    assert "encoder.blocks.0.attn.qkv.weight" in decay
    assert {name for name in decay if name.endswith("bias") or ".norm" in name} == set()
    assert decay | plain == {name for name, _ in method.named_parameters()}


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    decay, plain = decaying(model)
    assert decay | plain == {"1.weight", "1.bias"}


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_every_optimizer_shrinks_what_decays_only(name: str) -> None:
    model = nn.Linear(3, 3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = optim.make(filled(name=name, lr=0.1, weight_decay=0.5), model, 8)
    model.weight.grad = torch.full_like(model.weight, 1e-12)
    model.bias.grad = torch.zeros_like(model.bias)
    optimizer.step()
    assert model.weight.norm() < before["weight"].norm()
    assert torch.equal(model.bias, before["bias"])


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_fused_updates_are_those_made_one_by_one(name: str) -> None:
    cfg = filled(name=name, lr=0.1, weight_decay=0.1)
    ends = []
    # A device that torch has no fused updates for, and one that it has.
    for device in ("mps", "cpu"):
        torch.manual_seed(0)
        model = nn.Linear(5, 3)
        optimizer = optim.make(cfg, model, 8, device)
        assert bool(optimizer.defaults["fused"]) == (device == "cpu")
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(8, 5)).square().mean().backward()
            optimizer.step()
        ends.append([parameter.detach() for parameter in model.parameters()])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-5, atol=1e-6)


def test_lars_scales_a_layer_by_its_own_norms() -> None:
    model = nn.Linear(4, 4, bias=False)
    start, gradient = model.weight.detach().clone(), torch.randn(4, 4)
    optimizer = optim.make(filled(name="lars", lr=2.0, momentum=0.9, weight_decay=1e-4), model, 8)
    model.weight.grad = gradient.clone()
    optimizer.step()
    trust = 1e-3 * start.norm() / (gradient.norm() + 1e-4 * start.norm())
    assert torch.allclose(model.weight, start - 2.0 * trust * (gradient + 1e-4 * start), atol=1e-7)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"name": "adam"}, "'adam' (known: adamw, sgd, lars)"),
        ({"scale": "log"}, "optimizer.scale='log': one of none, linear, sqrt"),
        ({"lr": 0.0}, "optimizer.lr="),
        ({"lr": float("nan")}, "optimizer.lr="),
        ({"warmup": 1.0}, "optimizer.warmup=1.0"),
        ({"weight_decay": -1e-4}, "optimizer.weight_decay="),
        ({"clip": -1.0}, "optimizer.clip=-1.0"),
        ({"momentum": -0.9}, "optimizer.momentum=-0.9"),
        ({"final_lr": 2.0}, "optimizer.final_lr=2.0"),
        ({"name": "lars", "weight_decay": 0.0}, "turns lars into plain sgd"),
    ],
)
def test_mistakes_are_named(values: dict[str, Any], names: str) -> None:
    with pytest.raises(UserError) as caught:
        optim.make(filled(**values), nn.Linear(2, 2), 8)
    assert names in str(caught.value)


def test_weight_decay_follows_its_cosine_where_it_decays_alone() -> None:
    cfg = filled(name="adamw", lr=1.0, weight_decay=0.04, weight_decay_end=0.4, warmup=0.1)
    optimizer = optim.make(cfg, nn.Linear(2, 2), 8)
    for progress, expected in ((0.0, 0.04), (0.5, 0.22), (1.0, 0.4)):
        _, decay = optim.schedule(cfg, optimizer, progress)
        assert decay == pytest.approx(expected)
        assert [group["weight_decay"] for group in optimizer.param_groups] == pytest.approx([expected, 0.0])


def test_what_a_method_keeps_fixed_keeps_its_peak() -> None:
    method = nn.ModuleDict({"encoder": nn.Linear(2, 2), "predictor": nn.Linear(2, 2)})
    method.fixed_lr = ("predictor.",)  # type: ignore[assignment]
    cfg = filled(name="sgd", lr=0.1)
    optimizer = optim.make(cfg, method, 8)
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    for progress, expected in ((0.05, 0.05), (0.55, 0.05), (1.0, 0.0)):
        assert optim.schedule(cfg, optimizer, progress)[0] == pytest.approx(expected, abs=1e-12)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                is_fixed = names[id(parameter)].startswith("predictor")
                assert group["lr"] == pytest.approx(0.1 if is_fixed else expected, abs=1e-12)


def test_biases_patch_embedding_and_deep_layers_have_their_factors() -> None:
    vit = timm.create_model("test_vit", num_classes=0)
    method = nn.ModuleDict({"encoder": vit, "head": nn.Linear(64, 4)})
    values = {"name": "adamw", "lr": 1.0, "layer_decay": 0.5, "bias_lr": 0.1, "patch_embed_lr": 0.2}
    optimizer = optim.make(filled(**values), method, 256)
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    rates = {names[id(p)]: group["peak"] for group in optimizer.param_groups for p in group["params"]}
    depth = len(vit.get_submodule("blocks"))  # type: ignore[arg-type]
    assert rates["head.weight"] == 1.0
    assert rates["head.bias"] == pytest.approx(0.1)
    last = rates[f"encoder.blocks.{depth - 1}.mlp.fc1.weight"]
    first = rates["encoder.blocks.0.mlp.fc1.weight"]
    assert first / last == pytest.approx(0.5 ** (depth - 1))
    assert rates["encoder.patch_embed.proj.weight"] == pytest.approx(first * 0.5 * 0.2)


@pytest.mark.parametrize("mode", ["global", "each"])
def test_gradients_are_clipped_together_or_each_by_itself(mode: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    for parameter, size in zip(model.parameters(), (3.0, 4.0), strict=True):
        parameter.grad = torch.full_like(parameter, size / 2)
    optim.clip_gradients(filled(clip=1.0, clip_mode=mode), model)
    norms = [float(p.grad.norm()) for p in model.parameters() if p.grad is not None]
    assert norms == pytest.approx([0.6, 0.8] if mode == "global" else [1.0, 1.0], rel=1e-4)


@pytest.mark.parametrize(
    ("num_images", "epochs", "expected"),
    [
        (1_280_000, 100, 0.1),
        # The 10 epochs of SimCLR, BYOL, MoCo v3, DINO, Barlow Twins and VICReg.
        (1_280_000, 1000, 0.01),
        # Ten passes over few images are hardly any steps: rather 1000, but never more than a tenth.
        (2_048, 400, 0.1),
        (20_000, 400, 1000 / 31_250),
        (10_000, 6, 0.1),
    ],
)
def test_the_warm_up_follows_the_data(num_images: int, epochs: int, expected: float) -> None:
    facts = Facts(num_images, batch_size=256, num_steps=epochs * num_images // 256)
    warmup = optim.choices(OptimizerConfig(), {}, facts)["optimizer.warmup"]
    assert warmup[0] == pytest.approx(expected, rel=1e-3)
    own = {"optimizer.warmup": (0.0, "paper")}
    assert optim.choices(OptimizerConfig(), own, facts)["optimizer.warmup"] == (0.0, "paper")


def test_a_methods_recipe_belongs_to_its_own_optimizer() -> None:
    recipe = {
        "optimizer.name": ("lars", "paper"),
        "optimizer.lr": (4.8, "paper"),
        "optimizer.scale": ("linear", "paper"),
    }
    assert optim.choices(OptimizerConfig(), recipe, Facts())["optimizer.lr"] == (4.8, "paper")
    other = optim.choices(OptimizerConfig(name="adamw"), recipe, Facts())
    assert other["optimizer.lr"][0] == 5e-4
    own_rate = optim.choices(OptimizerConfig(lr=0.1), recipe, Facts())
    assert own_rate["optimizer.scale"] == ("none", "optimizer.lr is given")


class Parts(nn.Module):
    """A network, a head and proxies."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head, self.criterion = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

    def lr_factors(self) -> dict[str, float]:
        return {"criterion.": 10.0}


def rates(cfg: OptimizerConfig, progress: float) -> dict[str, float]:
    method = Parts()
    optimizer = optim.make(cfg, method, 8)
    optim.schedule(cfg, optimizer, progress)
    names = {id(parameter): name.split(".")[0] for name, parameter in method.named_parameters()}
    return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


def test_network_and_proxies_have_rates_of_their_own() -> None:
    cfg = filled(name="adamw", lr=0.1, encoder_lr=0.3, warmup=0.0)
    assert rates(cfg, 0.0) == pytest.approx({"encoder": 0.03, "head": 0.1, "criterion": 1.0})
    halfway = rates(cfg, 0.5)
    assert halfway == pytest.approx({"encoder": 0.015, "head": 0.05, "criterion": 0.5})


def test_the_network_starts_later_with_a_warm_up_of_its_own() -> None:
    cfg = filled(name="adamw", lr=0.1, encoder_start=0.5, warmup=0.2)
    for progress, wanted in ((0.0, 0.0), (0.4, 0.0), (0.55, 0.05), (0.6, 0.1), (0.8, 0.05), (1.0, 0.0)):
        assert rates(cfg, progress)["encoder"] == pytest.approx(wanted, abs=1e-12)
    assert rates(cfg, 0.2)["head"] == pytest.approx(0.1)
