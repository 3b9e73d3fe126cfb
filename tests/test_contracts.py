"""Every extractor, method and dataset keeps its contract; new ones are found and tested unasked."""

import dataclasses
import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up_photos import photo
from PIL import Image

from ssl_retrieval import backbones, checkpoint, config, plugins
from ssl_retrieval.augment import make_views
from ssl_retrieval.data.tasks import require_positives
from ssl_retrieval.methods.base import BaseMethod
from ssl_retrieval.network_input import InputSpec
from ssl_retrieval.types import ImageSet, Task

SMALL_NETWORKS = ("resnet10t", "test_vit", "test_convnext", "test_efficientnet")

CONFIGS: dict[str, list[dict[str, Any]]] = {
    "timm_model": [
        *({"name": name, "weights": "random", "pool": "model", "image_size": 64} for name in SMALL_NETWORKS),
        {"name": "resnet10t", "weights": "random", "pool": "gem", "image_size": 48, "crop": 0.5},
        {"name": "resnet18", "weights": "random", "pool": "avg", "image_size": 32, "stem": "small"},
    ],
    "checkpoint": [{"name": "checkpoint", "pool": "model"}, {"name": "checkpoint", "pool": "gem"}],
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
    return plugins.find("extractor", cfg.name).Extractor(cfg).eval()


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
    assert extractor.family in ("hand-crafted", "random", "off-the-shelf", "self-supervised")
    assert isinstance(extractor.weights_digest, str)
    has_weights = bool(extractor.state_dict())
    assert has_weights == (extractor.weights_digest != "none")


def test_a_grey_picture_needs_no_special_care(extractor: Any) -> None:
    grey = Image.new("L", (30, 20), 77)
    assert torch.isfinite(embedded(extractor, [grey.convert("RGB")])).all()


def test_a_checkpoint_tells_its_training_time(tmp_path: Path) -> None:
    assert extractor_of({"name": "checkpoint"}, tmp_path).train_s == 12.5


# Methods


def method_of(name: str) -> BaseMethod:
    module = plugins.find("method", name)
    torch.manual_seed(0)
    method: BaseMethod = module.Method(module.Config(), backbones.make("resnet10t", seed=0))
    return method.train()


def views_for(method: BaseMethod) -> list[torch.Tensor]:
    images = torch.randint(0, 256, (8, 3, 40, 40), generator=torch.Generator().manual_seed(1))
    return make_views(
        images.to(torch.uint8),
        method.views(32),
        seed=0,
        step=0,
        samples=torch.arange(8),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )


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
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    assert trained
    for parameter in trained:
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
    assert all(p.grad is None for p in method.parameters() if not p.requires_grad)


def test_training_changes_the_encoder_that_is_kept(method: BaseMethod) -> None:
    assert isinstance(method.encoder, torch.nn.Module)
    before = [parameter.detach().clone() for parameter in method.encoder.parameters()]
    optimizer = torch.optim.SGD((p for p in method.parameters() if p.requires_grad), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        method.step(views_for(method), step / 2).loss.backward()
        optimizer.step()
        method.after_step((step + 1) / 2)
    after = list(method.encoder.parameters())
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_a_method_follows_its_seed() -> None:
    for name in plugins.known("method"):
        losses = []
        for _ in range(2):
            method = method_of(name)
            torch.manual_seed(5)
            losses.append(method.step(views_for(method), 0.3).loss.item())
        assert losses[0] == losses[1], name


def test_views_have_the_size_that_was_asked_for(method: BaseMethod) -> None:
    for view, made in zip(method.views(32), views_for(method), strict=True):
        assert made.shape == (8, 3, view.size, view.size)


# Datasets


def section_of_emoji(folder: Path) -> list[dict[str, Any]]:
    return [
        {"name": "emoji", "root": str(folder), "task": task} for task in ("instance", "moved", "category")
    ]


def section_of_folder(folder: Path) -> list[dict[str, Any]]:
    for split in ("train", "test"):
        for label in ("red", "blue"):
            (folder / "split" / split / label).mkdir(parents=True)
            for i in range(3):
                file = folder / "split" / split / label / f"{i}.png"
                photo((200, 0, 0) if label == "red" else (0, 0, 200), seed=i).save(file)
    train = {"name": "folder", "root": str(folder / "split" / "train")}
    return [
        train,
        train | {"labels": "folder", "limit_per_class": 2},
        {"name": "folder", "root": str(folder / "split"), "queries": "test", "gallery": "train"},
    ]


def section_of_manifest(folder: Path) -> list[dict[str, Any]]:
    rows = ["path,label"]
    for i in range(4):
        photo((i * 50, 0, 0), seed=i).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{'even' if i % 2 == 0 else 'odd'}")
    (folder / "list.csv").write_text("\n".join(rows))
    return [{"name": "manifest", "root": str(folder), "file": str(folder / "list.csv")}]


MADE_UP: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    "emoji": section_of_emoji,
    "folder": section_of_folder,
    "manifest": section_of_manifest,
}


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
    values = {"root": str(tmp_path / "nowhere")}
    if name == "manifest":
        (tmp_path / "list.csv").write_text("path\n1.png")
        values["file"] = str(tmp_path / "list.csv")
    if name == "emoji":
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
        for image_set in (task.queries, task.gallery, images):
            assert all(image_set.file(i).is_file() for i in range(len(image_set)))


def check_task(task: Task) -> None:
    require_positives(task)
    assert task.description
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
