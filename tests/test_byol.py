"""BYOL's loss, target network and schedule against the formulas of the paper."""

import math
from typing import Any

import pytest
import torch
from lightly.loss import NegativeCosineSimilarity
from method_makers import method_of, views_for
from torch import Tensor, nn

from ssl_retrieval.augment import Augment
from ssl_retrieval.defaults import Facts, fill_method
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods import byol
from ssl_retrieval.methods.byol import Method


def make(**settings: Any) -> Method:
    method = method_of("byol", **{"hidden_dim": 48, "output_dim": 16} | settings)
    assert isinstance(method, Method)
    # timm starts the last scale of every residual block at 0, which blocks what lies before it at first.
    for module in (*method.encoder.modules(), *method.teacher.modules()):
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    return method


def heard(module: nn.Module) -> list[Tensor]:
    """Collect what a module gives from now on."""
    outputs: list[Tensor] = []
    module.register_forward_hook(lambda _, __, output: outputs.append(output))
    return outputs


def naive_loss(predicted: list[Tensor], targets: list[Tensor]) -> float:
    """Equations 2 and 3 of the paper, image by image: each view predicts the other's target."""
    total = 0.0
    for prediction, target in ((predicted[0], targets[1]), (predicted[1], targets[0])):
        for p, t in zip(prediction.detach().double(), target.double(), strict=True):
            total += float((p / p.norm() - t / t.norm()).square().sum()) / len(prediction)
    return total


def test_the_loss_is_the_papers_in_both_directions() -> None:
    method = make()
    predicted, targets = heard(method.predictor), heard(method.teacher_projector)
    views = views_for(method)
    loss = method.step(views, 0.0).loss.item()
    assert [len(rows) for rows in (*predicted, *targets)] == [8] * 4, "each view goes through by itself"
    assert loss == pytest.approx(naive_loss(predicted, targets), rel=1e-5)
    one = NegativeCosineSimilarity()
    theirs = 4 + 2 * one(predicted[0], targets[1]) + 2 * one(predicted[1], targets[0])
    assert loss == pytest.approx(theirs.item(), rel=1e-5)
    assert method.step(views[::-1], 0.0).loss.item() == pytest.approx(loss, rel=1e-5)


def test_gradients_reach_all_of_the_online_network_and_none_of_the_target() -> None:
    method = make()
    targets = heard(method.teacher_projector)
    method.step(views_for(method), 0.0).loss.backward()
    assert not any(target.requires_grad for target in targets)
    for name, parameter in method.named_parameters():
        if name.startswith("teacher"):
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_the_target_is_network_and_projector_and_moves_after_the_step_alone() -> None:
    method = make(momentum=0.9)
    assert method.pairs() == [
        (method.teacher, method.encoder),
        (method.teacher_projector, method.projector),
    ]
    before = [parameter.clone() for teacher, _ in method.pairs() for parameter in teacher.parameters()]
    online = [parameter for _, student in method.pairs() for parameter in student.parameters()]
    assert all(torch.equal(old, new) for old, new in zip(before, online, strict=True))
    method.step(views_for(method), 0.0).loss.backward()
    torch.optim.SGD((p for p in method.parameters() if p.requires_grad), lr=0.1).step()
    targets = [parameter for teacher, _ in method.pairs() for parameter in teacher.parameters()]
    assert all(torch.equal(old, new) for old, new in zip(before, targets, strict=True))
    method.after_step(0.5)
    kept = 1 - (1 - 0.9) * (math.cos(math.pi * 0.5) + 1) / 2
    for old, target, new in zip(before, targets, online, strict=True):
        torch.testing.assert_close(target, kept * old + (1 - kept) * new.detach())
    assert not torch.equal(before[0], targets[0])


def test_the_target_normalises_by_its_own_batch() -> None:
    method = make()
    layer = next(m for m in method.teacher.modules() if isinstance(m, nn.BatchNorm2d))
    assert layer.training
    assert layer.running_mean is not None
    before = layer.running_mean.clone()
    method.step(views_for(method), 0.0)
    assert not torch.equal(layer.running_mean, before)
    method.set_mode("eval")
    assert not layer.training


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_momentum_rises_to_one_as_in_the_paper(progress: float) -> None:
    expected = 1 - (1 - 0.996) * (math.cos(math.pi * progress) + 1) / 2
    assert make(momentum=0.996).momentum(progress) == pytest.approx(expected, abs=1e-12)


def test_the_heads_are_the_authors() -> None:
    method = make(hidden_dim=40, output_dim=12)
    for head, inputs in ((method.projector, 96), (method.predictor, 12)):
        first, norm, relu, last = head.layers
        assert (first.in_features, first.out_features) == (inputs, 40)
        assert (last.in_features, last.out_features) == (40, 12)
        assert isinstance(norm, nn.BatchNorm1d)
        assert isinstance(relu, nn.ReLU)
        assert last.bias is None


def test_the_two_views_are_made_each_in_its_own_way() -> None:
    first, second = Augment(blur=1.0), Augment(blur=0.1, solarize=0.2)
    views = make(augment=first, augment_2=second).views(48)
    assert [(view.augment, view.size) for view in views] == [(first, 48), (second, 48)]


def test_the_loss_is_fp32_under_bf16() -> None:
    method = make()
    predicted, targets = heard(method.predictor), heard(method.teacher_projector)
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.step(views_for(method), 0.0).loss
    assert {output.dtype for output in (*predicted, *targets)} == {torch.bfloat16}
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(naive_loss(predicted, targets), rel=1e-5)


def test_the_log_tells_targets_that_are_all_the_same() -> None:
    method = make()
    assert 0.3 < float(method.step(views_for(method), 0.0).logs["target_std"]) < 1.1
    last = method.teacher_projector.layers[-1]
    last.register_forward_hook(lambda _, __, output: output[:1].expand_as(output))
    assert float(method.step(views_for(method), 0.0).logs["target_std"]) < 1e-3


@pytest.mark.parametrize(
    ("num_images", "hidden", "output"),
    [(5_000, 1024, 128), (50_000, 1024, 256), (1_280_000, 4096, 256)],
)
def test_open_widths_follow_the_number_of_images(num_images: int, hidden: int, output: int) -> None:
    cfg = fill_method(byol, byol.Config(), Facts(num_images))
    assert (cfg.hidden_dim, cfg.output_dim) == (hidden, output)


@pytest.mark.parametrize(
    ("num_images", "epochs", "momentum"),
    [(1_280_000, 300, 0.99), (1_280_000, 1000, 0.996), (2_560, 40, 0.98), (2_560, 2, 0.7)],
)
def test_the_momentum_is_the_papers_for_as_many_epochs_and_lower_for_few_steps(
    num_images: int, epochs: int, momentum: float
) -> None:
    facts = Facts(num_images, 256, num_steps=epochs * num_images // 256)
    assert fill_method(byol, byol.Config(), facts).momentum == momentum


@pytest.mark.parametrize(
    ("epochs", "lr", "decay"), [(100, 0.45, 1e-6), (300, 0.3, 1e-6), (1000, 0.2, 1.5e-6)]
)
def test_the_optimizer_is_the_papers_for_as_many_epochs(epochs: int, lr: float, decay: float) -> None:
    facts = Facts(1_280_000, 4096, 224, num_steps=epochs * (1_280_000 // 4096))
    recipe = {key: value for key, (value, _) in byol.defaults(facts).items()}
    assert recipe["optimizer.name"] == "lars"
    assert recipe["optimizer.scale"] == "linear"
    assert (recipe["optimizer.lr"], recipe["optimizer.weight_decay"]) == (lr, decay)


def test_sgd_on_small_images_makes_the_steps_of_lightlys_benchmark() -> None:
    recipe = {key.removeprefix("optimizer."): value for key, (value, _) in byol.defaults(Facts()).items()}
    assert (recipe["name"], recipe["scale"]) == ("sgd", "linear")
    generator = torch.Generator().manual_seed(0)
    predicted, targets = torch.randn(2, 2, 6, 16, generator=generator)
    one, ends = NegativeCosineSimilarity(), []
    for lr, decay in ((recipe["lr"], recipe["weight_decay"]), (0.12, 5e-4)):
        rows = predicted.clone().requires_grad_()
        theirs = (one(rows[0], targets[1]) + one(rows[1], targets[0])) / 2
        ours = byol.regression_loss(rows[0], targets[1]) + byol.regression_loss(rows[1], targets[0])
        optimizer = torch.optim.SGD([rows], lr=lr, momentum=0.9, weight_decay=decay)
        (theirs if lr == 0.12 else ours).backward()
        optimizer.step()
        ends.append(rows.detach() - predicted)
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-7)


def test_the_online_network_is_kept_unless_asked_otherwise() -> None:
    assert make().kept == "student"
    method = make(export="teacher")
    assert method.networks()[method.kept] is method.teacher


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"momentum": 1.5}, "method.momentum=1.5"),
        ({"hidden_dim": 0}, "method.hidden_dim"),
        ({"export": "target"}, "method.export='target'"),
        ({"augment_2": Augment(solarize=2.0)}, "augment.solarize=2.0"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], names: str) -> None:
    with pytest.raises(UserError) as caught:
        make(**settings)
    assert names in str(caught.value)
