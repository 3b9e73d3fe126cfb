"""VICReg's three terms against loops over their formulas, over the batches of all processes."""

import math
from typing import Any

import pytest
import torch
from lightly.loss import VICRegLoss
from torch import Tensor, nn

from ssl_retrieval import backbones, distributed
from ssl_retrieval.augment import Augment
from ssl_retrieval.defaults import Facts, fill_method
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods import vicreg
from ssl_retrieval.methods.vicreg import Config, Method


def naive_invariance(first: Tensor, second: Tensor) -> float:
    """Equation 5, divided by the number of outputs as in the authors' code."""
    rows, width = first.shape
    distances = [float((first[n].double() - second[n].double()).square().sum()) for n in range(rows)]
    return sum(distances) / rows / width


def covariance_of(rows: Tensor, i: int, j: int) -> float:
    a, b = rows[:, i].double(), rows[:, j].double()
    return float(((a - a.mean()) * (b - b.mean())).sum() / (len(rows) - 1))


def naive_variance(rows: Tensor) -> float:
    """Equation 1: the hinge on standard deviations around 1, with 0.0001 in the root."""
    width = rows.shape[1]
    return sum(max(0.0, 1 - math.sqrt(covariance_of(rows, i, i) + 1e-4)) for i in range(width)) / width


def naive_covariance(rows: Tensor) -> float:
    """Equation 4."""
    width = rows.shape[1]
    entries = [covariance_of(rows, i, j) ** 2 for i in range(width) for j in range(width) if i != j]
    return sum(entries) / width


def make(**settings: Any) -> Method:
    cfg = fill_method(vicreg, Config(**{"output_dim": 10} | settings), Facts())
    torch.manual_seed(0)
    return Method(cfg, backbones.make("test_resnet", seed=1)).train()


def projections(method: Method) -> list[Tensor]:
    """Give the list that the projector's outputs will be put into."""
    seen: list[Tensor] = []
    method.head.register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    return seen


@pytest.fixture
def views() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(6, 3, 32, 32, generator=generator) for _ in range(2)]


@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
def test_the_loss_is_the_authors(weights: tuple[float, float, float], views: list[Tensor]) -> None:
    method = make(invariance=weights[0], variance=weights[1], covariance=weights[2])
    seen = projections(method)
    loss = float(method.step(views, 0.0).loss.detach())
    assert [output.shape for output in seen] == [(6, 10), (6, 10)], "each view is a batch of its own"
    expected = (
        weights[0] * naive_invariance(seen[0], seen[1])
        + weights[1] * (naive_variance(seen[0]) + naive_variance(seen[1])) / 2
        + weights[2] * (naive_covariance(seen[0]) + naive_covariance(seen[1]))
    )
    assert loss == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert loss == pytest.approx(float(VICRegLoss(*weights)(seen[0], seen[1])), rel=1e-5, abs=1e-7)


def test_the_terms_are_logged(views: list[Tensor]) -> None:
    output = make(invariance=3.0, variance=5.0, covariance=7.0).step(views, 0.0)
    terms = {name: float(value) for name, value in output.logs.items()}
    total = 3 * terms["invariance"] + 5 * terms["variance"] + 7 * terms["covariance"]
    assert float(output.loss.detach()) == pytest.approx(total, rel=1e-5)


def test_embeddings_that_are_all_the_same_are_what_variance_forbids(views: list[Tensor]) -> None:
    method = make()
    nn.init.zeros_(method.head.layers[-1].weight)
    logs = method.step(views, 0.0).logs
    assert float(logs["variance"]) == pytest.approx(1 - math.sqrt(1e-4))
    assert float(logs["invariance"]) == float(logs["covariance"]) == 0


def test_variance_and_covariance_are_those_of_all_processes(
    views: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = torch.randn(6, 10, generator=torch.Generator().manual_seed(4)) / 2
    method = make()
    seen = projections(method)
    monkeypatch.setattr(distributed, "gather", lambda rows: torch.cat([rows, other]))
    logs = method.step(views, 0.0).logs
    whole = [torch.cat([output, other]) for output in seen]
    # Every process adds its own pairs of views, and the mean of its part is part of the mean of all.
    assert float(logs["invariance"]) == pytest.approx(naive_invariance(seen[0], seen[1]), rel=1e-4)
    assert float(logs["variance"]) == pytest.approx(sum(map(naive_variance, whole)) / 2, rel=1e-4)
    assert float(logs["covariance"]) == pytest.approx(sum(map(naive_covariance, whole)), rel=1e-4)


def test_the_loss_is_fp32_under_bf16(views: list[Tensor]) -> None:
    method = make()
    seen = projections(method)
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.step(views, 0.0).loss.detach()
    assert seen[0].dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(VICRegLoss()(seen[0].float(), seen[1].float())), rel=1e-5)


def test_two_views_made_alike_as_in_the_paper() -> None:
    first, second = make().views(48)
    assert first == second
    assert first.size == 48
    assert (first.augment.blur, first.augment.solarize, first.augment.saturation) == (0.5, 0.1, 0.2)


@pytest.mark.parametrize(("images", "width"), [(50_000, 2048), (1_281_167, 8192)])
def test_the_projector_is_as_wide_as_the_data_are_many(images: int, width: int) -> None:
    assert fill_method(vicreg, Config(), Facts(images)).output_dim == width


@pytest.mark.parametrize(
    ("facts", "name", "lr", "scale", "decay"),
    [
        (Facts(1_280_000, 512, 224, num_steps=250_000), "lars", 0.3, "linear", 1e-6),
        (Facts(1_280_000, 512, 224, num_steps=2_500_000), "lars", 0.2, "linear", 1e-6),
        (Facts(50_000, 256, 32), "lars", 0.3, "linear", 1e-4),
        (Facts(50_000, 256, 224, pretrained=True), "adamw", 3e-4, "none", 1e-4),
    ],
)
def test_the_recipe(facts: Facts, name: str, lr: float, scale: str, decay: float) -> None:
    recipe = vicreg.defaults(facts)
    keys = ("name", "lr", "scale", "weight_decay")
    assert tuple(recipe[f"optimizer.{key}"][0] for key in keys) == (name, lr, scale, decay)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"invariance": -1.0}, "method.invariance=-1.0"),
        ({"variance": -1.0}, "method.variance=-1.0"),
        ({"covariance": -1.0}, "method.covariance=-1.0"),
        ({"output_dim": 1}, "method.output_dim=1"),
        ({"augment": Augment(flip=1.5)}, "augment.flip=1.5"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], names: str) -> None:
    with pytest.raises(UserError) as caught:
        make(**settings)
    assert names in str(caught.value)
