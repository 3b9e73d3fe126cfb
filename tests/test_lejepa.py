"""LeJEPA: the statistic against its integral, directions from a counter, and the views' centre."""

import cmath
import math
from typing import Any

import pytest
import torch
from lightly.loss.lejepa_loss import SIGReg
from torch import Tensor, nn

from ssl_retrieval import backbones, distributed
from ssl_retrieval.augment import Augment
from ssl_retrieval.defaults import Facts, fill_method
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods import lejepa
from ssl_retrieval.methods.lejepa import Config, Method, draw_directions, sigreg
from ssl_retrieval.optim import OptimizerConfig, peak_lr


def naive_statistic(values: list[float]) -> float:
    """The Epps-Pulley statistic of some numbers: trapezoids from -3 to 3, weighed by the normal's curve."""
    step, total = 3 / 16, 0.0
    for k in range(-16, 17):
        t = k * step
        found = sum(cmath.exp(1j * t * x) for x in values) / len(values)
        normal = math.exp(-(t**2) / 2)
        total += (0.5 if abs(k) == 16 else 1.0) * step * abs(found - normal) ** 2 * normal
    return total * len(values)


def naive_sigreg(projected: Tensor, directions: Tensor) -> float:
    statistics = [
        naive_statistic([float(row.double() @ direction.double()) for row in view])
        for view in projected
        for direction in directions.T
    ]
    return sum(statistics) / len(statistics)


def naive_invariance(everything: Tensor, num_global: int) -> float:
    """Mean squared distance, per output, of all views from the mean of an image's global ones."""
    squares = []
    for image in everything.transpose(0, 1).double():
        centre = image[:num_global].mean(0)
        squares += [float((view - centre).square().mean()) for view in image]
    return sum(squares) / len(squares)


class GivenDirections(SIGReg):
    """lightly's regularizer with directions of our choice."""

    def __init__(self, directions: Tensor) -> None:
        super().__init__(num_vectors=directions.shape[1])
        self.directions = directions

    def _generate_unit_vectors(self, *_: Any) -> Tensor:
        return self.directions


def make(network: str = "test_resnet", **settings: Any) -> Method:
    sizes = {"hidden_dim": 32, "output_dim": 8, "num_slices": 16, "weight": 0.05}
    cfg = fill_method(lejepa, Config(**sizes | settings), Facts())
    patch = 8 if network == "test_vit" else None
    backbone = backbones.make(network, image_size=32, seed=1, patch_size=patch, dynamic_size=True)
    torch.manual_seed(0)
    return Method(cfg, backbone).train()


def views_for(method: Method, seed: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 3, v.size, v.size, generator=generator) for v in method.views(32)]


@pytest.fixture
def projected() -> Tensor:
    return torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(3)) * 1.5 + 0.3


def test_the_regularizer_is_the_papers(projected: Tensor) -> None:
    directions = draw_directions(torch.tensor(0), 8, 7)
    ours = float(sigreg(projected, directions))
    assert ours == pytest.approx(naive_sigreg(projected, directions), rel=1e-5)
    assert ours == pytest.approx(float(GivenDirections(directions)(projected)), rel=1e-5)


def test_the_regularizers_gradient_is_lightlys(projected: Tensor) -> None:
    directions = draw_directions(torch.tensor(0), 8, 7)
    gradients = []
    for loss in (lambda rows: sigreg(rows, directions), GivenDirections(directions)):
        rows = projected.clone().requires_grad_()
        loss(rows).backward()
        gradients.append(rows.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)


def test_normal_rows_cost_the_same_and_others_more_the_more_there_are() -> None:
    generator = torch.Generator().manual_seed(0)
    directions = draw_directions(torch.tensor(0), 4, 16)
    # N |φ_N - φ|² has the mean 1 - φ² for N normal numbers; times φ, integrated over the whole axis:
    expected = math.sqrt(2 * math.pi) - math.sqrt(2 * math.pi / 3)
    for count in (20, 200):
        normal = torch.randn(300, count, 4, generator=generator)
        assert float(sigreg(normal, directions)) == pytest.approx(expected, rel=0.1)
        for other in (torch.zeros(1, count, 4), 3 * normal, normal + 1):
            assert float(sigreg(other, directions)) > expected + count / 10


def test_the_regularizer_sees_the_rows_of_all_processes(
    projected: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    directions = draw_directions(torch.tensor(0), 8, 7)
    mine, theirs = projected, projected.flip(2) - 1
    passed: list[Tensor] = []

    def gather(rows: Tensor) -> Tensor:
        passed.append(rows)
        return torch.cat(passed)

    monkeypatch.setattr(distributed, "gather", gather)
    sigreg(theirs, directions)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    together = float(sigreg(mine, directions))
    monkeypatch.undo()
    assert together == pytest.approx(float(sigreg(torch.cat([mine, theirs], 1), directions)), rel=1e-5)


def test_directions_depend_on_the_counter_alone() -> None:
    torch.manual_seed(0)
    first = draw_directions(torch.tensor(5), 6, 9)
    torch.manual_seed(1)
    assert torch.equal(draw_directions(torch.tensor(5), 6, 9), first)
    others = [draw_directions(torch.tensor(draw), 6, 9) for draw in (0, 4, 6)]
    assert all(not torch.isclose(first[:, :1], other).all(0).any() for other in others)
    torch.testing.assert_close(first.norm(dim=0), torch.ones(9))


def test_directions_prefer_no_direction() -> None:
    directions = torch.cat([draw_directions(torch.tensor(i), 3, 5000) for i in range(4)], 1)
    count = directions.shape[1]
    assert float(directions.mean(1).abs().max()) < 4 / math.sqrt(3 * count)
    torch.testing.assert_close(directions @ directions.T / count, torch.eye(3) / 3, rtol=0, atol=0.01)
    # On a sphere in three dimensions every coordinate is uniform in [-1, 1].
    shares = torch.histc(directions, bins=4, min=-1, max=1) / directions.numel()
    torch.testing.assert_close(shares, torch.full((4,), 0.25), rtol=0, atol=0.01)


@pytest.mark.parametrize("network", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("local_crops", [0, 3])
def test_the_loss_is_the_papers(network: str, local_crops: int) -> None:
    method = make(network, local_crops=local_crops, weight=0.3)
    views = views_for(method)
    seen: list[Tensor] = []
    method.head.register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    output = method.step(views, 0.0)
    assert [len(rows) for rows in seen] == [8, 12][: 1 + (local_crops > 0)], "one batch per resolution"
    everything = torch.cat(seen).unflatten(0, (2 + local_crops, 4))
    regularizer = naive_sigreg(everything, draw_directions(torch.tensor(0), 8, 16))
    invariance = naive_invariance(everything, 2)
    assert float(output.loss.detach()) == pytest.approx(0.3 * regularizer + 0.7 * invariance, rel=1e-4)
    assert float(output.logs["invariance"]) == pytest.approx(invariance, rel=1e-4)
    assert float(output.logs["sigreg"]) == pytest.approx(regularizer, rel=1e-4)


def test_every_step_has_directions_of_its_own_and_a_resumed_run_the_same_ones() -> None:
    method = make()
    views = views_for(method)
    losses = [float(method.step(views, 0.0).loss.detach()) for _ in range(3)]
    assert len(set(losses)) == 3
    resumed = make()
    resumed.step(views, 0.0)
    state = {key: value.clone() for key, value in resumed.state_dict().items()}
    other = make(weight=0.05)
    other.load_state_dict(state)
    torch.manual_seed(77)
    assert [float(other.step(views, 0.0).loss.detach()) for _ in range(2)] == losses[1:]


def test_the_loss_is_fp32_under_bf16() -> None:
    method = make()
    seen: list[Tensor] = []
    method.head.register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    with torch.autocast("cpu", torch.bfloat16):
        output = method.step(views_for(method), 0.0)
    assert seen[0].dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32
    rows = seen[0].float().unflatten(0, (2, 4))
    expected = naive_sigreg(rows, draw_directions(torch.tensor(0), 8, 16))
    assert float(output.logs["sigreg"]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("patch", "image_size", "local_size", "expected"),
    [
        (16, 224, 0, 96),
        (14, 224, 0, 98),
        (1, 224, 0, 96),
        (4, 32, 0, 12),
        (16, 32, 0, 16),
        (16, 224, 112, 112),
    ],
)
def test_local_views_are_whole_patches(
    patch: int, image_size: int, local_size: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make(global_crops=2, local_crops=6, local_size=local_size)
    monkeypatch.setattr(backbones, "patch_size", lambda _: patch)
    views = method.views(image_size)
    assert [view.size for view in views] == [image_size] * 2 + [expected] * 6
    assert [view.augment.crop_max for view in views] == [1.0] * 2 + [0.3] * 6
    if patch > 1:
        with pytest.raises(UserError, match=rf"method.local_size={patch + 1}: must be a multiple"):
            make(local_crops=6, local_size=patch + 1).views(image_size)


def test_the_projector_has_three_layers() -> None:
    layers = list(make(output_dim=16).head.layers)
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert [type(layer) for layer in layers] == [*kinds, *kinds, nn.Linear]
    assert [m.out_features for m in layers if isinstance(m, nn.Linear)] == [32, 32, 16]


def test_the_rate_shrinks_with_batches_below_256() -> None:
    peaks = []
    for batch_size in (64, 128, 256, 1024):
        chosen = lejepa.defaults(Facts(1_281_167, batch_size, 224, transformer=True))
        cfg = OptimizerConfig(lr=chosen["optimizer.lr"][0], scale=chosen["optimizer.scale"][0])
        peaks.append(peak_lr(cfg, batch_size))
    assert peaks == [1.25e-4, 2.5e-4, 5e-4, 5e-4]


@pytest.mark.parametrize(
    ("facts", "own", "lr", "decay"),
    [
        (Facts(1_281_167, 256, 224, transformer=True), [0.05, 1024, 64], 5e-4, 0.05),
        (Facts(1_281_167, 256, 224), [0.05, 1024, 64], 5e-4, 5e-4),
        (Facts(10_000, 256, 128, transformer=True), [0.02, 256, 16], 2e-3, 0.05),
        (Facts(10_000, 256, 128, pretrained=True), [0.02, 256, 16], 3e-4, 1e-4),
    ],
)
def test_the_recipe_is_the_authors(facts: Facts, own: list[float], lr: float, decay: float) -> None:
    recipe = lejepa.defaults(facts)
    assert [recipe[f"method.{key}"][0] for key in ("weight", "num_slices", "output_dim")] == own
    keys = ("name", "lr", "scale", "weight_decay")
    assert [recipe[f"optimizer.{key}"][0] for key in keys] == ["adamw", lr, "none", decay]


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"weight": 1.5}, "method.weight=1.5"),
        ({"num_slices": 0}, "method.num_slices=0"),
        ({"output_dim": 0}, "method.output_dim=0"),
        ({"local_crops": -1}, "method.local_crops"),
        ({"global_crops": 1}, "at least two views"),
        ({"local_augment": Augment(flip=1.5)}, "augment.flip=1.5"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], names: str) -> None:
    with pytest.raises(UserError) as caught:
        make(**settings)
    assert names in str(caught.value)
