"""Every extractor, method and dataset keeps its contract; new ones are found and tested unasked."""

import copy
import dataclasses
import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up_datasets import MADE_UP
from made_up_photos import photo
from method_makers import method_of, views_for
from PIL import Image

from ssl_retrieval import backbones, checkpoint, config, features, optim, plugins
from ssl_retrieval.augment import Noise
from ssl_retrieval.data.tasks import require_positives
from ssl_retrieval.defaults import Facts, fill, fill_method
from ssl_retrieval.methods.base import BaseMethod
from ssl_retrieval.network_input import InputSpec
from ssl_retrieval.types import ImageSet, Task

SMALL_NETWORKS = ("resnet10t", "test_vit", "test_convnext", "test_efficientnet")

CONFIGS: dict[str, list[dict[str, Any]]] = {
    "timm_model": [
        *({"name": name, "weights": "random", "pool": "model", "image_size": 64} for name in SMALL_NETWORKS),
        {"name": "resnet10t", "weights": "random", "pool": "gem", "image_size": 48, "crop": 0.5},
        {"name": "resnet18", "weights": "random", "pool": "avg", "image_size": 32, "stem": "small"},
        {
            "name": "resnet10t",
            "weights": "random",
            "pool": "rmac",
            "image_size": 64,
            "rmac_whiten": True,
            "scales": [1.0, 0.5],
            "flip": True,
        },
    ],
    "checkpoint": [{"name": "checkpoint", "pool": "model"}, {"name": "checkpoint", "pool": "gem"}],
    "bow": [{"name": "bow", "words": 300}],
    "vlad": [{"name": "vlad", "words": 4}],
    "fisher": [{"name": "fisher", "gaussians": 2, "pca": 8}],
    "asmk": [{"name": "asmk", "words": 300}],
}
"""Plugins that need more than their defaults; the others are tested with these."""

SIZES = [(1, 1), (20000, 20), (20, 20000), (1, 300), (64, 64), (33, 47), (500, 40), (2, 3)]

EXTRACTORS = [
    (name, section) for name in plugins.known("extractor") for section in CONFIGS.get(name, [{"name": name}])
]


def extractor_of(section: dict[str, Any], folder: Path) -> Any:
    if section["name"] == "checkpoint":
        spec = InputSpec(40, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
        card = checkpoint.Card("resnet10t", "standard", spec.to_dict(), train_s=12.5)
        checkpoint.save(backbones.make("resnet10t", seed=3), card, folder / "checkpoint.safetensors")
        section = section | {"path": str(folder)}
    cfg = config.plugin_config("extractor", section, "model")
    extractor = plugins.find("extractor", cfg.name).Extractor(cfg).eval()
    if getattr(extractor, "learns", False):
        lessons = [photo((90, 120, 150), seed=i, size=(80, 60)) for i in range(4)]
        with torch.inference_mode():
            extractor.set_learned(extractor.learn([extractor.material(image) for image in lessons]))
    return extractor


@pytest.fixture(scope="module", params=EXTRACTORS, ids=lambda case: "-".join(map(str, case[1].values())))
def extractor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return extractor_of(request.param[1], tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    colours = [(200, 40, 40), (30, 60, 200), (90, 90, 90)]
    odd = [photo(colours[i % 3], seed=i, size=size) for i, size in enumerate(SIZES)]
    return [*odd, photo((128, 128, 128), 9).convert("L").convert("RGB"), Image.new("RGB", (30, 30))]


def embedded(extractor: Any, pictures: list[Image.Image]) -> torch.Tensor:
    with torch.inference_mode():
        vectors: torch.Tensor = extractor(torch.stack([extractor.preprocess(image) for image in pictures]))
    return vectors


def test_every_kind_has_plugins_and_each_its_symbols() -> None:
    for kind, symbol in (("extractor", "Extractor"), ("method", "Method"), ("dataset", "load")):
        assert plugins.known(kind)
        for name in plugins.known(kind):
            module = importlib.import_module(f"{plugins._PACKAGES[kind][0]}.{name}")
            assert dataclasses.is_dataclass(module.Config)
            assert module.__doc__
            assert callable(getattr(module, symbol))


@pytest.mark.parametrize("kind", ["dataset", "method", "extractor"])
def test_the_file_name_is_the_config_name(kind: str) -> None:
    for name in set(plugins.known(kind)) - {plugins.TIMM}:
        assert plugins.find(kind, name).Config().name == name


def test_an_extractor_gives_finite_rows_of_its_dimension(extractor: Any, pictures: list[Image.Image]) -> None:
    vectors = embedded(extractor, pictures)
    assert vectors.shape == (len(pictures), extractor.dim)
    assert vectors.dtype == torch.float32
    assert torch.isfinite(vectors).all()


def test_an_extractor_is_deterministic(extractor: Any, pictures: list[Image.Image]) -> None:
    assert torch.equal(embedded(extractor, pictures), embedded(extractor, pictures))


def test_a_second_extractor_of_the_same_config_is_the_same(
    pictures: list[Image.Image], tmp_path: Path
) -> None:
    for name, section in EXTRACTORS:
        first, second = (extractor_of(section, tmp_path) for _ in range(2))
        assert first.weights_digest == second.weights_digest, name
        assert torch.equal(embedded(first, pictures[4:6]), embedded(second, pictures[4:6])), name


def test_an_extractor_does_not_depend_on_batch_size_and_order(
    extractor: Any, pictures: list[Image.Image]
) -> None:
    batch = torch.stack([extractor.preprocess(image) for image in pictures])
    with torch.inference_mode():
        together = extractor(batch)
        alone = torch.cat([extractor(row[None]) for row in batch])
        backwards = extractor(batch.flip(0)).flip(0)
    for other in (alone, backwards):
        torch.testing.assert_close(other, together, rtol=1e-4, atol=1e-5)


def test_an_extractor_sees_differences(extractor: Any, pictures: list[Image.Image]) -> None:
    vectors = embedded(extractor, pictures)
    assert not torch.allclose(vectors[4], vectors[5], atol=1e-4)


def test_an_extractor_tells_what_decides_about_its_vectors(extractor: Any) -> None:
    assert extractor.family in features._FAMILIES
    assert isinstance(extractor.weights_digest, str)
    has_weights = bool(extractor.state_dict())
    assert has_weights == (extractor.weights_digest != "none")


def test_a_grey_picture_needs_no_special_care(extractor: Any) -> None:
    grey = Image.new("L", (30, 20), 77)
    assert torch.isfinite(embedded(extractor, [grey.convert("RGB")])).all()


def test_a_checkpoint_tells_its_training_time(tmp_path: Path) -> None:
    assert extractor_of({"name": "checkpoint"}, tmp_path).train_s == 12.5


# Methods


def settings_of(method: BaseMethod) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in method.state_dict().items()}


def step_of(method: BaseMethod, optimizer: torch.optim.Optimizer, step: int) -> float:
    """Do what the training loop does in a step."""
    method.set_mode("train")
    optimizer.zero_grad()
    output = method.step(views_for(method, step), step / 10)
    output.loss.backward()
    method.before_update(step / 10)
    optimizer.step()
    method.after_step(step / 10)
    return output.loss.item()


def sgd_of(method: BaseMethod) -> torch.optim.Optimizer:
    return torch.optim.SGD((p for p in method.parameters() if p.requires_grad), lr=0.05, momentum=0.9)


@pytest.fixture(params=plugins.known("method"))
def method(request: pytest.FixtureRequest) -> BaseMethod:
    return method_of(request.param)


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_a_method_has_a_finite_scalar_loss_throughout(method: BaseMethod, progress: float) -> None:
    output = method.step(views_for(method), progress)
    assert output.loss.shape == ()
    assert output.loss.dtype == torch.float32
    assert math.isfinite(output.loss.item())
    assert not any(value.requires_grad for value in output.logs.values())


def test_gradients_reach_what_is_trained_and_nothing_else(method: BaseMethod) -> None:
    method.step(views_for(method), 0.0).loss.backward()
    trained = [name for name, parameter in method.named_parameters() if parameter.requires_grad]
    assert trained
    for name in trained:
        gradient = method.get_parameter(name).grad
        # DistributedDataParallel waits for ever for a gradient that does not come.
        assert gradient is not None, name
        assert torch.isfinite(gradient).all(), name
    assert all(p.grad is None for p in method.parameters() if not p.requires_grad)


def test_a_loss_in_half_precision_is_near_the_full_one(method: BaseMethod) -> None:
    views = views_for(method)
    full = method.step(views, 0.3).loss
    other = method_of(method.name_in_tests)  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16):
        half = other.step(views, 0.3).loss
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(full.item(), rel=0.1, abs=0.1)


def test_training_changes_the_network_that_is_kept(method: BaseMethod) -> None:
    assert method.networks()["student"] is method.encoder
    kept = method.networks()[method.kept]
    before = [parameter.detach().clone() for parameter in kept.parameters()]
    optimizer = sgd_of(method)
    for step in range(2):
        step_of(method, optimizer, step)
    after = list(kept.parameters())
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert set(kept.state_dict()) == set(method.encoder.state_dict())


def test_teachers_begin_as_their_students_and_are_never_trained(method: BaseMethod) -> None:
    for teacher, student in method.pairs():
        for own, other in zip(teacher.parameters(), student.parameters(), strict=True):
            assert torch.equal(own, other)
            assert not own.requires_grad
            assert own.data_ptr() != other.data_ptr()
    optimizer = sgd_of(method)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    method.set_mode("train")
    method.step(views_for(method), 0.0).loss.backward()
    before = [[p.clone() for p in teacher.parameters()] for teacher, _ in method.pairs()]
    optimizer.step()
    for (teacher, student), old in zip(method.pairs(), before, strict=True):
        assert not trained & {id(p) for p in teacher.parameters()}
        assert all(torch.equal(p, q) for p, q in zip(teacher.parameters(), old, strict=True))
        momentum = method.momentum(0.1)
        wanted = [
            momentum * p + (1 - momentum) * q.detach() for p, q in zip(old, student.parameters(), strict=True)
        ]
        method.after_step(0.1)
        for own, expected in zip(teacher.parameters(), wanted, strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-7)
        break  # after_step moved all pairs; one is enough here, the rest is in the methods' own tests


def test_the_state_dict_is_all_that_a_resumed_run_needs(method: BaseMethod) -> None:
    name, optimizer = method.name_in_tests, sgd_of(method)
    for step in range(3):
        step_of(method, optimizer, step)
    other = method_of(name, seed=99)  # type: ignore[arg-type]
    resumed = sgd_of(other)
    other.load_state_dict(settings_of(method))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(3, 5):
        torch.manual_seed(step)
        ours = step_of(method, optimizer, step)
        torch.manual_seed(step + 1000)  # a method that draws from the generator is found out
        assert step_of(other, resumed, step) == ours
    torch.testing.assert_close(settings_of(other), settings_of(method), rtol=0, atol=0)


def test_a_method_follows_its_seed() -> None:
    for name in plugins.known("method"):
        first, second = (method_of(name).step(views_for(method_of(name)), 0.3).loss.item() for _ in range(2))
        assert first == second, name


def test_views_have_the_size_that_was_asked_for(method: BaseMethod) -> None:
    for view, made in zip(method.views(32), views_for(method), strict=False):
        if isinstance(view, Noise):
            assert made.shape == (8, view.num)
        else:
            assert made.shape == (8, 3, view.size, view.size)


@pytest.mark.parametrize("name", plugins.known("method"))
@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize("transformer", [False, True])
@pytest.mark.parametrize("num_images", [200, 50_000, 5_000_000])
def test_defaults_fill_every_open_setting_of_a_method(
    name: str, pretrained: bool, transformer: bool, num_images: int
) -> None:
    module = plugins.find("method", name)
    for image_size in (32, 224):
        facts = Facts(num_images, 256, image_size, pretrained, transformer)
        cfg = fill_method(module, module.Config(), facts)
        # Sections for other plugins, as teachers, have no default, nor have clusters where labels are given.
        fields = [field.name for field in dataclasses.fields(cfg) if "kind" not in field.metadata]
        left_open = {name for name in fields if getattr(cfg, name) is None}
        assert left_open == ({"clusters"} if getattr(cfg, "labels", None) == "given" else set())
        recipe = module.defaults(facts)
        assert all(reason for _, reason in recipe.values())
        optimizer = optim.OptimizerConfig()
        filled, _ = fill(
            dataclasses.make_dataclass("Both", ["optimizer"])(optimizer),
            optim.choices(optimizer, recipe, facts),
        )
        optim.make(filled.optimizer, method_of("simclr"), 256)


# Datasets


def test_every_dataset_is_made_up() -> None:
    assert set(MADE_UP) == set(plugins.known("dataset")) - {"packed"}


@pytest.mark.parametrize("name", plugins.known("dataset"))
def test_a_dataset_has_what_the_stages_call(name: str) -> None:
    module = plugins.find("dataset", name)
    fields = {field.name for field in dataclasses.fields(module.Config)}
    assert {"name", "root", "on_error"} <= fields
    assert callable(module.load)
    assert callable(module.images)


@pytest.mark.parametrize("name", plugins.known("dataset"))
def test_a_dataset_explains_a_missing_root(name: str, tmp_path: Path) -> None:
    module = plugins.find("dataset", name)
    values: dict[str, Any] = {"root": str(tmp_path / "nowhere")}
    if name == "manifest":
        (tmp_path / "list.csv").write_text("path\n1.png")
        values["file"] = str(tmp_path / "list.csv")
    if name == "merged":
        values["parts"] = {label: {"name": "folder", "root": label} for label in ("one", "two")}
    if name == "some_classes":
        values["of"] = {"name": "folder", "root": "."}
    if name in ("emoji", "synthetic"):
        (tmp_path / "nowhere").write_text("a file stands in the way")
    with pytest.raises(ValueError, match="nowhere"):
        module.images(config.plugin_config("dataset", {"name": name, **values}, "data"))


@pytest.mark.parametrize("name", MADE_UP)
def test_a_dataset_gives_valid_tasks(name: str, tmp_path: Path) -> None:
    for section in MADE_UP[name](tmp_path):
        cfg = config.plugin_config("dataset", section, "data")
        task = plugins.find("dataset", name).load(cfg)
        check_task(task)
        images = plugins.find("dataset", name).images(cfg)
        assert isinstance(images, ImageSet)
        assert len(images) > 0
        for image_set in (task.queries, task.gallery, images, *([task.fit] if task.fit else [])):
            assert all(image_set.file(i).is_file() for i in range(len(image_set)))


def check_task(task: Task) -> None:
    require_positives(task)
    assert task.description
    if task.fit is not None:
        fit, queries = ({images.file(i) for i in range(len(images))} for images in (task.fit, task.queries))
        assert not fit & queries
    for i, path in enumerate(task.queries.paths):
        relevant, ignored = set(task.relevant[i].tolist()), set(task.ignored[i].tolist())
        assert len(relevant) == len(task.relevant[i])
        assert not relevant & ignored
        assert relevant | ignored <= set(range(len(task.gallery)))
        if task.protocol.self_match == "ignored" and path in task.gallery.paths:
            assert task.gallery.paths.index(path) in ignored
    if task.level == "category":
        assert task.queries.labels is not None
        assert task.gallery.labels is not None
        assert task.queries.class_names == task.gallery.class_names
        for i, relevant_ in enumerate(task.relevant):
            assert np.all(task.gallery.labels[relevant_] == task.queries.labels[i])
