"""SSCD's loss against loops over the formulas, and that the descriptor it trains is what is exported."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as nnf

from ssl_retrieval import backbones, plugins
from ssl_retrieval.augment import Augment
from ssl_retrieval.defaults import Facts
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods.sscd import Config, Entropy, Method, copies, defaults


def unit(first: Tensor, second: Tensor) -> Tensor:
    z = torch.cat([first, second]).double()
    return z / z.norm(dim=1, keepdim=True)


def naive_entropy(first: Tensor, second: Tensor) -> float:
    """Equation 3: the nearest among the views of other images, one by one."""
    z, count = unit(first, second), len(first)
    logs = []
    for i in range(2 * count):
        others = [float((z[i] - z[j]).norm()) for j in range(2 * count) if j % count != i % count]
        logs.append(-math.log(min(others)))
    return sum(logs) / len(logs)


def naive_nt_xent(first: Tensor, second: Tensor, temperature: float) -> float:
    z, count = unit(first, second), len(first)
    losses = []
    for i in range(2 * count):
        partner = (i + count) % (2 * count)
        weights = [math.exp(float(z[i] @ z[k]) / temperature) for k in range(2 * count)]
        losses.append(-math.log(weights[partner] / (sum(weights) - weights[i])))
    return sum(losses) / len(losses)


def make(**options: Any) -> Method:
    torch.manual_seed(0)
    return Method(Config(**options), backbones.make("resnet10t", seed=1))


@pytest.fixture
def views() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(6, 3, 32, 32, generator=generator) for _ in range(2)]


@pytest.mark.parametrize(("temperature", "weight"), [(0.05, 30.0), (0.5, 2.0), (0.05, 0.0)])
def test_the_loss_is_the_papers(temperature: float, weight: float, views: list[Tensor]) -> None:
    method = make(temperature=temperature, entropy_weight=weight, dim=16).eval()
    loss = float(method.step(views, 0.0).loss.detach())
    with torch.no_grad():
        first, second = (method.head(method.encoder, view) for view in views)
    wanted = naive_nt_xent(first, second, temperature) + weight * naive_entropy(first, second)
    assert loss == pytest.approx(wanted, rel=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 9), st.integers(2, 12), st.integers(0, 2**31), st.floats(0.01, 100.0))
def test_the_entropy_is_the_formulas_at_any_length(count: int, dim: int, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, count, dim, generator=generator)
    found = float(Entropy()(scale * first, second))
    # Distances below a thousandth count as that: the loop's differ there.
    assert found == pytest.approx(min(naive_entropy(first, second), -math.log(1e-3)), abs=1e-3)


def test_the_two_views_of_an_image_are_not_pushed_apart() -> None:
    first = torch.eye(4, requires_grad=True)
    loss = Entropy()(first, first.detach().clone())
    assert float(loss.detach()) == pytest.approx(-math.log(math.sqrt(2)))


def test_duplicates_among_the_images_leave_everything_finite() -> None:
    first = torch.ones(4, 8, requires_grad=True)
    loss = Entropy()(first, torch.ones(4, 8))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-math.log(1e-3), rel=1e-4)
    assert first.grad is not None
    assert not first.grad.any()


def test_a_step_down_the_entropy_spreads_the_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    first = (torch.ones(8, 16) + 0.1 * torch.randn(8, 16, generator=generator)).requires_grad_()
    before = Entropy()(first, first)
    (slope,) = torch.autograd.grad(before, first)
    with torch.no_grad():
        moved = first - 0.05 * slope
    assert Entropy()(moved, moved) < before


def test_what_is_trained_is_what_is_exported(views: list[Tensor]) -> None:
    method = make(dim=16).eval()
    seen: list[Tensor] = []
    method.criterion.register_forward_pre_hook(lambda _, inputs: seen.append(torch.cat(inputs).detach()))
    method.step(views, 0.0)
    head = method.embedding_head()
    assert (head.pool, head.dim) == ("gem", 16)
    with torch.no_grad():
        torch.testing.assert_close(head(method.encoder, torch.cat(views)), seen[0])


def test_the_loss_is_fp32_under_bf16(views: list[Tensor]) -> None:
    method = make(dim=16).eval()
    taken: list[torch.dtype] = []
    method.entropy.register_forward_pre_hook(lambda _, inputs: taken.extend(x.dtype for x in inputs))
    with torch.autocast("cpu", torch.bfloat16):
        assert method.step(views, 0.0).loss.dtype == torch.float32
    assert taken == [torch.float32, torch.float32]


def test_the_layer_can_begin_as_whitening() -> None:
    generator = torch.Generator().manual_seed(5)
    method = make(dim=8, whiten=True)
    images = torch.randn(24, 3, 32, 32, generator=generator)
    method.begin(iter([[images[:12], images[:12]], [images[12:], images[12:]]]))
    with torch.no_grad():
        vectors = method.head(method.encoder.eval(), images)
    torch.testing.assert_close(vectors.mean(0), torch.zeros(8), atol=1e-3, rtol=0)
    spread = nnf.normalize(vectors.T, dim=1)
    torch.testing.assert_close(spread @ spread.T, torch.eye(8), atol=1e-2, rtol=0)


def test_two_views_with_strong_blur() -> None:
    first, second = make().views(48)
    assert first == second
    assert first.augment == copies()
    assert (first.augment.blur_sigma_max, first.augment.affine) == (5.0, 0.1)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"temperature": 0.0}, "method.temperature=0.0"),
        ({"entropy_weight": -1.0}, "method.entropy_weight=-1.0"),
        ({"dim": 0}, "method.dim=0"),
        ({"pool": "max"}, "method.pool='max'"),
        ({"augment": Augment(flip=1.5)}, "augment.flip=1.5"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], names: str) -> None:
    with pytest.raises(UserError) as caught:
        make(**options)
    assert names in str(caught.value)


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        (Facts(image_size=224), ("lars", 0.3, "linear", 1e-6)),
        (Facts(image_size=224, pretrained=True), ("adamw", 3e-4, "none", 1e-4)),
        (Facts(image_size=32), ("sgd", 0.12, "linear", 5e-4)),
    ],
)
def test_the_optimizer_follows_the_authors(facts: Facts, wanted: tuple[str, float, str, float]) -> None:
    chosen = defaults(facts)
    assert tuple(chosen[f"optimizer.{key}"][0] for key in ("name", "lr", "scale", "weight_decay")) == wanted
    assert plugins.find("method", "sscd").Method is Method
