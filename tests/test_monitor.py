"""The monitor scores as the harness does, leaves training alone, and cries only when something is wrong."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up_photos import photo, write_flat_photos, write_photos
from PIL import Image, ImageOps
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn import functional as nnf

from ssl_retrieval import backbones, config, monitor, plugins
from ssl_retrieval.augment import Output, View, make_views
from ssl_retrieval.data.tasks import labelled, subsample, task_from_groups
from ssl_retrieval.errors import UserError
from ssl_retrieval.monitor import Monitor, MonitorConfig
from ssl_retrieval.network_input import InputSpec
from ssl_retrieval.packing import Packed
from ssl_retrieval.types import Task

SPEC = InputSpec(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CPU = torch.device("cpu")
NAMES = ("val_mAP", "val_hit_rate@1", "val_knn@20")


class Pixels(nn.Module):
    """The image itself, coarsely: float [B, 3, H, W] -> [B, 12]."""

    def __init__(self, change: Callable[[Tensor], Tensor] = lambda features: features) -> None:
        super().__init__()
        self.change = change
        self.batches: list[int] = []

    def forward_features(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        assert images.shape[1:] == (3, 32, 32)
        return images

    def forward_head(self, images: Tensor, pre_logits: bool) -> Tensor:
        return self.change(nnf.adaptive_avg_pool2d(images, 2).flatten(1))


def packed(num: int = 40, size: int = 32, spread: float = 1.0) -> Packed:
    """Pictures of one colour each, with noise; no colours at all for ``spread`` 0."""
    draw = np.random.default_rng(0)
    colours = 128 + spread * draw.uniform(-110, 110, (num, 3, 1, 1))
    pixels = np.clip(colours + draw.normal(0, 15, (num, 3, size, size)), 0, 255).astype(np.uint8)
    return Packed(pixels.transpose(0, 2, 3, 1), tuple(f"{i}.png" for i in range(num)), ())


def made(tmp_path: Path, *, validation: Any = None, images: Packed | None = None, **options: Any) -> Monitor:
    seed = options.pop("seed", 0)
    return Monitor(
        MonitorConfig(**options),
        SPEC,
        CPU,
        out=tmp_path / "run",
        packed=images or packed(),
        validation=validation,
        seed=seed,
        advice="a larger batch_size",
    )


def folder(root: Path, **options: Any) -> Any:
    return config.plugin_config("dataset", {"name": "folder", "root": str(root), **options}, "validation")


# When


@pytest.mark.parametrize(
    ("options", "total", "expected"),
    [
        ({}, 100, [*range(0, 101, 10)]),
        ({}, 25, [0, 3, 5, 8, 10, 13, 15, 18, 20, 23, 25]),
        ({}, 3, [0, 1, 2, 3]),
        ({"every_steps": 4}, 10, [0, 4, 8, 10]),
        ({"every_epochs": 2}, 30, [0, 10, 20, 30]),
        ({"every_epochs": 0.2}, 4, [0, 1, 2, 3, 4]),
        ({"every_epochs": 0.1}, 3, [0, 1, 2, 3]),
        ({"every_epochs": 1.5}, 20, [0, 8, 15, 20]),
        ({"every_epochs": 0}, 20, []),
        ({"every_epochs": 0, "every_steps": 15}, 20, [0, 15, 20]),
    ],
)
def test_passes_are_due(tmp_path: Path, options: dict[str, Any], total: int, expected: list[int]) -> None:
    judge = made(tmp_path, **options)
    assert [step for step in range(total + 1) if judge.due(step, 5, total, 10**6)] == expected


def test_passes_left_open_stay_a_small_part_of_the_work(tmp_path: Path) -> None:
    judge = made(tmp_path)
    looked_at = 2 * len(judge.probe.queries.numbers)
    passes = [step for step in range(201) if judge.due(step, 5, 200, batch_size=8)]
    assert passes[0] == 0
    assert passes[-1] == 200
    assert all(later - sooner >= 2 * looked_at // 8 for sooner, later in itertools.pairwise(passes[:-1]))
    often = made(tmp_path, every_steps=4)
    assert len([step for step in range(201) if often.due(step, 5, 200, batch_size=8)]) == 51


WRONG = [{"every_epochs": -1}, {"every_epochs": float("nan")}, {"every_steps": -1}, {"batch_size": 0}]


@pytest.mark.parametrize("options", [*WRONG, {"max_images": 1}, {"every_steps": 5, "every_epochs": 1}])
def test_wrong_settings_are_named(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"monitor.{next(iter(options))}"):
        made(tmp_path, **options)


def test_a_monitor_that_is_off_opens_nothing(tmp_path: Path) -> None:
    judge = made(tmp_path, every_epochs=0, validation=folder(tmp_path / "nowhere"))
    assert judge.key == "val_mAP"
    assert not (tmp_path / "run").exists()


# What: labels


def naive_scores(task: Task, network: Pixels) -> dict[str, float]:
    """Scores from one sorted list per query."""

    def embed(file: Path) -> Any:
        image = ImageOps.fit(Image.open(file).convert("RGB"), (32, 32), Image.Resampling.BICUBIC)
        values = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
        return nnf.normalize(network.forward_head(values, True)[0], dim=0).numpy()

    gallery = np.stack([embed(task.gallery.file(i)) for i in range(len(task.gallery))])
    assert task.gallery.labels is not None
    assert task.queries.labels is not None
    precisions, hits, votes = [], [], []
    for i in range(len(task.queries)):
        scores = gallery @ embed(task.queries.file(i))
        others = np.setdiff1d(np.arange(len(gallery)), task.ignored[i])
        truth = np.isin(others, task.relevant[i])
        precisions.append(average_precision_score(truth, scores[others]))
        hits.append(truth[scores[others].argmax()])
        nearest = others[np.argsort(-scores[others])[:20]]
        weights = np.bincount(task.gallery.labels[nearest], np.exp(scores[nearest] / 0.07))
        votes.append(weights.argmax() == task.queries.labels[i])
    return {name: float(np.mean(v)) for name, v in zip(NAMES, (precisions, hits, votes), strict=True)}


@pytest.mark.parametrize("split", [False, True])
def test_a_labelled_task_is_scored_as_scikit_learn_does(tmp_path: Path, split: bool) -> None:
    if split:
        write_photos(tmp_path / "set" / "find", per_class=4)
        write_photos(tmp_path / "set" / "among", per_class=9)
        section = folder(tmp_path / "set", queries="find", gallery="among")
    else:
        section = folder(write_photos(tmp_path / "set", per_class=7))
    judge = made(tmp_path, validation=section)
    assert judge.key == "val_mAP"
    found = judge.check(Pixels(), 0).values
    expected = naive_scores(plugins.find("dataset", "folder").load(section), Pixels())
    assert {name: found[name] for name in NAMES} == pytest.approx(expected, abs=1e-6)
    assert set(found) == {*NAMES, "std", "effective_rank", "alignment", "uniformity"}


def test_instances_are_no_classes_to_vote_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = plugins.find("dataset", "folder")
    load = loader.load
    monkeypatch.setattr(loader, "load", lambda cfg: replace(load(cfg), level="instance"))
    judge = made(tmp_path, validation=folder(write_photos(tmp_path / "set", per_class=2)))
    assert set(NAMES) - judge.check(Pixels(), 0).values.keys() == {"val_knn@20"}


def task_of(num_groups: int, per_group: int, level: str = "instance") -> Task:
    """Every item searches for its group among the others; one more group has nothing to find."""
    names = [f"g{i % num_groups}" for i in range(num_groups * per_group)] + ["alone"]
    images = labelled(Path("/nowhere"), [f"{i}.png" for i in range(len(names))], names)
    return task_from_groups(name="made-up", level=level, queries=images, gallery=images)


@pytest.mark.parametrize(("num_groups", "per_group"), [(300, 2), (5, 100), (30, 3)])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_subsample_keeps_its_queries_answerable(num_groups: int, per_group: int, seed: int) -> None:
    whole = task_of(num_groups, per_group)
    small = subsample(whole, 60, seed)
    assert len(small.gallery) == 60
    assert 25 <= len(small.queries) <= 60
    assert small.queries.labels is not None
    assert small.gallery.labels is not None
    for i, path in enumerate(small.queries.paths):
        same = small.gallery.labels == small.queries.labels[i]
        itself = np.array([other == path for other in small.gallery.paths])
        assert (same & ~itself).any()
        np.testing.assert_array_equal(np.flatnonzero(same & ~itself), small.relevant[i])
        np.testing.assert_array_equal(np.flatnonzero(itself), small.ignored[i])


def test_a_subsample_of_few_classes_is_nearly_a_plain_draw() -> None:
    gallery = subsample(task_of(2, 500, "category"), 200, seed=0).gallery
    assert gallery.labels is not None
    counts = np.bincount(gallery.labels, minlength=3)
    assert 70 < counts[gallery.class_names.index("g0")] < 130


def test_a_subsample_follows_its_seed_and_a_small_task_stays_whole() -> None:
    whole = task_of(100, 3)
    first, again, other = (subsample(whole, 40, seed).gallery.paths for seed in (0, 0, 1))
    assert first == again != other
    kept = subsample(whole, 1000, 0)
    assert (kept.gallery.paths, len(kept.queries)) == (whole.gallery.paths, 300)


def test_validation_images_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = folder(write_photos(tmp_path / "set", per_class=5))
    first = made(tmp_path, validation=section, max_images=12).check(Pixels(), 0)
    assert len(list((tmp_path / "run").glob("validation_*.npy"))) == 2
    monkeypatch.setattr("ssl_retrieval.images.load_image", None)
    assert made(tmp_path, validation=section, max_images=12).check(Pixels(), 0) == first


def test_unreadable_validation_images_are_left_out(tmp_path: Path) -> None:
    root = write_photos(tmp_path / "set", per_class=3)
    (root / "apple" / "0.png").write_bytes(b"no image")
    (root / "alone").mkdir()
    photo((9, 9, 9), seed=1).save(root / "alone" / "0.png")
    judge = made(tmp_path, validation=folder(root))
    assert (len(judge.probe.queries.numbers), len(judge.probe.gallery.numbers)) == (11, 12)
    assert np.isfinite(list(judge.check(Pixels(), 0).values.values())).all()
    with pytest.raises(UserError, match="validation task: cannot read"):
        made(tmp_path, validation=folder(root, on_error="fail"))


def test_a_validation_task_without_answers_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"validation task: no query .* has a positive"):
        made(tmp_path, validation=folder(write_flat_photos(tmp_path / "flat", 4)))
    with pytest.raises(UserError, match=r"validation task: validation.root='.*nowhere' does not exist"):
        made(tmp_path, validation=folder(tmp_path / "nowhere"))


# What: no labels


@pytest.mark.parametrize("size", [32, 48])
def test_changed_views_find_their_images_by_their_pixels(tmp_path: Path, size: int) -> None:
    judge = made(tmp_path, images=packed(size=size))
    assert judge.key == "self_mAP"
    assert judge.check(Pixels(), 0).values["self_mAP"] > 0.7
    assert judge.check(Pixels(lambda f: f[:, :1] * 0 + 1), 1).values["self_mAP"] < 0.2


def test_self_search_is_the_mean_reciprocal_rank_of_the_image_itself(tmp_path: Path) -> None:
    images = packed(num=30)
    found = made(tmp_path, images=images, max_images=12, seed=3).check(Pixels(), 0).values
    numbers = torch.tensor(sorted(np.random.default_rng(3).permutation(30)[:12].tolist()))
    pixels = images.tensor()[numbers]
    options: Any = {"seed": monitor.CHANGED_SEED, "step": 0, "output": Output(SPEC.mean, SPEC.std)}
    (changed,) = make_views(pixels, [View(monitor.CHANGED, 32)], samples=numbers, **options)
    q, g = (nnf.normalize(Pixels().forward_head(v, True), dim=1) for v in (changed, pixels / 127.5 - 1))
    scores = q @ g.T
    ranks = (scores > scores.diag()[:, None]).sum(1) + 1
    assert found["self_mAP"] == pytest.approx(float((1 / ranks).mean()), abs=1e-6)
    assert found["self_hit_rate@1"] == pytest.approx(float((ranks == 1).float().mean()), abs=1e-6)
    assert found["alignment"] == pytest.approx(float((q - g).square().sum(1).mean()), rel=1e-4)


def test_passes_and_runs_repeat_and_the_seed_chooses_the_images(tmp_path: Path) -> None:
    network = backbones.make("test_resnet", seed=0)
    judge = made(tmp_path, max_images=20)
    first = judge.check(network, 0)
    assert first == judge.check(network, 5)
    assert made(tmp_path, max_images=20).check(network, 0) == first
    assert made(tmp_path, max_images=20, seed=1).check(network, 0) != first


def test_the_batch_size_bounds_a_forward_pass_and_the_images_its_cost(tmp_path: Path) -> None:
    network = Pixels()
    judge = made(tmp_path, images=packed(num=60), max_images=20, batch_size=8)
    few = judge.check(network, 0).values
    assert network.batches == [8, 8, 4] * 2
    assert made(tmp_path, images=packed(num=60), max_images=20).check(Pixels(), 0).values == pytest.approx(
        few
    )


# Training goes on as if nothing had been


def test_a_pass_changes_neither_the_network_nor_the_random_state(tmp_path: Path) -> None:
    network = backbones.make("test_resnet", seed=0).train()
    network.add_module("extra", nn.Dropout(0.5))
    frozen = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)][1]
    frozen.eval()
    modes = [module.training for module in network.modules()]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random = torch.get_rng_state()
    judge = made(tmp_path)
    with torch.autocast("cpu", torch.bfloat16):
        values = judge.check(network, 0)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in network.modules()] == modes
    assert not frozen.training
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    assert judge.check(network, 1) == values
    backbones.own_pooling(network, torch.zeros(2, 3, 32, 32)).sum().backward()


def test_modes_come_back_when_a_pass_fails(tmp_path: Path) -> None:
    def fail(features: Tensor) -> Tensor:
        torch.rand(3)
        raise RuntimeError("out of memory")

    network = Pixels(fail).train()
    random = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="out of memory"):
        made(tmp_path).check(network, 0)
    assert network.training
    assert torch.equal(torch.get_rng_state(), random)


# The words


LITE = "tf_efficientnet_lite0"
STARTS = [(name, "random") for name in ("test_resnet", "test_vit", "test_efficientnet", "resnet10t", LITE)]


@pytest.mark.parametrize("spread", [0.0, 1.0])
@pytest.mark.parametrize(("name", "weights"), [*STARTS, (LITE, "offline")])
def test_networks_start_without_alarm(name: str, weights: str, spread: float, tmp_path: Path) -> None:
    judge = made(tmp_path, images=packed(spread=spread))
    for seed in (0, 1) if weights == "random" else (0,):
        network = backbones.make(name, weights, image_size=32, seed=seed)
        result = judge.check(network, 0)
        assert result.warning is None
        assert result.values["std"] > 0.01
        assert result.values["effective_rank"] > 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f * 0 + 1, "all images get nearly the same one"),
        (lambda f: f * 0, "all images get nearly the same one"),
        (lambda f: 1 + 1e-5 * f, "all images get nearly the same one"),
        (lambda f: torch.cat([f[:, :1], torch.ones(len(f), 5)], 1), "along one direction only"),
        (lambda f: f * float("nan"), "not finite"),
    ],
)
def test_a_collapsed_network_is_named_once(
    tmp_path: Path, change: Callable[[Tensor], Tensor], words: str
) -> None:
    judge = made(tmp_path)
    assert judge.check(Pixels(), 0).warning is None
    warning = judge.check(Pixels(change), 5).warning
    assert warning is not None
    assert words in warning
    assert "try a l" in warning
    assert judge.check(Pixels(change), 10).warning is None


def test_embeddings_that_are_not_finite_can_be_no_best(tmp_path: Path) -> None:
    judge = made(tmp_path)
    finite, broken = (judge.check(Pixels(f), 0).values for f in (lambda f: f, lambda f: f / 0))
    assert broken.keys() == finite.keys()
    assert np.isnan(list(broken.values())).all()


def test_dead_weights_are_named_before_and_in_training(tmp_path: Path) -> None:
    dead = backbones.make("resnet10t", seed=0)
    for module in dead.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.zeros_(module.weight)
            nn.init.ones_(module.bias)
    before = made(tmp_path).check(dead, 0).warning
    judge = made(tmp_path)
    judge.check(backbones.make("resnet10t", seed=0), 0)
    later = judge.check(dead, 1).warning
    assert "before any training: check that the images differ, and model.weights" in str(before)
    assert str(later).endswith("try a larger batch_size")


def scrambled(features: Tensor) -> Tensor:
    """Many directions, but none that an image and its changed view share."""
    return torch.sin(1000 * features)


def test_search_must_suffer_twice_in_a_row(tmp_path: Path) -> None:
    judge = made(tmp_path)
    warnings = [
        judge.check(Pixels(change), step).warning is not None
        for step, change in enumerate([lambda f: f, scrambled, lambda f: f, scrambled, scrambled])
    ]
    assert warnings == [False, False, False, False, True]


def test_a_resumed_run_says_what_the_whole_run_would(tmp_path: Path) -> None:
    judge = made(tmp_path)
    judge.check(Pixels(), 0)
    judge.check(Pixels(scrambled), 1)
    state = json.loads(json.dumps(judge.state_dict()))
    resumed = made(tmp_path)
    resumed.load_state_dict(state)
    whole = judge.check(Pixels(scrambled), 2)
    assert whole.warning is not None
    assert resumed.check(Pixels(scrambled), 2) == whole
    resumed.load_state_dict(judge.state_dict())
    assert resumed.check(Pixels(scrambled), 3).warning is None
