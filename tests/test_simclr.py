"""SimCLR's loss against a loop over the formula, and where its gradients go."""

import math
from typing import Any

import pytest
import torch
from lightly.loss import NTXentLoss
from torch import Tensor, nn

from ssl_retrieval import backbones
from ssl_retrieval.augment import Augment
from ssl_retrieval.defaults import Facts, fill_method
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods import simclr
from ssl_retrieval.methods.simclr import Config, Method


def naive_nt_xent(first: Tensor, second: Tensor, temperature: float) -> float:
    """Equation 1 of the paper, pair by pair."""
    z = torch.cat([first, second]).double()
    z = z / z.norm(dim=1, keepdim=True)
    batch = len(first)
    losses = []
    for i in range(2 * batch):
        partner = (i + batch) % (2 * batch)
        others = sum(math.exp(float(z[i] @ z[k]) / temperature) for k in range(2 * batch) if k != i)
        losses.append(-math.log(math.exp(float(z[i] @ z[partner]) / temperature) / others))
    return sum(losses) / len(losses)


def make(**settings: Any) -> Method:
    torch.manual_seed(0)
    cfg = fill_method(simclr, Config(**settings), Facts(image_size=32))
    return Method(cfg, backbones.make("resnet10t", seed=1))


@pytest.fixture
def views() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(6, 3, 32, 32, generator=generator) for _ in range(2)]


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_the_loss_is_the_papers(temperature: float, views: list[Tensor]) -> None:
    method = make(temperature=temperature).train()
    seen: list[Tensor] = []
    method.head.register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    loss = method.step(views, 0.0).loss.detach()
    assert len(seen) == 1, "both views go through the network in one batch"
    first, second = seen[0].chunk(2)
    assert float(loss) == pytest.approx(naive_nt_xent(first, second, temperature), rel=1e-5)
    assert float(loss) == pytest.approx(float(NTXentLoss(temperature)(first, second)), rel=1e-6)


def test_gradients_reach_every_parameter(views: list[Tensor]) -> None:
    method = make().train()
    # timm starts the last scale of every residual block at 0, which blocks what lies before it at first.
    for module in method.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    method.step(views, 0.0).loss.backward()
    without = [name for name, p in method.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == ["head.layers.4.bias"], "the last normalisation has no shift"


def test_the_loss_is_fp32_under_bf16(views: list[Tensor]) -> None:
    method = make(temperature=0.1).train()
    seen: list[Tensor] = []
    method.head.register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    taken: list[torch.dtype] = []
    method.criterion.register_forward_pre_hook(lambda _, inputs: taken.extend(x.dtype for x in inputs))
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.step(views, 0.0).loss.detach()
    assert seen[0].dtype == torch.bfloat16
    assert taken == [torch.float32, torch.float32]
    assert loss.dtype == torch.float32
    first, second = seen[0].float().chunk(2)
    assert float(loss) == pytest.approx(naive_nt_xent(first, second, 0.1), rel=1e-5)


def test_two_views_made_alike() -> None:
    views = make(augment=Augment(blur=0.5)).views(48)
    assert [view.size for view in views] == [48, 48]
    assert views[0].augment == views[1].augment == Augment(blur=0.5)


def test_the_head_is_the_authors() -> None:
    head = make(num_layers=3, output_dim=64).head
    linear = [m for m in head.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(512, 512), (512, 512), (512, 64)]
    assert all(m.bias is None for m in linear)
    norms = [m for m in head.modules() if isinstance(m, nn.BatchNorm1d)]
    assert [m.weight.requires_grad for m in norms] == [True] * 3
    assert [m.bias.requires_grad for m in norms] == [True, True, False]
    assert not norms[-1].bias.any()
    assert head.layers[-1] is norms[-1]


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"temperature": 0.0}, "method.temperature=0.0"),
        ({"num_layers": 1}, "method.num_layers"),
        ({"output_dim": 0}, "method.output_dim"),
        ({"augment": Augment(flip=1.5)}, "augment.flip=1.5"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], names: str) -> None:
    with pytest.raises(UserError) as caught:
        make(**settings)
    assert names in str(caught.value)


@pytest.mark.parametrize(
    ("facts", "temperature", "optimizer"),
    [
        (Facts(image_size=32), 0.5, ("sgd", 0.12, "linear", 5e-4)),
        (Facts(1_280_000, 2048, 224, num_steps=125_000), 0.1, ("lars", 0.075, "sqrt", 1e-4)),
        (Facts(1_280_000, 2048, 224, num_steps=126_000), 0.1, ("lars", 0.3, "linear", 1e-4)),
        (Facts(1_280_000, 4096, 224, num_steps=31_250), 0.1, ("lars", 0.3, "linear", 1e-4)),
        (Facts(image_size=128, pretrained=True), 0.1, ("adamw", 3e-4, "none", 1e-4)),
    ],
)
def test_what_is_left_open_follows_the_papers(
    facts: Facts, temperature: float, optimizer: tuple[str, float, str, float]
) -> None:
    assert fill_method(simclr, Config(), facts).temperature == temperature
    assert fill_method(simclr, Config(temperature=0.3), facts).temperature == 0.3
    chosen = simclr.defaults(facts)
    keys = ("name", "lr", "scale", "weight_decay")
    assert tuple(chosen[f"optimizer.{key}"][0] for key in keys) == optimizer
