"""SwAV against a loop over the formula: balanced assignments, swapped predictions, the queue."""

import math
from typing import Any

import pytest
import torch
from lightly.loss import SwaVLoss
from lightly.loss.swav_loss import sinkhorn
from torch import Tensor

from ssl_retrieval import backbones, distributed, optim
from ssl_retrieval.augment import Augment
from ssl_retrieval.defaults import Facts, fill_method
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods import swav
from ssl_retrieval.methods.swav import Config, Method

SMALL = {"output_dim": 16, "num_prototypes": 10, "local_crops": 2, "local_size": 16, "queue_length": 0}


def make(network: str = "test_resnet", **settings: Any) -> Method:
    vit = "vit" in network
    cfg = fill_method(swav, Config(**SMALL | settings), Facts(image_size=32, transformer=vit))
    torch.manual_seed(0)
    backbone = backbones.make(
        network, image_size=32, seed=1, patch_size=8 if vit else None, dynamic_size=True
    )
    method = Method(cfg, backbone)
    method.set_mode("train")
    return method


def views_of(seed: int, batch: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 3, size, size, generator=generator) for size in (32, 32, 16, 16)]


@pytest.fixture
def views() -> list[Tensor]:
    return views_of(2)


def embeddings_of(method: Method) -> list[Tensor]:
    """Collect the unit vectors of all views, step by step from now on."""
    seen: list[Tensor] = []
    method.head.register_forward_hook(
        lambda _, __, out: seen.append(torch.nn.functional.normalize(out.detach().float(), dim=1))
    )
    return seen


def naive_assignments(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Balance exp(scores / ε) with explicit scalings of rows and columns: float [B, K] -> float64 [B, K]."""
    q = (scores.double() / epsilon).exp().T
    prototypes, images = q.shape
    rows, columns = torch.ones(prototypes).double(), torch.ones(images).double()
    for _ in range(iterations):
        for k in range(prototypes):
            rows[k] = (1 / prototypes) / sum(q[k, b] * columns[b] for b in range(images))
        for b in range(images):
            columns[b] = (1 / images) / sum(rows[k] * q[k, b] for k in range(prototypes))
    return (rows[:, None] * q * columns).T * images


def naive_loss(
    embedded: Tensor, prototypes: Tensor, num_views: int, queue: list[Tensor] | None = None
) -> float:
    """Equation 2 of the paper with the multi-crop of section 3.3, image by image."""
    views = [view @ prototypes.T for view in embedded.chunk(num_views)]
    batch = len(views[0])
    total = 0.0
    for large in range(2):
        rows = views[large] if queue is None else torch.cat([views[large], queue[large] @ prototypes.T])
        codes = naive_assignments(rows)[:batch]
        for other in range(num_views):
            if other == large:
                continue
            for image in range(batch):
                predicted = (views[other][image].double() / 0.1).exp()
                total -= float((codes[image] * (predicted / predicted.sum()).log()).sum())
    return total / (2 * (num_views - 1) * batch)


@pytest.mark.parametrize("network", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("crops", [0, 2])
def test_the_loss_is_the_papers_swapped_prediction(network: str, crops: int, views: list[Tensor]) -> None:
    method = make(network, local_crops=crops)
    views = views[: 2 + crops]
    seen = embeddings_of(method)
    loss = method.step(views, 0.0).loss
    weight = method.prototypes.heads[0].weight.detach()
    assert loss.shape == ()
    assert loss.item() == pytest.approx(naive_loss(seen[0], weight, len(views)), rel=1e-4)
    scores = list((seen[0] @ weight.T).chunk(len(views)))
    assert loss.item() == pytest.approx(float(SwaVLoss()(scores[:2], scores[2:])), rel=1e-5)


def test_assignments_are_balanced_over_images_and_prototypes() -> None:
    scores = torch.rand(24, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    q = sinkhorn(scores, iterations=500)
    torch.testing.assert_close(q.sum(1), torch.ones(24))
    torch.testing.assert_close(q.sum(0), torch.full((6,), 4.0), rtol=1e-3, atol=1e-3)
    three = sinkhorn(scores)
    torch.testing.assert_close(three.sum(1), torch.ones(24))
    torch.testing.assert_close(three.double(), naive_assignments(scores), rtol=1e-4, atol=1e-6)


def test_prototypes_have_length_one_in_every_step_and_no_bias(views: list[Tensor]) -> None:
    method = make()
    (layer,) = method.prototypes.heads
    assert [name for name, _ in method.prototypes.named_parameters()] == ["heads.0.weight"]
    torch.testing.assert_close(layer.weight.norm(dim=1), torch.ones(10))
    with torch.no_grad():
        layer.weight.mul_(torch.linspace(0.5, 3, 10)[:, None])
    lengths: list[Tensor] = []
    layer.register_forward_pre_hook(lambda module, _: lengths.append(module.weight.detach().norm(dim=1)))
    method.step(views, 0.0).loss.backward()
    torch.testing.assert_close(lengths[0], torch.ones(10))
    assert layer.weight.grad.abs().sum() > 0


def test_one_forward_pass_per_size_and_gradients_everywhere(views: list[Tensor]) -> None:
    method = make()
    sizes: list[tuple[int, int]] = []
    method.encoder.get_submodule("conv1").register_forward_pre_hook(
        lambda _, inputs: sizes.append((len(inputs[0]), inputs[0].shape[-1]))
    )
    method.step(views, 0.0).loss.backward()
    assert sizes == [(8, 32), (8, 16)]
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_the_queue_holds_the_newest_images_first(views: list[Tensor]) -> None:
    method = make(queue_length=10, queue_start=0.2)
    seen = embeddings_of(method)
    method.step(views, 0.1)
    assert int(method.filled) == 0
    assert not method.queue.any(), "before queue_start nothing is kept"
    filled = []
    for step in range(1, 4):
        method.step(views_of(step), 0.2 + 0.1 * step)
        filled.append(int(method.filled))
    assert filled == [4, 8, 10]
    for view in range(2):
        newest = [seen[step].chunk(4)[view] for step in (3, 2, 1)]
        assert torch.equal(method.queue[view], torch.cat(newest)[:10])
    assert {"queue", "filled"} <= set(method.state_dict())
    assert not method.queue.requires_grad


def test_the_queue_is_used_once_it_is_full() -> None:
    method = make(queue_length=8, queue_start=0.0)
    seen = embeddings_of(method)
    for step in range(4):
        queue = [view.clone() for view in method.queue] if step >= 2 else None
        loss = method.step(views_of(step), 0.5).loss.item()
        weight = method.prototypes.heads[0].weight.detach()
        assert loss == pytest.approx(naive_loss(seen[step], weight, 4, queue), rel=1e-4), step
        if queue is not None:
            assert loss != pytest.approx(naive_loss(seen[step], weight, 4), rel=1e-3)


def test_queued_images_are_scored_by_the_prototypes_of_now() -> None:
    method = make(queue_length=4, queue_start=0.0)
    method.step(views_of(0), 0.5)
    with torch.no_grad():
        method.prototypes.heads[0].weight.copy_(torch.eye(10, 16))
    scores = method._queue_scores()
    assert scores is not None
    for view in range(2):
        torch.testing.assert_close(scores[view], method.queue[view, :, :10])


def test_every_process_counts_its_own_part_of_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    method = make(queue_length=4, queue_start=0.0)
    method.step(views_of(0), 0.5)
    whole = method._queue_scores()
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(method._queue_scores())
    assert whole is not None
    for view in range(2):
        assert torch.equal(torch.cat([part[view] for part in parts if part is not None]), whole[view])


def test_prototypes_wait_for_their_share_of_the_training(views: list[Tensor]) -> None:
    method = make(freeze_prototypes=0.1)
    weight = method.prototypes.heads[0].weight
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.01, weight_decay=0.1)
    for progress, frozen in ((0.0, True), (0.09, True), (0.1, False), (0.5, False)):
        optimizer.zero_grad()
        method.step(views, progress).loss.backward()
        assert weight.grad is not None
        before = weight.detach().clone()
        method.before_update(progress)
        assert sum(p.grad is None for p in method.parameters()) == frozen
        optimizer.step()
        assert torch.equal(before, weight) == frozen


def test_the_log_tells_how_many_prototypes_are_used(views: list[Tensor]) -> None:
    method = make()
    seen = embeddings_of(method)
    used = method.step(views, 0.0).logs["prototypes_used"]
    nearest = (seen[0][:8] @ method.prototypes.heads[0].weight.detach().T).argmax(1)
    assert used.item() == pytest.approx(len(set(nearest.tolist())) / 10)
    assert not used.requires_grad


def test_the_loss_is_fp32_under_bf16(views: list[Tensor]) -> None:
    method = make(queue_length=4, queue_start=0.0)
    taken: list[torch.dtype] = []
    method.prototypes.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        losses = [method.step(views, 0.5).loss for _ in range(2)]
    assert set(taken) == {torch.float32}
    assert [loss.dtype for loss in losses] == [torch.float32] * 2
    assert all(math.isfinite(loss.item()) for loss in losses)


def test_views_are_made_as_in_the_authors_code() -> None:
    method = make("test_vit", local_size=0, local_crops=6)
    strong = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "blur": 0.5}
    views = method.views(224)
    assert [view.size for view in views] == [224] * 2 + [96] * 6
    assert [view.augment for view in views[:2]] == [Augment(crop_min=0.14, **strong)] * 2  # type: ignore[arg-type]
    local = Augment(crop_min=0.05, crop_max=0.14, **strong)  # type: ignore[arg-type]
    assert [view.augment for view in views[2:]] == [local] * 6


@pytest.mark.parametrize(
    ("num_images", "batch_size", "prototypes", "queue"),
    [
        (1_280_000, 256, 3000, 3840),
        (1_280_000, 4096, 3000, 0),
        (50_000, 512, 512, 0),
        (50_000, 256, 512, 768),
        (5_000, 256, 300, 512),
        (600, 256, 300, 256),
        (300, 256, 300, 0),
    ],
)
def test_defaults_follow_images_and_batch(
    num_images: int, batch_size: int, prototypes: int, queue: int
) -> None:
    cfg = fill_method(swav, Config(), Facts(num_images, batch_size, num_steps=100 * num_images // batch_size))
    assert (cfg.num_prototypes, cfg.queue_length) == (prototypes, queue)
    assert cfg.freeze_prototypes == pytest.approx(0.01, rel=0.01)
    assert fill_method(swav, Config(), Facts(1000, 256, num_steps=8)).freeze_prototypes == 0.05


@pytest.mark.parametrize(
    ("facts", "recipe"),
    [
        (Facts(batch_size=256), ("lars", 0.6, "linear", 1e-6, None)),
        (Facts(batch_size=4096), ("lars", 0.3, "linear", 1e-6, None)),
        (Facts(transformer=True), ("adamw", 5e-4, "linear", 0.04, 0.4)),
        (Facts(pretrained=True), ("adamw", 3e-4, "none", 1e-4, None)),
    ],
)
def test_the_optimizer_is_the_papers_for_resnets(facts: Facts, recipe: tuple[Any, ...]) -> None:
    chosen = optim.choices(optim.OptimizerConfig(), swav.defaults(facts), facts)
    names = ("name", "lr", "scale", "weight_decay", "weight_decay_end")
    assert tuple(chosen.get(f"optimizer.{name}", (None, ""))[0] for name in names) == recipe
    peaks = {
        batch: optim.peak_lr(
            optim.OptimizerConfig(
                lr=swav.defaults(Facts(batch_size=batch))["optimizer.lr"][0], scale="linear"
            ),
            batch,
        )
        for batch in (256, 4096)
    }
    assert peaks == pytest.approx({256: 0.6, 4096: 4.8})


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"temperature": 0.0}, "method.temperature=0.0"),
        ({"epsilon": 0.01}, "method.epsilon=0.01: must be at least 0.02"),
        ({"sinkhorn_iterations": 0}, "method.sinkhorn_iterations=0"),
        ({"num_prototypes": 1}, "method.num_prototypes=1"),
        ({"queue_length": -1}, "method.queue_length=-1"),
        ({"queue_start": 1.5}, "method.queue_start=1.5"),
        ({"freeze_prototypes": -0.1}, "method.freeze_prototypes=-0.1"),
        ({"local_augment": Augment(crop_min=0.5, crop_max=0.4)}, "crop_max=0.4"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], names: str) -> None:
    with pytest.raises(UserError) as caught:
        make(**settings)
    assert names in str(caught.value)
