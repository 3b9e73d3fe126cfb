"""DCL's loss and its weights against loops over the paper's formulas."""

import math
from typing import Any

import pytest
import torch
from lightly.loss import DCLLoss, DCLWLoss
from torch import Tensor

from ssl_retrieval import backbones, distributed
from ssl_retrieval.augment import Augment
from ssl_retrieval.defaults import Facts, fill_method
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods import dcl
from ssl_retrieval.methods.dcl import Config, Method, pair_weights


def naive_weights(first: Tensor, second: Tensor, sigma: float) -> list[float]:
    """The negative von Mises-Fisher weights of section 3.2; rows of length 1."""
    raw = [math.exp(float(a @ b) / sigma) for a, b in zip(first, second, strict=True)]
    return [2 - value / (sum(raw) / len(raw)) for value in raw]


def naive_dcl(first: Tensor, second: Tensor, temperature: float, sigma: float | None = None) -> float:
    """Equation 6, image by image and view by view."""
    a, b = (z.double() / z.double().norm(dim=1, keepdim=True) for z in (first, second))
    batch = len(a)
    weights = naive_weights(a, b, sigma) if sigma else [1.0] * batch
    losses = []
    for own, other in ((a, b), (b, a)):
        for i in range(batch):
            negatives = sum(
                math.exp(float(own[i] @ z[k]) / temperature) for z in (a, b) for k in range(batch) if k != i
            )
            losses.append(-weights[i] * float(own[i] @ other[i]) / temperature + math.log(negatives))
    return sum(losses) / len(losses)


def make(**settings: Any) -> Method:
    torch.manual_seed(0)
    return Method(
        fill_method(dcl, Config(**settings), Facts()), backbones.make("test_resnet", seed=1)
    ).train()


def projections(method: Method) -> list[Tensor]:
    """Give the list that the projector's outputs will be put into."""
    seen: list[Tensor] = []
    method.head.register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    return seen


@pytest.fixture
def views() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(6, 3, 32, 32, generator=generator) for _ in range(2)]


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_the_loss_is_the_papers(temperature: float, views: list[Tensor]) -> None:
    method = make(temperature=temperature)
    seen = projections(method)
    loss = float(method.step(views, 0.0).loss.detach())
    first, second = seen[0].chunk(2)
    assert loss == pytest.approx(naive_dcl(first, second, temperature), rel=1e-5)
    assert loss == pytest.approx(float(DCLLoss(temperature)(first, second)), rel=1e-6)


@pytest.mark.filterwarnings("ignore:To copy construct:UserWarning")
@pytest.mark.parametrize("sigma", [0.5, 0.1])
def test_the_weighted_loss_is_the_papers(sigma: float, views: list[Tensor]) -> None:
    method = make(weighted=True, sigma=sigma)
    seen = projections(method)
    loss = float(method.step(views, 0.0).loss.detach())
    first, second = seen[0].chunk(2)
    assert loss == pytest.approx(naive_dcl(first, second, 0.1, sigma), rel=1e-5)
    assert loss == pytest.approx(float(DCLWLoss(0.1, sigma)(first, second)), rel=1e-5)


def test_weights_are_one_on_average_and_larger_for_far_pairs() -> None:
    first = torch.eye(3)
    second = torch.tensor([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.6, 0.8]])
    weights = pair_weights(first.requires_grad_(), second, 0.5)
    assert weights.tolist() == pytest.approx(naive_weights(first.detach(), second, 0.5))
    assert float(weights.mean()) == pytest.approx(1.0)
    assert weights.argsort().tolist() == [0, 2, 1]
    assert not weights.requires_grad


def test_the_positive_pair_has_no_part_in_the_denominator() -> None:
    # All negatives are orthogonal: pulling a pair together changes its own term alone, and linearly.
    half = math.sqrt(0.5)
    losses = []
    for pair in ([1.0, 0.0, 0.0, 0.0], [half, 0.0, 0.0, half], [0.0, 0.0, 0.0, 1.0]):
        first = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
        second = torch.tensor([pair, [0.0, 0.0, 1.0, 0.0]])
        losses.append(float(make(temperature=0.5).criterion(first, second)))
    assert losses[1] - losses[0] == pytest.approx((1 - half) / 0.5 / 2, rel=1e-5)
    assert losses[2] - losses[0] == pytest.approx(1 / 0.5 / 2, rel=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_negatives_and_weights_are_those_of_all_processes(
    weighted: bool, views: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = torch.randn(6, 128, generator=torch.Generator().manual_seed(4))
    method = make(weighted=weighted)
    seen = projections(method)
    monkeypatch.setattr(distributed, "gather", lambda rows: torch.cat([rows, other]))
    loss = float(method.step(views, 0.0).loss.detach())
    first, second = (torch.cat([output, other]) for output in seen[0].chunk(2))
    assert loss == pytest.approx(naive_dcl(first, second, 0.1, 0.5 if weighted else None), rel=1e-5)


def test_the_loss_is_fp32_under_bf16(views: list[Tensor]) -> None:
    method = make()
    seen = projections(method)
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.step(views, 0.0).loss.detach()
    assert seen[0].dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    first, second = seen[0].float().chunk(2)
    assert float(loss) == pytest.approx(naive_dcl(first, second, 0.1), rel=1e-5)


@pytest.mark.parametrize(
    ("facts", "optimizer"),
    [
        (Facts(), ("sgd", 0.12, "linear", 5e-4)),
        (Facts(1_280_000, 256, 224, num_steps=1_000_000), ("lars", 0.075, "sqrt", 1e-4)),
        (Facts(pretrained=True), ("adamw", 3e-4, "none", 1e-4)),
    ],
)
def test_the_recipe(facts: Facts, optimizer: tuple[str, float, str, float]) -> None:
    chosen = dcl.defaults(facts)
    assert chosen["method.temperature"][0] == 0.1
    keys = ("name", "lr", "scale", "weight_decay")
    assert tuple(chosen[f"optimizer.{key}"][0] for key in keys) == optimizer


def test_two_views_made_alike() -> None:
    views = make(weighted=True, augment=Augment(blur=0.5)).views(48)
    assert [(view.augment, view.size) for view in views] == [(Augment(blur=0.5), 48)] * 2


def test_the_heads_last_normalisation_has_no_shift() -> None:
    last = make().head.layers[-1]
    assert last.weight.requires_grad
    assert not last.bias.requires_grad


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"temperature": 0.0}, "method.temperature=0.0"),
        ({"weighted": True, "sigma": 0.0}, "method.sigma=0.0"),
        ({"num_layers": 1}, "method.num_layers"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], names: str) -> None:
    with pytest.raises(UserError) as caught:
        make(**settings)
    assert names in str(caught.value)
