"""DINO against a double loop over the formula, its schedules, its centre and its teacher."""

import copy
import math
from typing import Any

import pytest
import torch
from lightly.loss import DINOLoss
from torch import Tensor

from ssl_retrieval import backbones, optim
from ssl_retrieval.augment import Augment, Output, make_views
from ssl_retrieval.defaults import Facts, fill_method
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods import dino, ibot
from ssl_retrieval.methods.dino import Config, Method
from ssl_retrieval.multi_crop import CropAugment

SMALL = {"output_dim": 40, "hidden_dim": 32, "bottleneck_dim": 16, "local_crops": 2, "local_size": 16}


def make(network: str = "test_resnet", **settings: Any) -> Method:
    vit = "vit" in network
    cfg = fill_method(dino, Config(**SMALL | settings), Facts(image_size=32, transformer=vit))
    torch.manual_seed(0)
    backbone = backbones.make(
        network, image_size=32, seed=1, patch_size=8 if vit else None, dynamic_size=True
    )
    method = Method(cfg, backbone)
    method.set_mode("train")
    return method


@pytest.fixture
def views() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(4, 3, size, size, generator=generator) for size in (32, 32, 16, 16)]


def outputs_of(method: Method) -> dict[str, list[Tensor]]:
    """Collect what both heads give from now on."""
    seen: dict[str, list[Tensor]] = {"teacher": [], "student": []}
    method.teacher_head.register_forward_hook(lambda _, __, out: seen["teacher"].append(out.detach().float()))
    method.head.register_forward_hook(lambda _, __, out: seen["student"].append(out.detach().float()))
    return seen


def naive_loss(teacher: Tensor, student: Tensor, center: Tensor, temperature: float) -> float:
    """Algorithm 1 of the paper, image by image and pair of views by pair of views."""
    batch = len(teacher) // 2
    terms = []
    for t in range(2):
        for s in range(len(student) // batch):
            if s == t:
                continue
            for image in range(batch):
                sharp = (teacher[t * batch + image].double() - center.double()) / temperature
                p = sharp.exp() / sharp.exp().sum()
                q = (student[s * batch + image].double() / 0.1).exp()
                terms.append(-float((p * (q / q.sum()).log()).sum()))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("network", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("crops", [0, 2])
def test_the_loss_is_the_papers_over_pairs_of_different_views(
    network: str, crops: int, views: list[Tensor]
) -> None:
    method = make(network, teacher_temperature=0.05, teacher_temperature_warmup=0.0, local_crops=crops)
    views = views[: 2 + crops]
    method.criterion.center.copy_(torch.linspace(-0.1, 0.1, 40))
    center = method.criterion.center.clone()
    seen = outputs_of(method)
    loss = method.step(views, 0.5).loss.item()
    (teacher,), (student,) = seen["teacher"], seen["student"]
    assert len(teacher) == 8, "the teacher sees the large views alone"
    assert len(student) == 4 * len(views)
    assert loss == pytest.approx(naive_loss(teacher, student, center[0, 0], 0.05), rel=1e-4)
    criterion = DINOLoss(40)
    criterion.center.copy_(center)
    theirs = criterion(list(teacher.chunk(2)), list(student.chunk(len(views))), teacher_temp=0.05)
    assert loss == pytest.approx(float(theirs), rel=1e-5)


def test_the_centre_moves_after_the_loss_that_used_it(views: list[Tensor]) -> None:
    method = make(center_momentum=0.8, teacher_temperature_start=0.04, teacher_temperature=0.04)
    seen = outputs_of(method)
    expected = torch.zeros(40)
    for step in range(3):
        loss = method.step(views, 0.1 * step).loss.item()
        teacher, student = seen["teacher"][step], seen["student"][step]
        assert loss == pytest.approx(naive_loss(teacher, student, expected, 0.04), rel=1e-4)
        expected = 0.8 * expected + 0.2 * teacher.mean(0)
        torch.testing.assert_close(method.criterion.center[0, 0], expected, rtol=1e-5, atol=1e-7)
    assert "criterion.center" in method.state_dict()


def test_one_forward_pass_per_network_and_size(views: list[Tensor]) -> None:
    method = make()
    sizes: dict[str, list[tuple[int, int]]] = {"student": [], "teacher": []}
    for name, network in method.networks().items():
        network.get_submodule("conv1").register_forward_pre_hook(
            lambda _, inputs, name=name: sizes[name].append((len(inputs[0]), inputs[0].shape[-1]))
        )
    method.step(views, 0.0)
    assert sizes == {"student": [(8, 32), (8, 16)], "teacher": [(8, 32)]}


def test_gradients_reach_the_student_alone(views: list[Tensor]) -> None:
    method = make()
    method.step(views, 0.0).loss.backward()
    for name, parameter in method.named_parameters():
        trained = name.startswith(("encoder.", "head.")) and not name.endswith("weight.original0")
        assert (parameter.grad is not None) == parameter.requires_grad == trained, name


def test_the_teacher_follows_backbone_and_head(views: list[Tensor]) -> None:
    method = make(momentum=0.9)
    assert [name for name, _ in method.named_children() if "teacher" in name] == ["teacher", "teacher_head"]
    optimizer = torch.optim.SGD((p for p in method.parameters() if p.requires_grad), lr=0.5)
    method.step(views, 0.0).loss.backward()
    optimizer.step()
    before = [[p.clone() for p in teacher.parameters()] for teacher, _ in method.pairs()]
    method.after_step(0.5)
    assert method.momentum(0.5) == pytest.approx(0.95)
    assert len(before) == 2
    for (teacher, student), old in zip(method.pairs(), before, strict=True):
        moved = False
        for own, other, was in zip(teacher.parameters(), student.parameters(), old, strict=True):
            torch.testing.assert_close(own, 0.95 * was + 0.05 * other.detach(), rtol=1e-5, atol=1e-7)
            moved |= not torch.equal(own, was)
        assert moved


def test_the_last_layer_waits_for_its_share_of_the_training(views: list[Tensor]) -> None:
    method = make(freeze_last_layer=0.1)
    last = method.head.last_layer.parametrizations.weight.original1
    trained = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01, weight_decay=0.1)
    for progress, frozen in ((0.0, True), (0.09, True), (0.1, False), (0.5, False)):
        optimizer.zero_grad()
        method.step(views, progress).loss.backward()
        assert last.grad is not None
        before = last.detach().clone()
        method.before_update(progress)
        assert (last.grad is None) == frozen
        assert sum(p.grad is None for p in trained) == frozen
        optimizer.step()
        assert torch.equal(before, last) == frozen


@pytest.mark.parametrize("norm", [True, False])
def test_the_last_layers_rows_have_length_one_unless_they_are_learned(norm: bool) -> None:
    method = make(norm_last_layer=norm, freeze_last_layer=0.0)
    last = method.head.last_layer
    # Only rows' lengths tell both apart: they are trained, or stay.
    assert last.parametrizations.weight.original0.requires_grad == (not norm)
    optimizer = torch.optim.SGD([p for p in last.parameters() if p.requires_grad], lr=0.5)
    torch.testing.assert_close(last.weight.norm(dim=1), torch.ones(40))
    last(torch.randn(5, 16)).square().sum().backward()
    optimizer.step()
    assert torch.allclose(last.weight.norm(dim=1), torch.ones(40), atol=1e-5) == norm


def test_the_head_is_lightlys_and_can_be_copied(views: list[Tensor]) -> None:
    method = make(head_batchnorm=True)
    features = torch.randn(6, 96)
    own = method.head(features)
    hidden = torch.nn.functional.normalize(method.head.layers(features), dim=1)
    directions = torch.nn.functional.normalize(
        method.head.last_layer.parametrizations.weight.original1, dim=1
    )
    torch.testing.assert_close(own, hidden @ directions.T)
    assert sum(isinstance(m, torch.nn.BatchNorm1d) for m in method.head.modules()) == 2
    assert not any(isinstance(m, torch.nn.BatchNorm1d) for m in make(head_batchnorm=False).head.modules())
    method.step(views, 0.0).loss.backward()
    twin = copy.deepcopy(method)
    assert twin.step(views, 0.3).loss.item() == method.step(views, 0.3).loss.item()


@pytest.mark.parametrize(
    ("progress", "temperature"), [(0.0, 0.02), (0.1, 0.03), (0.2, 0.04), (0.21, 0.04), (1.0, 0.04)]
)
def test_the_teachers_temperature_rises_in_a_line(progress: float, temperature: float) -> None:
    method = make(teacher_temperature=0.04, teacher_temperature_start=0.02, teacher_temperature_warmup=0.2)
    assert method.teacher_temperature(progress) == pytest.approx(temperature)


def test_the_teachers_temperature_never_falls() -> None:
    method = make(teacher_temperature=0.03, teacher_temperature_start=0.04)
    assert method.teacher_temperature(0.0) == method.teacher_temperature(1.0) == 0.03


def test_the_teachers_momentum_rises_to_one_along_a_cosine() -> None:
    method = make(momentum=0.996)
    assert [round(method.momentum(p), 6) for p in (0.0, 0.25, 0.5, 1.0)] == [0.996, 0.996586, 0.998, 1.0]


def test_the_logged_entropy_tells_a_teacher_that_says_nothing(views: list[Tensor]) -> None:
    method = make(teacher_temperature=0.04, teacher_temperature_start=0.04)
    center = torch.linspace(-0.1, 0.1, 40)
    method.criterion.center.copy_(center)
    seen = outputs_of(method)
    entropy = method.step(views, 0.0).logs["teacher_entropy"]
    p = ((seen["teacher"][0] - center) / 0.04).softmax(1)
    assert entropy.item() == pytest.approx(float(-(p * p.log()).sum(1).mean()) / math.log(40), rel=1e-4)
    flat = make(teacher_temperature=1e4, teacher_temperature_warmup=0.0)
    assert flat.step(views, 0.0).logs["teacher_entropy"].item() == pytest.approx(1.0, abs=1e-4)


def test_views_are_made_as_in_the_authors_code() -> None:
    method = make("test_vit", local_size=0, local_crops=8)
    usual = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "interpolation": "bicubic"}
    views = method.views(224)
    assert [view.size for view in views] == [224] * 2 + [96] * 8
    assert views[0].augment == Augment(crop_min=0.4, blur=1.0, **usual)  # type: ignore[arg-type]
    assert views[1].augment == Augment(crop_min=0.4, blur=0.1, solarize=0.2, **usual)  # type: ignore[arg-type]
    local = Augment(crop_min=0.05, crop_max=0.4, blur=0.5, **usual)  # type: ignore[arg-type]
    assert [view.augment for view in views[2:]] == [local] * 8


@pytest.mark.parametrize(
    ("network", "settings", "border"),
    [
        ("test_vit", {"local_crops": 0}, 0.14),
        ("test_resnet", {}, 0.14),
        ("test_vit", {"augment": CropAugment(crop_min=0.3), "augment_2": CropAugment(crop_min=0.3)}, 0.3),
    ],
)
def test_large_crops_begin_where_small_ones_end(
    network: str, settings: dict[str, Any], border: float
) -> None:
    views = make(network, **settings).views(32)
    assert [(view.augment.crop_min, view.augment.crop_max) for view in views[:2]] == [(border, 1.0)] * 2
    assert all((view.augment.crop_min, view.augment.crop_max) == (0.05, border) for view in views[2:])


def test_a_step_on_views_as_the_loop_makes_them() -> None:
    method = make("test_vit", freeze_last_layer=0.0)
    images = torch.randint(0, 256, (4, 3, 40, 40), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    trained = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    losses = []
    for step in range(12):
        views = make_views(
            images,
            method.views(32),
            seed=0,
            step=step,
            samples=torch.arange(4),
            output=Output(mean=(0.5,) * 3, std=(0.25,) * 3),
        )
        optimizer.zero_grad()
        loss = method.step(views, step / 12).loss
        loss.backward()
        optimizer.step()
        method.after_step(step / 12)
        losses.append(loss.item())
    assert sum(losses[-3:]) < sum(losses[:3])


@pytest.mark.parametrize(
    ("num_images", "output_dim", "temperature", "start", "momentum"),
    [
        (5_000, 1024, 0.02, 0.02, 0.99),
        (50_000, 2048, 0.031, 0.0244, 0.99132),
        (100_000, 4096, 0.0393, 0.0277, 0.99232),
        (160_000, 16384, 0.045, 0.03, 0.993),
        (500_000, 32768, 0.0587, 0.0355, 0.99464),
        (1_280_000, 65536, 0.07, 0.04, 0.996),
    ],
)
def test_defaults_follow_the_number_of_images(
    num_images: int, output_dim: int, temperature: float, start: float, momentum: float
) -> None:
    cfg = fill_method(dino, Config(), Facts(num_images, num_steps=100_000))
    assert cfg.output_dim == output_dim
    assert cfg.teacher_temperature == pytest.approx(temperature, abs=1e-4)
    assert cfg.teacher_temperature_start == pytest.approx(start, abs=1e-4)
    assert cfg.momentum == pytest.approx(momentum, abs=1e-5)
    assert cfg.freeze_last_layer == 0.0125
    assert fill_method(dino, Config(), Facts(num_steps=2000)).freeze_last_layer == 0.05


@pytest.mark.parametrize(("steps", "momentum"), [(30, 0.73333), (100, 0.92), (800, 0.99)])
def test_in_few_steps_the_teacher_still_leaves_its_start_behind(steps: int, momentum: float) -> None:
    method = make(momentum=fill_method(dino, Config(), Facts(1_000, num_steps=steps)).momentum)
    assert method.momentum(0.0) == pytest.approx(momentum)
    left = math.prod(method.momentum(step / steps) for step in range(steps))
    assert left < 1.1 * math.exp(-4)


@pytest.mark.parametrize(
    ("facts", "recipe"),
    [
        (Facts(transformer=True), ("adamw", 5e-4, "linear", 0.04, 0.4)),
        (Facts(50_000), ("sgd", 0.12, "linear", 5e-4, None)),
        (Facts(1_280_000), ("sgd", 0.03, "linear", 1e-4, None)),
        (Facts(transformer=True, pretrained=True), ("adamw", 3e-4, "none", 1e-4, None)),
    ],
)
def test_the_optimizer_is_the_papers_for_vits_and_for_resnets(facts: Facts, recipe: tuple[Any, ...]) -> None:
    chosen = optim.choices(optim.OptimizerConfig(), dino.defaults(facts), facts)
    names = ("name", "lr", "scale", "weight_decay", "weight_decay_end")
    assert tuple(chosen.get(f"optimizer.{name}", (None, ""))[0] for name in names) == recipe
    assert (chosen["optimizer.clip"][0], chosen["optimizer.clip_mode"][0]) == (3.0, "each")


@pytest.mark.parametrize("batch_size", [64, 256, 1024])
@pytest.mark.parametrize(("module", "num_images"), [(dino, 50_000), (ibot, 50_000), (ibot, 1_280_000)])
def test_the_learning_rate_ends_at_a_millionth_as_in_the_authors_codes(
    module: Any, num_images: int, batch_size: int
) -> None:
    facts = Facts(num_images, batch_size, transformer=True)
    chosen = {key: value for key, (value, _) in module.defaults(facts).items()}
    peak = optim.peak_lr(
        optim.OptimizerConfig(lr=chosen["optimizer.lr"], scale=chosen["optimizer.scale"]), batch_size
    )
    assert peak * chosen["optimizer.final_lr"] == pytest.approx(1e-6, rel=0.01)


def test_the_teacher_is_kept_unless_the_config_says_otherwise() -> None:
    assert make().kept == "teacher"
    assert make(export="student").kept == "student"
    assert make().networks()["teacher"] is not make().networks()["student"]


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"teacher_temperature": 0.0}, "method.teacher_temperature=0.0"),
        ({"student_temperature": -1.0}, "method.student_temperature=-1.0"),
        ({"output_dim": 1}, "method.output_dim=1"),
        ({"momentum": 1.1}, "method.momentum=1.1"),
        ({"freeze_last_layer": 2.0}, "method.freeze_last_layer=2.0"),
        ({"export": "both"}, "method.export='both': one of student, teacher"),
        ({"augment_2": CropAugment(flip=2.0)}, "augment.flip=2.0"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], names: str) -> None:
    with pytest.raises(UserError) as caught:
        make(**settings)
    assert names in str(caught.value)
