"""Barlow Twins' loss against a loop over the formula, its two kinds of views, and the paper's recipe."""

from typing import Any

import pytest
import torch
from lightly.loss import BarlowTwinsLoss
from torch import Tensor, nn

from ssl_retrieval import backbones, distributed
from ssl_retrieval.augment import Augment
from ssl_retrieval.defaults import Facts, fill_method
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods import barlow_twins
from ssl_retrieval.methods.barlow_twins import Config, Method


def naive_loss(first: Tensor, second: Tensor, off_diagonal: float) -> float:
    """Algorithm 1 of the paper, entry by entry."""
    a, b = first.double(), second.double()
    rows, width = a.shape
    loss = 0.0
    for i in range(width):
        for j in range(width):
            x, y = a[:, i] - a[:, i].mean(), b[:, j] - b[:, j].mean()
            spread = (x.square().mean() + 1e-5).sqrt() * (y.square().mean() + 1e-5).sqrt()
            correlation = float(sum(x[n] * y[n] for n in range(rows)) / rows / spread)
            loss += (correlation - 1) ** 2 if i == j else off_diagonal * correlation**2
    return loss


def make(**settings: Any) -> Method:
    cfg = fill_method(barlow_twins, Config(**{"output_dim": 12} | settings), Facts())
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


@pytest.mark.parametrize("off_diagonal", [0.005, 1.0])
def test_the_loss_is_the_papers(off_diagonal: float, views: list[Tensor]) -> None:
    method = make(off_diagonal=off_diagonal)
    seen = projections(method)
    loss = float(method.step(views, 0.0).loss.detach())
    assert loss == pytest.approx(naive_loss(seen[0], seen[1], off_diagonal), rel=1e-4)
    assert loss == pytest.approx(float(BarlowTwinsLoss(off_diagonal)(seen[0], seen[1])), rel=1e-6)


def test_each_view_is_a_batch_of_its_own(views: list[Tensor]) -> None:
    method = make()
    seen = projections(method)
    method.step(views, 0.0)
    assert [output.shape for output in seen] == [(6, 12), (6, 12)]
    # Alone, in the same mode, a view gives what it gave beside the other one.
    again = method.head(backbones.own_pooling(method.encoder, views[1]))
    torch.testing.assert_close(again, seen[1])


def test_outputs_are_normalised_over_all_processes(
    views: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = torch.randn(6, 12, generator=torch.Generator().manual_seed(4))
    method = make()
    seen = projections(method)
    monkeypatch.setattr(distributed, "gather", lambda rows: torch.cat([rows, other]))
    loss = float(method.step(views, 0.0).loss.detach())
    whole = [torch.cat([output, other]) for output in seen]
    assert loss == pytest.approx(naive_loss(whole[0], whole[1], 0.005), rel=1e-4)


def test_the_loss_is_fp32_under_bf16(views: list[Tensor]) -> None:
    method = make()
    seen = projections(method)
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.step(views, 0.0).loss.detach()
    assert seen[0].dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(naive_loss(seen[0], seen[1], 0.005), rel=1e-4)


def test_the_views_are_the_papers() -> None:
    first, second = make().views(48)
    assert first.size == second.size == 48
    assert (first.augment.blur, first.augment.solarize) == (1.0, 0.0)
    assert (second.augment.blur, second.augment.solarize) == (0.1, 0.2)
    for augment in (first.augment, second.augment):
        assert (augment.brightness, augment.contrast, augment.saturation, augment.hue) == (0.4, 0.4, 0.2, 0.1)
        assert (augment.crop_min, augment.grayscale, augment.interpolation) == (0.08, 0.2, "bicubic")


def test_the_projector_has_three_layers_of_one_width_and_no_bias() -> None:
    layers = list(make(output_dim=24).head.layers)
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert [type(layer) for layer in layers] == [*kinds, *kinds, nn.Linear]
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(96, 24), (24, 24), (24, 24)]
    assert all(layer.bias is None for layer in linear)


@pytest.mark.parametrize(("images", "width"), [(1000, 2048), (200_000, 2048), (200_001, 8192)])
def test_the_projector_is_as_wide_as_the_data_are_many(images: int, width: int) -> None:
    assert fill_method(barlow_twins, Config(), Facts(images)).output_dim == width
    assert fill_method(barlow_twins, Config(output_dim=7), Facts(images)).output_dim == 7


def test_the_recipe_is_the_papers() -> None:
    recipe = {key: value for key, (value, _) in barlow_twins.defaults(Facts(1_281_167, 2048, 224)).items()}
    assert recipe["optimizer.name"] == "lars"
    assert recipe["optimizer.scale"] == "linear"
    assert recipe["optimizer.lr"] == 0.2
    assert recipe["optimizer.lr"] * recipe["optimizer.bias_lr"] == pytest.approx(0.0048)
    assert recipe["optimizer.weight_decay"] == 1.5e-6


@pytest.mark.parametrize(
    ("facts", "name", "lr"),
    [
        (Facts(50_000, 512, 32), "sgd", 0.12),
        (Facts(50_000, 256, 224, pretrained=True), "adamw", 3e-4),
        (Facts(50_000, 256, 224, pretrained=True, transformer=True), "adamw", 3e-4),
    ],
)
def test_other_starts_have_other_recipes(facts: Facts, name: str, lr: float) -> None:
    recipe = barlow_twins.defaults(facts)
    assert recipe["optimizer.name"][0] == name
    assert recipe["optimizer.lr"][0] == lr
    assert "optimizer.bias_lr" not in recipe


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"off_diagonal": -1.0}, "method.off_diagonal=-1.0"),
        ({"output_dim": 1}, "method.output_dim=1"),
        ({"augment": Augment(flip=1.5)}, "augment.flip=1.5"),
        ({"augment_2": Augment(blur=-1.0)}, "augment.blur=-1.0"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], names: str) -> None:
    with pytest.raises(UserError) as caught:
        make(**settings)
    assert names in str(caught.value)
