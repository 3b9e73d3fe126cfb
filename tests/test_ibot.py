"""iBOT's three terms against loops over their formulas, its masks, centres, schedules and teacher."""

import copy
import itertools
import math
from typing import Any

import pytest
import timm
import torch
from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss
from lightly.models.modules.center import Center
from torch import Tensor

from ssl_retrieval import backbones, ema, masks
from ssl_retrieval.augment import Noise, View
from ssl_retrieval.counter_random import uniform
from ssl_retrieval.defaults import Facts, fill_method
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods import ibot
from ssl_retrieval.methods.ibot import Config, Method, TokenCenter
from ssl_retrieval.multi_crop import CropAugment

SIZE, PATCH, CODES, BATCH = 32, 8, 40, 4
SMALL = {"output_dim": CODES, "hidden_dim": 32, "bottleneck_dim": 16, "local_crops": 2, "local_size": 16}


def make(backbone: Any = None, **settings: Any) -> Method:
    if backbone is None:
        backbone = backbones.make("test_vit", image_size=SIZE, patch_size=PATCH, seed=1, dynamic_size=True)
    torch.manual_seed(0)
    method = Method(fill_method(ibot, Config(**SMALL | settings), Facts(1_280_000)), backbone)
    method.set_mode("train")
    return method


def other_vit(**settings: Any) -> Any:
    torch.manual_seed(1)
    size: dict[str, Any] = {"img_size": SIZE, "patch_size": PATCH}
    return timm.create_model("test_vit", num_classes=0, **size | settings)


def views_of(crops: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    sizes = (SIZE, SIZE, *[16] * crops)
    images = [torch.randn(BATCH, 3, size, size, generator=generator) for size in sizes]
    return [*images, uniform(0, 0, torch.arange(BATCH), len(sizes), 2 * masks.BLOCK_NUMBERS)]


@pytest.fixture
def views() -> list[Tensor]:
    return views_of(2)


def softmax(logits: Tensor, temperature: float) -> Tensor:
    sharp = (logits.double() / temperature).exp()
    return sharp / sharp.sum()


def cross_entropy(target: Tensor, logits: Tensor, temperature: float) -> float:
    return -float((softmax(target, temperature) * softmax(logits, 0.1).log()).sum())


def naive(method: Method, views: list[Tensor], temperature: float) -> dict[str, float]:
    """All three terms, image by image, from the networks themselves."""
    *crops, noise = views
    vit: Any = method.encoder
    teacher: Any = method.teacher
    heads, teacher_heads = method.heads, method.teacher_heads
    patch_head = "patches" if "patches" in heads else "images"
    centers = method.image_loss.center[0, 0], method.patch_loss.center.value[0]
    grid, prefix = (SIZE // PATCH, SIZE // PATCH), vit.num_prefix_tokens
    logits: list[list[Tensor]] = []
    targets: list[list[Tensor]] = []
    features: list[list[Tensor]] = []
    patch_terms = []
    for number, crop in enumerate(crops):
        logits.append([])
        if number >= 2:
            logits[-1] = [heads["images"](backbones.own_pooling(vit, image[None]))[0] for image in crop]
            continue
        targets.append([])
        features.append([])
        for image, row in zip(crop, noise.chunk(2, dim=1)[number], strict=True):
            mask = masks.block_masks(row[None], grid)
            tokens = masks.encode_masked(vit, image[None], mask, method.mask_token)
            pooled = vit.forward_head(tokens, pre_logits=True)
            features[-1].append(pooled[0])
            logits[-1].append(heads["images"](pooled)[0])
            targets[-1].append(teacher_heads["images"](backbones.own_pooling(teacher, image[None]))[0])
            seen = teacher.forward_features(image[None])[0, prefix:]
            terms = [
                cross_entropy(
                    teacher_heads[patch_head](seen[i][None])[0] - centers[1],
                    heads[patch_head](tokens[0, prefix + i][None])[0],
                    temperature,
                )
                for i in mask[0].nonzero()[:, 0].tolist()
            ]
            patch_terms.append(sum(terms) / max(1, len(terms)))
    image_terms = [
        cross_entropy(targets[t][i] - centers[0], logits[s][i], temperature)
        for t, s, i in itertools.product(range(2), range(len(crops)), range(BATCH))
        if s != t
    ]
    koleo = 0.0
    for rows in features:
        units = [(row / row.norm()).double() for row in rows]
        for i, unit in enumerate(units):
            nearest = min(float((unit - other).norm()) for j, other in enumerate(units) if j != i)
            koleo -= math.log(nearest) / len(rows)
    return {
        "image_loss": sum(image_terms) / len(image_terms),
        "patch_loss": sum(patch_terms) / len(patch_terms),
        "koleo": koleo,
    }


CASES: list[tuple[str, Any, dict[str, Any]]] = [
    ("own heads", None, {}),
    ("one head", None, {"shared_head": True}),
    ("no local crops, one size", {"dynamic_img_size": False}, {"local_crops": 0}),
    ("pools patches", {"global_pool": "avg", "reg_tokens": 2, "dynamic_img_size": True}, {}),
]


@pytest.mark.parametrize(("network", "settings"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
@torch.no_grad()
def test_the_loss_is_the_papers(network: Any, settings: dict[str, Any]) -> None:
    backbone = None if network is None else other_vit(**network)
    method = make(backbone, teacher_temperature_start=0.05, patch_weight=0.5, koleo_weight=0.2, **settings)
    for parameter in method.teacher.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.02)
    method.image_loss.center.copy_(torch.linspace(-0.1, 0.1, CODES))
    method.patch_loss.center.center.copy_(torch.linspace(0.05, -0.05, CODES))
    views = views_of(settings.get("local_crops", 2))
    expected = naive(method, views, 0.05)
    assert expected["patch_loss"] > 0
    output = method.step(views, 0.0)
    for name, value in expected.items():
        assert output.logs[name].item() == pytest.approx(value, rel=1e-4), name
    whole = expected["image_loss"] + 0.5 * expected["patch_loss"] + 0.2 * expected["koleo"]
    assert output.loss.item() == pytest.approx(whole, rel=1e-4)


def test_the_terms_are_lightlys_in_fp32(views: list[Tensor]) -> None:
    method = make()
    taken: dict[str, list[Any]] = {}
    for name in ("image_loss", "patch_loss", "koleo"):
        part = getattr(method, name)
        part.register_forward_pre_hook(
            lambda _, args, kwargs, name=name: taken.setdefault(name, []).append((args, kwargs)),
            with_kwargs=True,
        )
    with torch.autocast("cpu", torch.bfloat16):
        output = method.step(views, 0.5)
    assert output.loss.dtype == torch.float32
    (targets, logits), _ = taken["image_loss"][0]
    patch_targets, patches, mask, temperature = taken["patch_loss"][0][0]
    assert {t.dtype for t in (*targets, *logits, patch_targets, patches)} == {torch.float32}
    assert [len(targets), len(logits), len(taken["koleo"])] == [2, 4, 2]
    assert len(patches) == len(patch_targets) == int(mask.sum()) > 0
    image = DINOLoss(CODES)(targets, logits, teacher_temp=0.07)
    patch = IBOTPatchLoss(CODES)(patch_targets, patches, mask, teacher_temp=0.07)
    koleo = torch.stack([KoLeoLoss()(args[0]) for args, _ in taken["koleo"]]).sum()
    assert temperature == 0.07
    assert output.loss.item() == pytest.approx((image + patch + 0.1 * koleo).item(), rel=1e-5)


# Masks and centres


def test_half_of_the_large_crops_are_masked_each_by_its_own_numbers() -> None:
    method = make()
    noise = uniform(0, 0, torch.arange(2000), 4, 2 * masks.BLOCK_NUMBERS)
    mask = method._masks(noise, 4)
    assert mask.shape == (4000, 4, 4)
    counts = mask.sum((1, 2))
    assert float((counts > 0).float().mean()) == pytest.approx(0.5, abs=0.03)
    assert set(counts.unique().tolist()) == {0, 2, 3, 4, 5, 6, 7, 8}
    both = (counts[:2000] > 0) & (counts[2000:] > 0)
    assert float(both.float().mean()) == pytest.approx(0.25, abs=0.03), "the two crops are independent"


def test_centres_move_after_the_loss_by_the_teachers_means(views: list[Tensor]) -> None:
    method = make()
    seen: dict[str, Tensor] = {}
    for name, head in method.teacher_heads.items():
        head.register_forward_hook(lambda _, __, out, name=name: seen.setdefault(name, out))
    method.step(views, 0.0)
    torch.testing.assert_close(method.image_loss.center[0, 0], 0.1 * seen["images"].mean(0))
    torch.testing.assert_close(method.patch_loss.center.value[0], 0.1 * seen["patches"].mean(0))
    assert len(seen["images"]) == 2 * BATCH


def test_without_any_masked_patch_the_loss_is_finite_and_the_centre_stays(views: list[Tensor]) -> None:
    method = make(mask_probability=0.0)
    method.patch_loss.center.center.fill_(0.25)
    output = method.step(views, 0.0)
    output.loss.backward()
    assert output.logs["patch_loss"] == 0
    assert math.isfinite(output.loss.item())
    assert (method.patch_loss.center.value == 0.25).all()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


def test_the_patch_centre_is_lightlys_in_one_process() -> None:
    ours, theirs = TokenCenter((1, 5), momentum=0.8), Center((1, 5), momentum=0.8)
    for rows in (3, 7):
        codes = torch.randn(rows, 5)
        ours.update(codes)
        theirs.update(codes)
    torch.testing.assert_close(ours.value, theirs.value)


# The teacher


def test_the_teacher_starts_as_a_copy_and_moves_only_after_a_step(views: list[Tensor]) -> None:
    method = make()
    assert [(method.teacher, method.encoder), (method.teacher_heads, method.heads)] == method.pairs()
    for teacher, student in method.pairs():
        for theirs, ours in zip(teacher.parameters(), student.parameters(), strict=True):
            assert torch.equal(theirs, ours)
            assert not theirs.requires_grad
    before = copy.deepcopy(method.teacher)
    method.step(views, 0.0).loss.backward()
    with torch.no_grad():
        for parameter in method.encoder.parameters():
            parameter.add_(1.0)
    assert all(
        torch.equal(a, b) for a, b in zip(method.teacher.parameters(), before.parameters(), strict=True)
    )
    assert all(p.grad is None for p in (*method.teacher.parameters(), *method.teacher_heads.parameters()))
    method.after_step(0.5)
    share = 1 - (1 - 0.992) / 2
    expected = copy.deepcopy(before)
    ema.update(expected, method.encoder, share)
    for moved, right, old in zip(
        method.teacher.parameters(), expected.parameters(), before.parameters(), strict=True
    ):
        torch.testing.assert_close(moved, right)
        torch.testing.assert_close(moved - old, torch.full_like(old, 1 - share), atol=1e-6, rtol=1e-3)


def test_schedules() -> None:
    method = make()
    temperatures = [round(method.teacher_temperature(p), 4) for p in (0.0, 0.15, 0.3, 1.0)]
    assert temperatures == [0.04, 0.055, 0.07, 0.07]
    assert make(teacher_temperature=0.03).teacher_temperature(0.0) == 0.03
    assert [round(method.momentum(p), 4) for p in (0.0, 0.5, 1.0)] == [0.992, 0.996, 1.0]


def test_last_layers_stay_at_first(views: list[Tensor]) -> None:
    method = make(freeze_last_layer=0.2)
    last = {name for name, p in method.heads.named_parameters() if ".last_layer." in name and p.requires_grad}
    assert len(last) == 2
    for progress, expected in ((0.19, last), (0.2, set())):
        method.zero_grad(set_to_none=True)
        method.step(views, progress).loss.backward()
        method.before_update(progress)
        trained = {name: p for name, p in method.heads.named_parameters() if p.requires_grad}
        assert {name for name, p in trained.items() if p.grad is None} == expected


def test_gradients_reach_every_trained_parameter(views: list[Tensor]) -> None:
    for backbone in (None, other_vit(global_pool="avg", dynamic_img_size=True)):
        method = make(backbone)
        method.step(views, 0.0).loss.backward()
        for name, parameter in method.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                assert parameter.grad.abs().sum() > 0, name


def test_the_state_dict_is_all_that_a_resumed_run_needs(views: list[Tensor]) -> None:
    first, second = make(), make()
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    first.step(views, 0.0)
    second.load_state_dict(first.state_dict())
    assert first.step(views, 0.3).loss.item() == second.step(views, 0.3).loss.item()
    stored = [tensor.data_ptr() for tensor in first.state_dict().values()]
    assert len(stored) == len(set(stored))


# Settings


def test_views_are_large_small_and_numbers() -> None:
    *crops, noise = make(local_size=0).views(SIZE)
    assert noise == Noise(2 * masks.BLOCK_NUMBERS)
    assert all(isinstance(view, View) for view in crops)
    sizes = [(v.size, v.augment.crop_min, v.augment.crop_max) for v in crops if isinstance(v, View)]
    assert sizes == [(32, 0.32, 1.0)] * 2 + [(16, 0.05, 0.32)] * 2
    first, second = (v for v in make(local_crops=0).views(SIZE)[:-1] if isinstance(v, View))
    assert (first.augment.crop_min, second.augment.crop_min) == (0.14, 0.14)
    assert (first.augment.blur, second.augment.blur, second.augment.solarize) == (1.0, 0.1, 0.2)


def test_few_images_get_fewer_codes_and_ibots_learning_rate() -> None:
    few, many = (ibot.defaults(Facts(n, transformer=True)) for n in (10_000, 1_280_000))
    assert (few["method.output_dim"][0], many["method.output_dim"][0]) == (1024, 8192)
    assert (few["optimizer.lr"][0], few["optimizer.scale"][0]) == (5e-4, "linear")
    assert "optimizer.layer_decay" not in few
    # At a batch of 1024 the rule gives DINOv2's 0.004.
    assert many["optimizer.lr"][0] * math.sqrt(1024) == pytest.approx(0.004)
    names = ("scale", "layer_decay", "patch_embed_lr", "weight_decay", "weight_decay_end")
    assert [many[f"optimizer.{name}"][0] for name in names] == ["sqrt", 0.9, 0.2, 0.04, 0.4]
    learned = ibot.defaults(Facts(1_280_000, transformer=True, pretrained=True))
    assert (learned["optimizer.lr"][0], learned["optimizer.scale"][0]) == (3e-4, "none")
    assert "optimizer.weight_decay_end" not in learned


@pytest.mark.parametrize(
    ("facts", "start", "end", "momentum"),
    [
        (Facts(1_280_000), 0.04, 0.07, 0.992),
        (Facts(160_000), 0.03, 0.045, 0.991),
        (Facts(5_000), 0.02, 0.02, 0.99),
        (Facts(5_000, num_steps=100), 0.02, 0.02, 0.92),
    ],
)
def test_few_images_get_sharper_codes_and_few_steps_a_teacher_that_follows_soon(
    facts: Facts, start: float, end: float, momentum: float
) -> None:
    cfg = fill_method(ibot, Config(), facts)
    assert (cfg.teacher_temperature_start, cfg.teacher_temperature, cfg.momentum) == (start, end, momentum)


@pytest.mark.parametrize("export", ["teacher", "student"])
def test_what_is_exported(export: str) -> None:
    method = make(export=export)
    assert method.kept == export
    assert method.networks() == {"student": method.encoder, "teacher": method.teacher}


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"export": "both"}, "method.export='both'"),
        ({"teacher_temperature": 0.0}, "method.teacher_temperature=0.0"),
        ({"momentum": 1.5}, "method.momentum=1.5"),
        ({"mask_probability": -0.1}, "method.mask_probability=-0.1"),
        ({"mask_ratio_min": 0.6}, "method.mask_ratio_min=0.6"),
        ({"koleo_weight": -1.0}, "koleo_weight=-1.0"),
        ({"output_dim": 1}, "method.output_dim=1"),
        ({"augment": CropAugment(flip=1.5)}, "augment.flip=1.5"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], names: str) -> None:
    with pytest.raises(UserError) as caught:
        make(**settings)
    assert names in str(caught.value)


def test_networks_that_do_not_fit_are_named() -> None:
    with pytest.raises(UserError, match=r"method.name=ibot masks patches.*ResNet.*model.name"):
        make(backbones.make("resnet10t"))
    with pytest.raises(UserError, match=r"method.local_crops=2: this network takes images of one size"):
        make(other_vit(dynamic_img_size=False))
    with pytest.raises(UserError, match=r"model.image_size=8 makes 1 patches"):
        make().views(8)
