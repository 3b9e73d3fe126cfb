"""Every yaml of ``configs/pretrain`` and ``configs/finetune``: it loads, is filled, and its method is built.

Those of ``configs/compare`` load, and what they derive can be derived.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from method_makers import needs_labels

from ssl_retrieval import backbones, config, defaults, optim, plugins, train_config, train_setup
from ssl_retrieval.augment import Noise, View
from ssl_retrieval.defaults import Facts
from ssl_retrieval.grid import CompareConfig
from ssl_retrieval.methods.base import BaseMethod
from ssl_retrieval.train import PretrainConfig

CONFIGS = Path(__file__).parent.parent / "configs"
FILES = [file for command in ("pretrain", "finetune") for file in sorted((CONFIGS / command).glob("*.yaml"))]

PHOTOS = [
    file
    for file in FILES
    if {"  name: folder", "  weights: random"} <= set(file.read_text("utf-8").splitlines())
]
"""Those for any number of photos, from random weights."""

NAMED = {name: ["data.name=folder"] for name in ("ladder", "rerank", "rerank_spatial")}
NAMED["distilled"] = ["tasks.ukbench.root=objects"]
NAMED["anchors"] = ["tasks.others.root=objects"]
NAMED["unsupervised_finetuning"] = ["tasks.objects.root=objects"]
"""What a comparison leaves to its user, besides ``data.root`` and ``out``."""

ELSEWHERE = {
    "distill": ["method.teacher.weights=random"],
    "distill_grocery": ["method.teacher.name=test_resnet", "method.teacher.weights=random"],
    "pairs": ["method.pairs=neighbours"],
}
"""What stands in for files that a config names: a teacher's weights, a trained teacher, a table of pairs."""

each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def load(file: Path) -> PretrainConfig:
    return config.load(
        PretrainConfig, file, ["data.root=photos", "out=runs/one", *ELSEWHERE.get(file.stem, [])]
    )


def is_vit(cfg: PretrainConfig) -> bool:
    return cfg.model.name.startswith("vit_")


def settled(file: Path, num_images: int) -> PretrainConfig:
    """Fill what is open as the training loop does."""
    cfg = load(file)
    module = plugins.find("method", cfg.method.name)
    facts = Facts(
        num_images,
        cfg.batch_size,
        cfg.model.image_size,
        cfg.model.weights != "random",
        is_vit(cfg),
        own_labels=train_config.signal_of(cfg).renewed,
    )
    cfg, _ = defaults.fill(cfg, defaults.common(facts))
    assert cfg.epochs is not None
    facts = dataclasses.replace(facts, num_steps=cfg.epochs * (num_images // cfg.batch_size))
    recipe = module.defaults(facts)
    return defaults.fill(cfg, recipe | optim.choices(cfg.optimizer, recipe, facts))[0]


def built(cfg: PretrainConfig) -> BaseMethod:
    """Build the method around a tiny network with views and patches of the config's size."""
    module = plugins.find("method", cfg.method.name)
    backbone = backbones.make(
        "test_vit" if is_vit(cfg) else "test_resnet",
        image_size=cfg.model.image_size,
        patch_size=(cfg.model.patch_size or 16) if is_vit(cfg) else None,
        drop_path=cfg.model.drop_path,
        dynamic_size=getattr(module.Method, "multi_crop", False),
    )
    # Heads have up to 134 million weights, of which sizes are all that is asked for.
    with torch.device("meta"):
        method: BaseMethod = module.Method(cfg.method, backbone)
    return method


def open_settings(section: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(section) if getattr(section, field.name) is None}


def not_asked_for(method: Any) -> set[str]:
    """Classes are counted where labels are given, clusters where they are not."""
    fields = {field.name for field in dataclasses.fields(method)}
    if "labels" not in fields:
        return set()
    return {"clusters"} if method.labels == "given" else {"num_classes"} & fields


def test_every_method_has_a_yaml_for_photos_and_one_for_cifar10() -> None:
    found = {(file.parent.name, load(file).method.name, load(file).data.name) for file in FILES}
    labelled = {name for name in plugins.known("method") if needs_labels(name)}
    # A student learns from a network that has learned already: it has a place beside fine-tuning.
    finetuned = labelled | {"distill"}
    others = set(plugins.known("method")) - finetuned
    wanted = {("pretrain", name, data) for name in others for data in ("folder", "cifar10")}
    assert wanted | {("finetune", name, "folder") for name in finetuned} <= found


@each_file
def test_a_config_names_its_paper_and_the_command(file: Path) -> None:
    first, second = file.read_text("utf-8").splitlines()[:2]
    assert re.search(r"arXiv \d{4}\.\d{5}", first)
    command = file.parent.name
    assert second.startswith(f"# ssl-retrieval {command} configs/{command}/{file.name} data.root=")
    assert re.search(r" out=runs/\S+$", second)


@pytest.mark.parametrize("file", PHOTOS, ids=lambda file: file.stem)
def test_a_config_for_any_number_of_photos_follows_it(file: Path) -> None:
    assert "# From learned weights add model.weights=pretrained" in file.read_text("utf-8")
    few, many = settled(file, 2_000), settled(file, 1_280_000)
    assert (few.epochs, many.epochs) == (400, 100)


PAPER = [
    ("simclr", (0.08, 0.8, 0.8, 0.2, 0.5, 0.0), (0.08, 0.8, 0.8, 0.2, 0.5, 0.0)),
    ("byol", (0.08, 0.4, 0.2, 0.1, 1.0, 0.0), (0.08, 0.4, 0.2, 0.1, 0.1, 0.2)),
    ("moco_v2", (0.2, 0.4, 0.4, 0.1, 0.5, 0.0), (0.2, 0.4, 0.4, 0.1, 0.5, 0.0)),
    ("moco_v3", (0.08, 0.4, 0.2, 0.1, 1.0, 0.0), (0.08, 0.4, 0.2, 0.1, 0.1, 0.2)),
    ("moco_v3_resnet50", (0.2, 0.4, 0.2, 0.1, 1.0, 0.0), (0.2, 0.4, 0.2, 0.1, 0.1, 0.2)),
    ("simsiam", (0.2, 0.4, 0.4, 0.1, 0.5, 0.0), (0.2, 0.4, 0.4, 0.1, 0.5, 0.0)),
    ("barlow_twins", (0.08, 0.4, 0.2, 0.1, 1.0, 0.0), (0.08, 0.4, 0.2, 0.1, 0.1, 0.2)),
    ("vicreg", (0.08, 0.4, 0.2, 0.1, 0.5, 0.1), (0.08, 0.4, 0.2, 0.1, 0.5, 0.1)),
    ("swav", (0.14, 0.8, 0.8, 0.2, 0.5, 0.0), (0.14, 0.8, 0.8, 0.2, 0.5, 0.0)),
    ("dino", (0.4, 0.4, 0.2, 0.1, 1.0, 0.0), (0.4, 0.4, 0.2, 0.1, 0.1, 0.2)),
    ("ibot", (0.32, 0.4, 0.2, 0.1, 1.0, 0.0), (0.32, 0.4, 0.2, 0.1, 0.1, 0.2)),
]
"""Least crop, brightness, saturation, hue, blur and solarization of the two large views for photos."""


@pytest.mark.parametrize(("name", "first", "second"), PAPER, ids=[name for name, _, _ in PAPER])
def test_photos_are_augmented_as_in_the_papers(name: str, first: Any, second: Any) -> None:
    views = built(settled(CONFIGS / "pretrain" / f"{name}.yaml", 1_280_000)).views(224)
    for view, wanted in zip(views[:2], (first, second), strict=True):
        assert isinstance(view, View)
        made = view.augment
        assert (made.flip, made.jitter, made.grayscale, made.contrast) == (0.5, 0.8, 0.2, made.brightness)
        assert (made.blur_sigma_min, made.blur_sigma_max) == (0.1, 2.0)
        assert (made.crop_min, made.brightness, made.saturation, made.hue, made.blur, made.solarize) == wanted


def test_a_long_run_warms_up_for_ten_epochs(tmp_path: Path) -> None:
    cfg = dataclasses.replace(load(CONFIGS / "pretrain" / "byol.yaml"), epochs=1000)
    module = plugins.find("method", "byol")
    done = train_setup.settle(cfg, module, 1_280_000, backbones.make("test_resnet"), tmp_path)
    assert done.optimizer.warmup == pytest.approx(10 / 1000)
    assert (done.method.momentum, done.optimizer.lr) == (0.996, 0.2)


@pytest.mark.parametrize("num_images", [2_000, 1_280_000])
@each_file
def test_a_config_builds_its_method_views_and_optimizer(file: Path, num_images: int) -> None:
    cfg = settled(file, num_images)
    assert open_settings(cfg.method) == not_asked_for(cfg.method)
    assert open_settings(cfg.optimizer) <= {"weight_decay_end"}
    method = built(cfg)
    views = method.views(cfg.model.image_size)
    images = [view for view in views if isinstance(view, View)]
    assert images[0].size == cfg.model.image_size
    assert len(images) + sum(isinstance(view, Noise) for view in views) == len(views)
    multiple = backbones.patch_size(method.encoder)
    # A twin is for another network, of a size of its own.
    sizes = [view.size for view in images if view.twin is None]
    assert all(size % multiple == 0 and size <= cfg.model.image_size for size in sizes)
    for view in images:
        view.augment.check()
    optimizer = optim.make(cfg.optimizer, method, cfg.batch_size)
    optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert optimized == {id(parameter) for parameter in method.parameters() if parameter.requires_grad}


@pytest.mark.parametrize("file", sorted((CONFIGS / "compare").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_comparison_loads_and_opens_with_its_command(file: Path) -> None:
    cfg = config.load(CompareConfig, file, ["data.root=photos", "out=runs/one", *NAMED.get(file.stem, [])])
    known = list(cfg.models)
    for name, recipe in cfg.derived.items():
        recipe.check(name, known)
        known.append(name)
    assert len(known) >= 3
    comment = "".join(line for line in file.read_text("utf-8").splitlines() if line.startswith("#"))
    assert f"ssl-retrieval compare configs/compare/{file.name}" in comment
