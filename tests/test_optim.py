"""The learning rate in numbers, and which parameters decay."""

import pytest
import timm
import torch
from torch import nn

from ssl_retrieval import optim
from ssl_retrieval.errors import UserError
from ssl_retrieval.optim import OptimizerConfig, lr_factor, peak_lr


def decaying(model: nn.Module, cfg: OptimizerConfig | None = None) -> tuple[set[str], set[str]]:
    """Names of the parameters that decay, and of those that are updated without decay."""
    optimizer = optim.make(cfg or OptimizerConfig(), model, 8)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay, plain = optimizer.param_groups
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
    assert peak_lr(OptimizerConfig(lr=0.3, scale=scale), batch_size) == pytest.approx(expected)


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
    optimizer = optim.make(OptimizerConfig(name=name, lr=0.1, weight_decay=0.5), model, 8)
    model.weight.grad = torch.full_like(model.weight, 1e-12)
    model.bias.grad = torch.zeros_like(model.bias)
    optimizer.step()
    assert model.weight.norm() < before["weight"].norm()
    assert torch.equal(model.bias, before["bias"])


def test_lars_scales_a_layer_by_its_own_norms() -> None:
    model = nn.Linear(4, 4, bias=False)
    start, gradient = model.weight.detach().clone(), torch.randn(4, 4)
    optimizer = optim.make(OptimizerConfig(name="lars", lr=2.0, momentum=0.9, weight_decay=1e-4), model, 8)
    model.weight.grad = gradient.clone()
    optimizer.step()
    trust = 1e-3 * start.norm() / (gradient.norm() + 1e-4 * start.norm())
    assert torch.allclose(model.weight, start - 2.0 * trust * (gradient + 1e-4 * start), atol=1e-7)


@pytest.mark.parametrize(
    ("cfg", "names"),
    [
        (OptimizerConfig(name="adam"), "'adam' (known: adamw, sgd, lars)"),
        (OptimizerConfig(scale="log"), "optimizer.scale='log': one of none, linear, sqrt"),
        (OptimizerConfig(lr=0.0), "lr > 0"),
        (OptimizerConfig(lr=float("nan")), "lr > 0"),
        (OptimizerConfig(warmup=1.0), "warmup < 1"),
        (OptimizerConfig(weight_decay=-1e-4), "weight_decay >= 0"),
        (OptimizerConfig(clip=-1.0), "clip >= 0"),
        (OptimizerConfig(momentum=-0.9), "0 <= momentum < 1"),
        (OptimizerConfig(final_lr=2.0), "final_lr <= 1"),
        (OptimizerConfig(name="lars", weight_decay=0.0), "turns lars into plain sgd"),
    ],
)
def test_mistakes_are_named(cfg: OptimizerConfig, names: str) -> None:
    with pytest.raises(UserError) as caught:
        optim.make(cfg, nn.Linear(2, 2), 8)
    assert names in str(caught.value)
