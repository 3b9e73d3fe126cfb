"""MoCo v2's loss, queue and key network against loops over the papers' formulas and lightly's memory bank."""

import math
from typing import Any

import pytest
import torch
from lightly.loss import NTXentLoss
from method_makers import method_of, views_for
from torch import Tensor, nn

from ssl_retrieval import distributed
from ssl_retrieval.augment import Augment
from ssl_retrieval.defaults import Facts, fill_method
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods import moco_v2
from ssl_retrieval.methods.moco_v2 import Method


def make(seed: int = 0, **settings: Any) -> Method:
    method = method_of("moco_v2", seed, **{"queue_length": 24, "output_dim": 16} | settings)
    assert isinstance(method, Method)
    # timm starts the last scale of every residual block at 0, which blocks what lies before it at first.
    for module in (*method.encoder.modules(), *method.teacher.modules()):
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    return method


def heard(module: nn.Module) -> list[Tensor]:
    """Collect what a module gives from now on."""
    outputs: list[Tensor] = []
    module.register_forward_hook(lambda _, __, output: outputs.append(output.detach()))
    return outputs


def unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True)


def naive_info_nce(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> float:
    """Equation 1 of the paper, query by query and key by key."""
    q, k, others = unit(queries.double()), unit(keys.double()), queue.double()
    losses = []
    for i in range(len(q)):
        own = math.exp(float(q[i] @ k[i]) / temperature)
        rest = sum(math.exp(float(q[i] @ other) / temperature) for other in others)
        losses.append(-math.log(own / (own + rest)))
    return sum(losses) / len(losses)


def test_loss_and_queue_are_lightlys_and_the_papers_over_several_steps() -> None:
    method = make(temperature=0.2)
    queries, keys = heard(method.projector), heard(method.teacher_projector)
    theirs = NTXentLoss(temperature=0.2, memory_bank_size=(24, 16))
    theirs.memory_bank.bank = method.queue.clone()
    for step in range(5):
        queue = method.queue.clone()
        loss = method.step(views_for(method, step), 0.0).loss.item()
        assert loss == pytest.approx(naive_info_nce(queries[-1], keys[-1], queue, 0.2), rel=1e-5)
        assert loss == pytest.approx(theirs(queries[-1].requires_grad_(), keys[-1]).item(), rel=1e-5)
        torch.testing.assert_close(method.queue, theirs.memory_bank.bank)
        assert int(method.pointer) == 8 * (step + 1) % 24
    assert [len(rows) for rows in (*queries, *keys)] == [8] * 10


def test_the_queue_drops_the_oldest_keys_when_batches_do_not_divide_it() -> None:
    method = make(queue_length=20)
    keys = heard(method.teacher_projector)
    for step in range(6):
        method.step(views_for(method, step), 0.0)
    newest = unit(torch.cat(keys))[-20:]
    oldest_first = method.queue.roll(-int(method.pointer), dims=0)
    torch.testing.assert_close(oldest_first, newest)


def test_the_queue_starts_with_unit_rows_and_outlives_a_stop() -> None:
    method = make()
    torch.testing.assert_close(method.queue.norm(dim=1), torch.ones(24))
    method.step(views_for(method), 0.0)
    resumed = make(seed=7)
    assert not torch.equal(resumed.queue, method.queue)
    resumed.load_state_dict(method.state_dict())
    assert torch.equal(resumed.queue, method.queue)
    assert int(resumed.pointer) == 8


def test_the_queue_takes_the_keys_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    other = unit(torch.randn(8, 16, generator=torch.Generator().manual_seed(3)))
    monkeypatch.setattr(distributed, "gather", lambda rows: torch.cat([other, rows]))
    method = make()
    keys = heard(method.teacher_projector)
    before = method.queue.clone()
    method.step(views_for(method), 0.0)
    torch.testing.assert_close(method.queue, torch.cat([other, unit(keys[0]), before[16:]]))
    assert int(method.pointer) == 16


def test_gradients_are_those_of_the_queue_that_was_compared() -> None:
    method = make()
    views, queue = views_for(method), method.queue.clone()
    method.step(views, 0.0).loss.backward()
    ours = {name: p.grad for name, p in method.named_parameters() if p.requires_grad}
    assert not torch.equal(method.queue, queue)
    method = make()
    keys = heard(method.teacher_projector)
    queries: list[Tensor] = []
    method.projector.register_forward_hook(lambda _, __, output: queries.append(output))
    method.step(views, 0.0)
    q = unit(queries[0])
    own = (q * unit(keys[0])).sum(1) / 0.2
    everything = torch.logsumexp(torch.cat([own[:, None], q @ queue.T / 0.2], 1), 1)
    (everything - own).mean().backward()
    for name, gradient in ours.items():
        assert gradient is not None
        assert gradient.abs().sum() > 0, name
        again = method.get_parameter(name).grad
        torch.testing.assert_close(gradient, again, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()) + 1e-6)


def test_the_key_network_moves_after_the_step_alone_by_a_constant_momentum() -> None:
    method = make(momentum=0.75)
    assert method.pairs() == [(method.teacher, method.encoder), (method.teacher_projector, method.projector)]
    assert [method.momentum(progress) for progress in (0.0, 0.5, 1.0)] == [0.75] * 3
    keys = [parameter for teacher, _ in method.pairs() for parameter in teacher.parameters()]
    queries = [parameter for _, student in method.pairs() for parameter in student.parameters()]
    before = [parameter.clone() for parameter in keys]
    assert all(torch.equal(old, new) for old, new in zip(before, queries, strict=True))
    method.step(views_for(method), 0.0).loss.backward()
    torch.optim.SGD((p for p in method.parameters() if p.requires_grad), lr=0.1).step()
    assert all(torch.equal(old, new) for old, new in zip(before, keys, strict=True))
    assert all(parameter.grad is None for parameter in keys)
    method.after_step(0.5)
    for old, key, query in zip(before, keys, queries, strict=True):
        torch.testing.assert_close(key, 0.75 * old + 0.25 * query.detach())


def test_symmetric_lets_both_views_ask_the_same_queue() -> None:
    method = make(symmetric=True)
    queries, keys = heard(method.projector), heard(method.teacher_projector)
    queue = method.queue.clone()
    loss = method.step(views_for(method), 0.0).loss.item()
    there, back = (naive_info_nce(queries[i], keys[i], queue, 0.2) for i in range(2))
    assert loss == pytest.approx((there + back) / 2, rel=1e-5)
    torch.testing.assert_close(method.queue[:16], unit(torch.cat(keys)))
    alone = make()
    assert alone.step(views_for(alone), 0.0).loss.item() == pytest.approx(there, rel=1e-5)


def test_the_log_tells_how_often_the_own_key_is_found() -> None:
    method = make(queue_length=1000)
    queries, keys = heard(method.projector), heard(method.teacher_projector)
    queue = method.queue.clone()
    logged = float(method.step(views_for(method), 0.0).logs["accuracy"])
    q, k = unit(queries[0]), unit(keys[0])
    found = [bool(q[i] @ k[i] >= (queue @ q[i]).max()) for i in range(8)]
    assert logged == sum(found) / 8


def test_the_loss_is_fp32_under_bf16() -> None:
    method = make()
    queries, keys = heard(method.projector), heard(method.teacher_projector)
    queue = method.queue.clone()
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.step(views_for(method), 0.0).loss
    assert {rows.dtype for rows in (*queries, *keys)} == {torch.bfloat16}
    assert loss.dtype == method.queue.dtype == torch.float32
    assert loss.item() == pytest.approx(
        naive_info_nce(queries[0].float(), keys[0].float(), queue, 0.2), rel=1e-5
    )


def test_the_head_is_the_papers() -> None:
    first, relu, last = make(output_dim=16).projector.layers
    assert (first.in_features, first.out_features, last.out_features) == (96, 96, 16)
    assert isinstance(relu, nn.ReLU)
    assert make(hidden_dim=40).projector.layers[0].out_features == 40


@pytest.mark.parametrize(
    ("num_images", "queue", "momentum"),
    [(300, 256, 0.99), (10_000, 1024, 0.99), (50_000, 8192, 0.99198), (1_280_000, 65536, 0.999)],
)
def test_open_settings_follow_the_number_of_images(num_images: int, queue: int, momentum: float) -> None:
    cfg = fill_method(moco_v2, moco_v2.Config(), Facts(num_images, batch_size=256, num_steps=100_000))
    assert (cfg.queue_length, cfg.momentum, cfg.temperature) == (queue, momentum, 0.2)


def test_few_steps_get_a_key_network_that_follows_soon() -> None:
    assert fill_method(moco_v2, moco_v2.Config(), Facts(1_280_000, num_steps=400)).momentum == 0.98


def test_the_optimizer_is_the_authors_for_photos() -> None:
    recipe = {k: v for k, (v, _) in moco_v2.defaults(Facts(1_280_000, image_size=224)).items()}
    assert (recipe["optimizer.name"], recipe["optimizer.scale"]) == ("sgd", "linear")
    assert (recipe["optimizer.lr"], recipe["optimizer.weight_decay"]) == (0.03, 1e-4)
    assert recipe["optimizer.warmup"] == 0.0


def test_the_query_network_is_kept_unless_asked_otherwise() -> None:
    assert make().kept == "student"
    method = make(export="teacher")
    assert method.networks()[method.kept] is method.teacher


def test_two_views_made_alike() -> None:
    views = make(augment=Augment(blur=0.5)).views(48)
    assert [(view.augment, view.size) for view in views] == [(Augment(blur=0.5), 48)] * 2


def test_a_queue_shorter_than_a_batch_is_named() -> None:
    method = make(queue_length=7)
    with pytest.raises(UserError, match=r"method\.queue_length=7 is less than the 8 keys of a step"):
        method.step(views_for(method), 0.0)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"temperature": 0.0}, "method.temperature=0.0"),
        ({"momentum": -0.1}, "method.momentum=-0.1"),
        ({"queue_length": 0}, "method.queue_length"),
        ({"export": "keys"}, "method.export='keys'"),
        ({"augment": Augment(flip=1.5)}, "augment.flip=1.5"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], names: str) -> None:
    with pytest.raises(UserError) as caught:
        make(**settings)
    assert names in str(caught.value)
