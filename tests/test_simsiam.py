"""SimSiam's loss, stop-gradient and heads against the paper."""

from typing import Any

import pytest
import torch
from lightly.loss import NegativeCosineSimilarity
from method_makers import method_of, views_for
from torch import Tensor, nn

from ssl_retrieval import optim
from ssl_retrieval.augment import Augment
from ssl_retrieval.defaults import Facts, fill, fill_method
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods import simsiam
from ssl_retrieval.methods.simsiam import Method


def make(**settings: Any) -> Method:
    method = method_of("simsiam", **{"output_dim": 32, "predictor_dim": 8, "num_layers": 3} | settings)
    assert isinstance(method, Method)
    # timm starts the last scale of every residual block at 0, which blocks what lies before it at first.
    for module in method.encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    return method


def heard(module: nn.Module) -> list[Tensor]:
    """Collect what a module gives from now on."""
    outputs: list[Tensor] = []
    module.register_forward_hook(lambda _, __, output: outputs.append(output))
    return outputs


def naive_loss(predicted: list[Tensor], projected: list[Tensor]) -> float:
    """Equations 1 and 2 of the paper, image by image."""
    total = 0.0
    for prediction, target in ((predicted[0], projected[1]), (predicted[1], projected[0])):
        for p, z in zip(prediction.detach().double(), target.detach().double(), strict=True):
            total -= float(p @ z / (p.norm() * z.norm())) / len(prediction) / 2
    return total


def test_the_loss_is_the_papers_in_both_directions() -> None:
    method = make()
    predicted, projected = heard(method.predictor), heard(method.projector)
    views = views_for(method)
    loss = method.step(views, 0.0).loss.item()
    assert [len(rows) for rows in (*predicted, *projected)] == [8] * 4, "each view goes through by itself"
    assert loss == pytest.approx(naive_loss(predicted, projected), rel=1e-5)
    one = NegativeCosineSimilarity()
    theirs = (one(predicted[0], projected[1]) + one(predicted[1], projected[0])) / 2
    assert loss == pytest.approx(theirs.item(), rel=1e-5)
    assert method.step(views[::-1], 0.0).loss.item() == pytest.approx(loss, rel=1e-5)


def test_gradients_stop_at_the_projections_that_are_predicted() -> None:
    method = make()
    predicted, projected = heard(method.predictor), heard(method.projector)
    loss = method.step(views_for(method), 0.0).loss
    ours = torch.autograd.grad(loss, projected, retain_graph=True)
    fixed = [z.detach() for z in projected]
    one = NegativeCosineSimilarity()
    stopped = (one(predicted[0], fixed[1]) + one(predicted[1], fixed[0])) / 2
    flowing = (one(predicted[0], projected[1]) + one(predicted[1], projected[0])) / 2
    for gradient, right, wrong in zip(
        ours,
        torch.autograd.grad(stopped, projected, retain_graph=True),
        torch.autograd.grad(flowing, projected, retain_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(gradient, right)
        assert not torch.allclose(gradient, wrong)


def test_gradients_reach_every_parameter() -> None:
    method = make()
    method.step(views_for(method), 0.0).loss.backward()
    without = [name for name, p in method.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_the_predictors_learning_rate_stays_at_its_peak() -> None:
    method = make()
    fixed = {name for name, _ in method.named_parameters() if name.startswith(method.fixed_lr)}
    assert fixed == {f"predictor.{name}" for name, _ in method.predictor.named_parameters()}
    recipe = simsiam.defaults(Facts(num_images=1_280_000, batch_size=256, image_size=224))
    choices = optim.choices(optim.OptimizerConfig(), recipe, Facts())
    cfg, _ = fill(optim.OptimizerConfig(), {k.removeprefix("optimizer."): v for k, v in choices.items()})
    optimizer = optim.make(cfg, method, 256)
    optim.schedule(cfg, optimizer, 0.5)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in method.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.05 if name in fixed else 0.025), name


def test_the_heads_are_the_authors() -> None:
    method = make()
    layers = list(method.projector.layers)
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(96, 32), (32, 32), (32, 32)]
    norms = [layer for layer in layers if isinstance(layer, nn.BatchNorm1d)]
    assert [norm.affine for norm in norms] == [True, True, False]
    assert layers[-1] is norms[-1], "batch normalisation, and no ReLU, ends the projector"
    first, norm, relu, last = method.predictor.layers
    assert isinstance(norm, nn.BatchNorm1d)
    assert isinstance(relu, nn.ReLU)
    assert (first.out_features, last.out_features) == (8, 32)
    assert last.bias is not None, "no batch normalisation follows"
    assert len([m for m in make(num_layers=2).projector.layers if isinstance(m, nn.Linear)]) == 2


def test_two_views_made_alike() -> None:
    views = make(augment=Augment(blur=0.5)).views(48)
    assert [(view.augment, view.size) for view in views] == [(Augment(blur=0.5), 48)] * 2


def test_the_loss_is_fp32_under_bf16() -> None:
    method = make()
    predicted, projected = heard(method.predictor), heard(method.projector)
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.step(views_for(method), 0.0).loss
    assert predicted[0].dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(naive_loss(predicted, projected), rel=1e-5)


def test_the_log_tells_a_collapse() -> None:
    method = make()
    projected = heard(method.projector)
    logged = float(method.step(views_for(method), 0.0).logs["output_std"])
    unit = nn.functional.normalize(projected[0].detach())
    assert logged == pytest.approx(float(unit.std(dim=0).mean()) * 32**0.5, rel=1e-5)
    assert 0.8 < logged < 1.2
    method.projector.register_forward_hook(lambda _, __, output: output[:1].expand_as(output))
    assert float(method.step(views_for(method), 0.0).logs["output_std"]) < 1e-3


@pytest.mark.parametrize(
    ("num_images", "image_size", "expected"),
    [(5_000, 32, (1024, 256, 2)), (50_000, 32, (2048, 512, 2)), (1_280_000, 224, (2048, 512, 3))],
)
def test_open_settings_follow_the_images(
    num_images: int, image_size: int, expected: tuple[int, int, int]
) -> None:
    cfg = fill_method(simsiam, simsiam.Config(), Facts(num_images, image_size=image_size))
    assert (cfg.output_dim, cfg.predictor_dim, cfg.num_layers) == expected


@pytest.mark.parametrize(("image_size", "lr", "decay"), [(32, 0.03, 5e-4), (224, 0.05, 1e-4)])
def test_the_optimizer_is_the_papers(image_size: int, lr: float, decay: float) -> None:
    recipe = {k: v for k, (v, _) in simsiam.defaults(Facts(50_000, 512, image_size)).items()}
    assert (recipe["optimizer.name"], recipe["optimizer.scale"]) == ("sgd", "linear")
    assert (recipe["optimizer.lr"], recipe["optimizer.weight_decay"]) == (lr, decay)
    assert recipe["optimizer.warmup"] == 0.0
    assert "optimizer.warmup" not in simsiam.defaults(Facts(1_280_000, 2048, image_size))


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"output_dim": 0}, "method.output_dim"),
        ({"predictor_dim": 0}, "method.predictor_dim"),
        ({"num_layers": 1}, "method.num_layers"),
        ({"augment": Augment(flip=1.5)}, "augment.flip=1.5"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], names: str) -> None:
    with pytest.raises(UserError) as caught:
        make(**settings)
    assert names in str(caught.value)
