"""Which places a network has, and which resolutions are tried."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from short_runs import go, write_job, write_many_sizes

from ssl_retrieval import checkpoint
from ssl_retrieval.errors import UserError
from ssl_retrieval.extractors import checkpoint as trained
from ssl_retrieval.extractors import color_histogram, timm_model
from ssl_retrieval.sweep import AXES
from ssl_retrieval.sweep_points import check_axes, image_size_of, places, sizes


def labels(model: Any, axes: tuple[str, ...] = AXES, **options: Any) -> list[str]:
    return [
        place.label for place in places(model, axes, options.get("poolings", []), options.get("layers", []))
    ]


def runs(folder: Path, **method: Any) -> Path:
    go(write_job(folder, write_many_sizes(folder / "photos"), method=method), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def byol(tmp_path_factory: pytest.TempPathFactory) -> trained.Config:
    folder = tmp_path_factory.mktemp("byol")
    return trained.Config(path=str(runs(folder, name="byol", hidden_dim=24, output_dim=12, momentum=0.5)))


@pytest.fixture(scope="module")
def sscd(tmp_path_factory: pytest.TempPathFactory) -> trained.Config:
    return trained.Config(path=str(runs(tmp_path_factory.mktemp("sscd"), name="sscd", dim=12)))


def test_a_network_whose_last_map_is_a_layers_has_earlier_ones() -> None:
    model = timm_model.Config(name="resnet18", weights="random")
    assert labels(model) == [
        "default",
        "avg",
        "gem",
        *(f"layer -{number} {pool}" for number in (2, 3, 4) for pool in ("avg", "gem")),
    ]


def test_a_network_with_a_convolution_behind_its_layers_has_the_last_one_too() -> None:
    model = timm_model.Config(name="tf_efficientnet_lite0", weights="random")
    assert [label for label in labels(model, poolings=["gem"]) if "layer" in label] == [
        f"layer -{number} gem" for number in (1, 2, 3)
    ]


def test_a_vit_has_its_class_token() -> None:
    found = labels(timm_model.Config(name="vit_tiny_patch16_224", weights="random"))
    assert {"cls", "layer -2 cls"} <= set(found)


def test_a_place_is_not_tried_twice() -> None:
    model = timm_model.Config(name="resnet18", weights="random", pool="gem")
    assert labels(model, ("pooling",)) == ["default", "avg"]


def test_axes_and_lists_choose() -> None:
    model = timm_model.Config(name="resnet18", weights="random")
    assert labels(model, ()) == ["default"]
    assert labels(model, ("layer",), poolings=["mac"], layers=["1", "layer3"]) == [
        "default",
        "layer 1 mac",
        "layer layer3 mac",
    ]


def test_what_is_no_network_has_one_place_and_no_resolution() -> None:
    model = color_histogram.Config()
    assert (labels(model), image_size_of(model), sizes(model, [64])) == (["default"], None, [])


def test_a_run_has_its_teacher_and_both_projectors(byol: trained.Config) -> None:
    axes = ("network", "projector")
    assert labels(byol, axes) == [
        "default",
        "projector.1",
        "projector.2",
        "teacher",
        "teacher projector.1",
        "teacher projector.2",
    ]
    assert labels(byol, ("projector",)) == ["default", "projector.1", "projector.2"]
    assert labels(byol, ("network",)) == ["default", "teacher"]
    by_label = {place.label: place.model for place in places(byol, axes, [], [])}
    assert by_label["teacher projector.1"] == replace(byol, network="teacher", point="projector.1")


def test_a_checkpoint_alone_has_no_projector(byol: trained.Config) -> None:
    alone = replace(byol, path=str(Path(byol.path) / "checkpoint.safetensors"))
    assert labels(alone, ("network", "projector")) == ["default"]


def test_a_trained_head_can_be_left_out(sscd: trained.Config) -> None:
    assert checkpoint.read_card(Path(sscd.path) / "checkpoint.safetensors").head
    assert labels(sscd, ("pooling",)) == ["default", "model", "avg", "gem"]


def test_places_can_be_made(byol: trained.Config) -> None:
    found = places(byol, AXES, [], [])
    assert len(found) > 8
    for place in found:
        assert trained.Extractor(place.model).dim > 0


@pytest.mark.parametrize(
    ("name", "size", "wanted", "expected"),
    [
        ("resnet18", 128, [], [96, 160, 224]),
        ("resnet18", 32, [], [24, 40, 56]),
        ("resnet18", 224, [], [160, 288, 384]),
        ("vit_tiny_patch16_224", 224, [], [160, 288, 384]),
        ("vit_small_patch14_dinov2", 518, [], [392, 644, 910]),
        ("resnet18", 128, [64, 128, 64, 256], [64, 256]),
    ],
)
def test_resolutions_fit_the_network(name: str, size: int, wanted: list[int], expected: list[int]) -> None:
    assert sizes(timm_model.Config(name=name, weights="random", image_size=size), wanted) == expected


def test_the_own_resolution_is_known_without_weights(byol: trained.Config) -> None:
    assert image_size_of(timm_model.Config(name="resnet18", weights="random")) == 224
    assert image_size_of(byol) == 32
    assert image_size_of(replace(byol, image_size=64)) == 64


def test_an_unknown_axis_is_named() -> None:
    with pytest.raises(UserError, match="no axis 'colour': use some of network"):
        check_axes(["pooling", "colour"], AXES)
