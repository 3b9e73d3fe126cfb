"""VISReg's terms against loops over their formulas and lightly's, and its gradient at collapse."""

from statistics import NormalDist
from typing import Any

import pytest
import torch
from lightly.loss import VISRegLoss
from torch import Tensor, nn

from ssl_retrieval import backbones, distributed
from ssl_retrieval.defaults import Facts, fill_method
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods import visreg
from ssl_retrieval.methods.lejepa import draw_directions, sigreg
from ssl_retrieval.methods.visreg import Config, Method, shape_loss


def naive_terms(projected: Tensor, directions: Tensor) -> dict[str, float]:
    """Equations 1, 5 and 6, view by view and direction by direction."""
    count = projected.shape[1]
    quantiles = [NormalDist().inv_cdf(i / (count + 1)) for i in range(1, count + 1)]
    scale, shape, center = [], [], []
    for view in projected.double():
        mean = view.mean(0)
        deviation = (view - mean).square().mean(0).sqrt()
        center.append(float(mean.square().mean()))
        scale.append(float((1 - deviation).square().mean()))
        for direction in directions.T.double():
            values = sorted(((view - mean) / (deviation + 1e-4) @ direction).tolist())
            distances = [(a - b) ** 2 for a, b in zip(values, quantiles, strict=True)]
            shape.append(sum(distances) / count)
    terms = {"scale": scale, "shape": shape, "center": center}
    return {name: sum(values) / len(values) for name, values in terms.items()}


def make(**settings: Any) -> Method:
    sizes = {"hidden_dim": 32, "output_dim": 8, "num_slices": 16, "weight": 0.6}
    cfg = fill_method(visreg, Config(**sizes | settings), Facts())
    torch.manual_seed(0)
    return Method(cfg, backbones.make("test_resnet", seed=1)).train()


def views_for(method: Method) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(4, 3, v.size, v.size, generator=generator) for v in method.views(32)]


@pytest.fixture
def projected() -> Tensor:
    return torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(3)) * 1.5 + 0.3


DIRECTIONS = draw_directions(torch.tensor(0), 8, 16)


def test_the_regularizer_is_the_papers(projected: Tensor) -> None:
    expected = naive_terms(projected, DIRECTIONS)
    loss, terms = make(scale=2.0, shape=3.0, center=5.0).regularize(projected, DIRECTIONS)
    assert {name: float(term) for name, term in terms.items()} == pytest.approx(expected, rel=1e-4)
    total = 2 * expected["scale"] + 3 * expected["shape"] + 5 * expected["center"]
    assert float(loss) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("local_crops", [0, 2])
def test_the_loss_is_lightlys(local_crops: int, monkeypatch: pytest.MonkeyPatch) -> None:
    method = make(local_crops=local_crops)
    seen: list[Tensor] = []
    method.head.register_forward_hook(lambda _, __, output: seen.append(output))
    loss = method.step(views_for(method), 0.0).loss
    (ours,) = torch.autograd.grad(loss, seen[0], retain_graph=True)
    rows = torch.cat(seen).unflatten(0, (2 + local_crops, 4))
    monkeypatch.setattr(torch, "randn", lambda *_, **__: DIRECTIONS.clone())
    theirs = VISRegLoss(0.6, num_slices=16)(global_proj=rows[:2], local_proj=rows[2:])
    assert float(loss.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    (expected,) = torch.autograd.grad(theirs, seen[0])
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_shape_does_not_feel_scale_and_place(projected: Tensor) -> None:
    before = shape_loss(projected, DIRECTIONS)
    torch.testing.assert_close(shape_loss(100 * projected - 7, DIRECTIONS), before, rtol=1e-3, atol=1e-4)


def test_the_gradient_survives_a_collapse_that_lejepas_does_not() -> None:
    """Section 3.1: shrinking embeddings must be pushed apart, however small they are."""
    spread = torch.randn(1, 64, 8, generator=torch.Generator().manual_seed(0))
    method, pushes = make(), {}
    for size in (1e-1, 1e-3):
        for name, loss in (
            ("visreg", lambda rows: method.regularize(rows, DIRECTIONS)[0]),
            ("lejepa", lambda rows: sigreg(rows, DIRECTIONS)),
        ):
            rows = (size * spread).requires_grad_()
            (gradient,) = torch.autograd.grad(loss(rows), rows)
            pushes[name, size] = -float((gradient * spread).sum())
    assert pushes["visreg", 1e-3] > pushes["visreg", 1e-1] > 0
    assert pushes["lejepa", 1e-3] < pushes["lejepa", 1e-1] / 50


def test_processes_share_the_directions_and_all_see_all_rows(
    projected: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make()
    whole, terms = method.regularize(projected, DIRECTIONS)
    losses, shapes = [], []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "gather", lambda _: projected.transpose(0, 1))
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        loss, found = method.regularize(projected[:, 3 * rank : 3 * rank + 3], DIRECTIONS)
        losses.append(float(loss))
        shapes.append(float(found["shape"]))
    assert sum(losses) / 2 == pytest.approx(float(whole), rel=1e-5)
    assert sum(shapes) / 2 == pytest.approx(float(terms["shape"]), rel=1e-5)
    assert shapes[0] != shapes[1]
    with pytest.raises(UserError, match="multiple of the 2 processes"):
        make(num_slices=15)


def test_a_resumed_run_draws_the_same_directions() -> None:
    method = make()
    views = views_for(method)
    method.step(views, 0.0)
    other = make()
    other.load_state_dict(method.state_dict())
    torch.manual_seed(77)
    expected = method.step(views, 0.0)
    assert torch.equal(other.step(views, 0.0).loss, expected.loss)
    assert not torch.equal(method.step(views, 0.0).logs["shape"], expected.logs["shape"])


def test_the_projector_is_lejepas_with_gelu() -> None:
    layers = list(make().head.layers)
    kinds = [nn.Linear, nn.BatchNorm1d, nn.GELU]
    assert [type(layer) for layer in layers] == [*kinds, *kinds, nn.Linear]


@pytest.mark.parametrize(
    ("facts", "weight", "output_dim", "lr", "decay"),
    [
        (Facts(1_281_167, 256, 224, transformer=True), 0.9, 256, 9e-4, 0.05),
        (Facts(10_000, 256, 128, transformer=True), 0.6, 128, 9e-4, 0.05),
        (Facts(160_000, 256, 128), 0.75, 128, 9e-4, 5e-4),
        (Facts(10_000, 256, 128, pretrained=True), 0.6, 128, 3e-4, 1e-4),
    ],
)
def test_the_recipe_is_the_authors(
    facts: Facts, weight: float, output_dim: int, lr: float, decay: float
) -> None:
    recipe = visreg.defaults(facts)
    assert (recipe["method.weight"][0], recipe["method.output_dim"][0]) == (weight, output_dim)
    keys = ("name", "lr", "scale", "weight_decay")
    assert [recipe[f"optimizer.{key}"][0] for key in keys] == ["adamw", lr, "none", decay]
    assert ("optimizer.clip" in recipe) == (not facts.pretrained)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"scale": -1.0}, "method.scale=-1.0"),
        ({"shape": -1.0}, "method.shape=-1.0"),
        ({"center": -1.0}, "method.center=-1.0"),
        ({"weight": -0.1}, "method.weight=-0.1"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], names: str) -> None:
    with pytest.raises(UserError) as caught:
        make(**settings)
    assert names in str(caught.value)
