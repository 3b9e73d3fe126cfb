"""MoCo v3's loss, key network, heads and ViT recipe against the paper and the authors' settings."""

import math
from typing import Any

import pytest
import torch
from lightly.loss import NTXentLoss
from method_makers import IMAGE_SIZE, method_of, views_for
from torch import Tensor, nn

from ssl_retrieval import backbones, distributed
from ssl_retrieval.augment import Augment
from ssl_retrieval.defaults import Facts, fill_method
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods import moco_v3
from ssl_retrieval.methods.moco_v3 import Config, Method

TINY = {"hidden_dim": 48, "output_dim": 16}


def make(**settings: Any) -> Method:
    method = method_of("moco_v3", **TINY | settings)
    assert isinstance(method, Method)
    # timm starts the last scale of every residual block at 0, which blocks what lies before it at first.
    for module in (*method.encoder.modules(), *method.teacher.modules()):
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    return method


def make_vit(**settings: Any) -> Method:
    torch.manual_seed(0)
    backbone = backbones.make("test_vit", image_size=IMAGE_SIZE, patch_size=8)
    facts = Facts(num_images=1000, batch_size=8, transformer=True)
    method = Method(fill_method(moco_v3, Config(**TINY | settings), facts), backbone)
    method.set_mode("train")
    return method


def heard(module: nn.Module) -> list[Tensor]:
    """Collect what a module gives from now on."""
    outputs: list[Tensor] = []
    module.register_forward_hook(lambda _, __, output: outputs.append(output.detach()))
    return outputs


def unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True)


def naive_loss(queries: list[Tensor], keys: list[Tensor], temperature: float) -> float:
    """Algorithm 1 of the paper, query by query and key by key."""
    total = 0.0
    for query, key in ((queries[0], keys[1]), (queries[1], keys[0])):
        q, k = unit(query.double()), unit(key.double())
        for i in range(len(q)):
            exps = [math.exp(float(q[i] @ other) / temperature) for other in k]
            total -= 2 * temperature * math.log(exps[i] / sum(exps)) / len(q)
    return total


def lightly_loss(queries: list[Tensor], keys: list[Tensor], temperature: float) -> float:
    """The same by lightly's InfoNCE with a bank, which holds the other images' keys of each query."""
    total = 0.0
    for query, key in ((queries[0], keys[1]), (queries[1], keys[0])):
        for i in range(len(query)):
            others = [j for j in range(len(query)) if j != i]
            criterion = NTXentLoss(temperature, memory_bank_size=(len(others), key.shape[1]))
            criterion.memory_bank.bank = unit(key[others])
            total += 2 * temperature * float(criterion(query[i : i + 1], key[i : i + 1])) / len(query)
    return total


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_the_loss_is_the_papers_in_both_directions(temperature: float) -> None:
    method = make(temperature=temperature)
    queries, keys = heard(method.predictor), heard(method.teacher_projector)
    views = views_for(method)
    loss = method.step(views, 0.0).loss.item()
    assert [len(rows) for rows in (*queries, *keys)] == [8] * 4, "each view goes through by itself"
    assert loss == pytest.approx(naive_loss(queries, keys, temperature), rel=1e-5)
    assert loss == pytest.approx(lightly_loss(queries, keys, temperature), rel=1e-5)
    assert method.step(views[::-1], 0.0).loss.item() == pytest.approx(loss, rel=1e-5)


def test_two_processes_halves_have_the_whole_batchs_loss_and_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Without batch statistics every image's vectors are its own, so that halves can be compared.
    method = make().eval()
    views = views_for(method)
    loss = method.step(views, 0.0).loss
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    whole = torch.autograd.grad(loss, trained)
    halves = [[view[:4] for view in views], [view[4:] for view in views]]
    made: list[list[Tensor]] = [[], []]
    for rank in range(2):
        monkeypatch.setattr(distributed, "gather", lambda rows, into=made[rank]: into.append(rows) or rows)
        method.step(halves[rank], 0.0)
    losses = []
    for rank in range(2):
        columns = iter([torch.cat(both) for both in zip(*made, strict=True)])
        monkeypatch.setattr(distributed, "gather", lambda _, columns=columns: next(columns))
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        losses.append(method.step(halves[rank], 0.0).loss)
    mean = torch.stack(losses).mean()
    assert mean.item() == pytest.approx(loss.item(), rel=1e-5)
    for ours, expected in zip(torch.autograd.grad(mean, trained), whole, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-6)


def test_gradients_reach_all_of_the_query_network_and_none_of_the_key_network() -> None:
    method = make()
    method.step(views_for(method), 0.0).loss.backward()
    for name, parameter in method.named_parameters():
        if name.startswith("teacher"):
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_the_key_network_is_network_and_projector_and_moves_after_the_step_alone() -> None:
    method = make(momentum=0.9)
    assert method.pairs() == [(method.teacher, method.encoder), (method.teacher_projector, method.projector)]
    keys = [parameter for teacher, _ in method.pairs() for parameter in teacher.parameters()]
    queries = [parameter for _, student in method.pairs() for parameter in student.parameters()]
    before = [parameter.clone() for parameter in keys]
    assert all(torch.equal(old, new) for old, new in zip(before, queries, strict=True))
    method.step(views_for(method), 0.0).loss.backward()
    torch.optim.SGD((p for p in method.parameters() if p.requires_grad), lr=0.1).step()
    assert all(torch.equal(old, new) for old, new in zip(before, keys, strict=True))
    method.after_step(0.5)
    for old, key, query in zip(before, keys, queries, strict=True):
        torch.testing.assert_close(key, 0.95 * old + 0.05 * query.detach())


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.5, 1.0])
def test_the_momentum_rises_to_one_as_in_the_authors_code(progress: float) -> None:
    expected = 1 - 0.5 * (1 + math.cos(math.pi * progress)) * (1 - 0.99)
    assert make(momentum=0.99).momentum(progress) == pytest.approx(expected, abs=1e-12)


def test_the_heads_are_the_authors() -> None:
    method = make()
    for head, dims, ends_normalised in (
        (method.projector, [(96, 48), (48, 16)], True),
        (method.predictor, [(16, 48), (48, 16)], False),
        (make_vit().projector, [(64, 48), (48, 48), (48, 16)], True),
        (make_vit().predictor, [(16, 48), (48, 16)], True),
    ):
        linear = [layer for layer in head.layers if isinstance(layer, nn.Linear)]
        assert [(layer.in_features, layer.out_features) for layer in linear] == dims
        assert all(layer.bias is None for layer in linear)
        norms = [layer for layer in head.layers if isinstance(layer, nn.BatchNorm1d)]
        assert [norm.affine for norm in norms] == [True] * (len(dims) - 1) + [False] * ends_normalised
        assert head.layers[-1] is (norms if ends_normalised else linear)[-1], "no ReLU is at the end"


def test_a_vits_patch_embedding_stays_as_it_was_drawn() -> None:
    method = make_vit()
    trained = {name for name, parameter in method.encoder.named_parameters() if parameter.requires_grad}
    everything = {name for name, _ in method.encoder.named_parameters()}
    assert everything - trained == {"patch_embed.proj.weight", "patch_embed.proj.bias"}
    method.step(views_for(method), 0.0).loss.backward()
    assert all(method.encoder.get_parameter(name).grad is not None for name in trained)
    assert all(p.requires_grad for p in make_vit(freeze_patch_embed=False).encoder.parameters())
    assert all(parameter.requires_grad for parameter in make().encoder.parameters())


def test_the_two_views_are_made_each_in_its_own_way() -> None:
    first, second = Augment(blur=1.0), Augment(blur=0.1, solarize=0.2)
    views = make(augment=first, augment_2=second).views(48)
    assert [(view.augment, view.size) for view in views] == [(first, 48), (second, 48)]


def test_the_loss_is_fp32_under_bf16() -> None:
    method = make(temperature=0.2)
    queries, keys = heard(method.predictor), heard(method.teacher_projector)
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.step(views_for(method), 0.0).loss
    assert {rows.dtype for rows in (*queries, *keys)} == {torch.bfloat16}
    assert loss.dtype == torch.float32
    wide = [[rows.float() for rows in both] for both in (queries, keys)]
    assert loss.item() == pytest.approx(naive_loss(wide[0], wide[1], 0.2), rel=1e-5)


def test_the_log_tells_how_often_the_own_key_is_found() -> None:
    method = make()
    queries, keys = heard(method.predictor), heard(method.teacher_projector)
    logged = float(method.step(views_for(method), 0.0).logs["accuracy"])
    found = []
    for query, key in ((queries[0], keys[1]), (queries[1], keys[0])):
        similarity = unit(query) @ unit(key).T
        found += [int(row.argmax()) == i for i, row in enumerate(similarity)]
    assert logged == sum(found) / 16


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(1_280_000, 4096, 224, num_steps=31_250), (1.0, 2, 0.99)),
        (Facts(1_280_000, 4096, 224, num_steps=312_500), (1.0, 2, 0.996)),
        (Facts(1_280_000, 4096, 224, transformer=True, num_steps=93_750), (0.2, 3, 0.99)),
        (Facts(1_280_000, 1024, 224, num_steps=125_000), (1.0, 2, 0.99)),
        (Facts(1_280_000, 512, 224, num_steps=250_000), (0.2, 2, 0.996)),
        (Facts(50_000, 4096, 32, num_steps=10_000), (0.2, 2, 0.99)),
        (Facts(2_000, 256, 224, num_steps=400), (0.2, 2, 0.98)),
    ],
)
def test_open_settings_are_the_authors(facts: Facts, expected: tuple[float, int, float]) -> None:
    cfg = fill_method(moco_v3, Config(), facts)
    assert (cfg.temperature, cfg.num_layers, cfg.momentum) == expected


@pytest.mark.parametrize(("epochs", "lr", "decay"), [(100, 0.6, 1e-6), (300, 0.3, 1e-6), (1000, 0.3, 1.5e-6)])
def test_the_optimizer_is_the_authors_for_as_many_epochs(epochs: int, lr: float, decay: float) -> None:
    facts = Facts(1_280_000, 4096, 224, num_steps=epochs * (1_280_000 // 4096))
    recipe = {key: value for key, (value, _) in moco_v3.defaults(facts).items()}
    assert (recipe["optimizer.name"], recipe["optimizer.scale"]) == ("lars", "linear")
    assert (recipe["optimizer.lr"], recipe["optimizer.weight_decay"]) == (lr, decay)


def test_the_optimizer_is_the_papers_for_vits() -> None:
    facts = Facts(1_280_000, 4096, 224, transformer=True)
    recipe = {key: value for key, (value, _) in moco_v3.defaults(facts).items()}
    assert (recipe["optimizer.name"], recipe["optimizer.scale"]) == ("adamw", "linear")
    assert (recipe["optimizer.lr"], recipe["optimizer.weight_decay"]) == (1.5e-4, 0.1)
    assert recipe["optimizer.warmup"] == pytest.approx(40 / 300, abs=0.005)


def test_the_query_network_is_kept_unless_asked_otherwise() -> None:
    assert make().kept == "student"
    method = make(export="teacher")
    assert method.networks()[method.kept] is method.teacher


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"temperature": 0.0}, "method.temperature=0.0"),
        ({"momentum": 1.5}, "method.momentum=1.5"),
        ({"hidden_dim": 0}, "method.hidden_dim"),
        ({"num_layers": 1}, "method.num_layers"),
        ({"export": "keys"}, "method.export='keys'"),
        ({"augment_2": Augment(flip=1.5)}, "augment.flip=1.5"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], names: str) -> None:
    with pytest.raises(UserError) as caught:
        make(**settings)
    assert names in str(caught.value)
