"""What is taken from a network: any layer, any pooling, tokens, several sizes, the mirror image."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from made_up_photos import photo
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from ssl_retrieval import (
    backbones,
    checkpoint,
    config,
    layers,
    learning,
    multi_scale,
    pooling,
    regions,
    tokens,
)
from ssl_retrieval.errors import UserError
from ssl_retrieval.extractors import checkpoint as trained
from ssl_retrieval.extractors import timm_model
from ssl_retrieval.extractors.base import PooledNetwork
from ssl_retrieval.network_input import InputSpec
from ssl_retrieval.representation import Representation
from ssl_retrieval.types import ImageSet

SIDE = 64


def extractor_of(name: str, **options: Any) -> timm_model.Extractor:
    given: dict[str, Any] = {"name": name, "weights": "random", "image_size": SIDE}
    cfg = timm_model.Config(**given | options)
    return timm_model.Extractor(cfg).eval()


def photos(count: int = 3, side: int = SIDE) -> torch.Tensor:
    """uint8 [count, 3, side, side]."""
    made = [photo((60 * i + 30, 90, 160), seed=i, size=(side, side)) for i in range(count)]
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in made])


def embedded(extractor: PooledNetwork, batch: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        vectors: torch.Tensor = extractor(batch)
    assert vectors.shape == (len(batch), extractor.dim)
    assert torch.isfinite(vectors).all()
    return vectors


def unit(vectors: torch.Tensor) -> torch.Tensor:
    return vectors / vectors.norm(dim=1, keepdim=True)


def user_error(call: Any, *arguments: Any, **more: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments, **more)
    text = str(caught.value)
    assert "\n" not in text
    return text


def unsettled(network: nn.Module) -> nn.Module:
    """Give batch normalisation something to do, as training would."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(torch.randn(len(module.running_mean), generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(len(module.running_var), generator=generator) + 0.5)
    return network


def pooled_network(network: nn.Module, **options: Any) -> PooledNetwork:
    spec = InputSpec(SIDE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return PooledNetwork(network, spec, timm_model.Config(**options)).eval()


# Layers

NETWORKS = ("resnet10t", "test_efficientnet", "test_convnext", "mobilenetv3_small_050", "regnetx_002")


@pytest.mark.parametrize("name", NETWORKS)
def test_a_layer_by_index_is_what_timm_calls_so(name: str) -> None:
    network = unsettled(backbones.make(name, seed=1))
    theirs = timm.create_model(name, features_only=True)
    # The wrapper renames layers, but keeps their order.
    theirs.load_state_dict(dict(zip(theirs.state_dict(), network.state_dict().values(), strict=False)))
    num_layers = len(layers.feature_layers(network))
    batch = photos()
    for index in (0, 1, num_layers - 2, -1):
        extractor = pooled_network(backbones_copy(name, network), pool="mac", layer=str(index))
        with torch.inference_mode():
            expected = pooling.mac(theirs.eval()(extractor.normalize(batch))[index])
        found = embedded(extractor, batch)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def backbones_copy(name: str, network: nn.Module) -> nn.Module:
    copy = backbones.make(name)
    copy.load_state_dict(network.state_dict())
    return copy


@pytest.mark.parametrize("name", ["test_vit", "test_vit2"])
def test_a_vits_layer_by_index_is_what_timm_calls_so(name: str) -> None:
    network: Any = backbones.make(name, image_size=SIDE, seed=1)
    batch = photos()
    for index in (0, 2, -2):
        extractor = extractor_of(name, pool="rmac", layer=str(index), seed=1)
        images = extractor.normalize(batch)
        with torch.inference_mode():
            maps = network.forward_intermediates(images, indices=[index], intermediates_only=True)[0]
        assert maps.shape == (3, 64, 4, 4)
        torch.testing.assert_close(embedded(extractor, batch), regions.rmac(maps))


@pytest.mark.parametrize("name", ["pit_ti_224", "xcit_nano_12_p16_224", "twins_svt_small"])
def test_networks_whose_modules_give_no_map_can_be_asked(name: str) -> None:
    side = 224 if name.startswith("twins") else SIDE
    extractor = extractor_of(name, pool="rmac", layer="-2", image_size=side)
    network: Any = extractor.model
    images = extractor.normalize(photos(side=side))
    with torch.inference_mode():
        maps = network.forward_intermediates(images, indices=[-2], intermediates_only=True)[0]
    torch.testing.assert_close(embedded(extractor, images), regions.rmac(maps))


def test_networks_that_end_in_several_maps() -> None:
    assert "ends in several maps" in user_error(extractor_of, "efficientvim_m1", pool="avg")
    assert extractor_of("efficientvim_m1", pool="model").dim > 0


def test_a_layer_by_name() -> None:
    batch = photos()
    for name, index, layer in (("resnet10t", "3", "layer3"), ("test_vit", "4", "blocks.4")):
        by_index, by_name = (extractor_of(name, pool="avg", layer=which) for which in (index, layer))
        assert torch.equal(embedded(by_index, batch), embedded(by_name, batch))
    fc = extractor_of("mobilenetv3_small_050", pool="avg", layer="conv_head")
    assert fc.dim == 1024, "what comes after the network's own pooling is a map of one cell"


@pytest.mark.parametrize(
    "layer", ["conv1", "conv1.0", "bn1", "act1", "layer2.0.conv1", "layer2.0.bn1", "layer2.0"]
)
def test_a_layer_gives_what_it_gave_before_normalisation_was_folded(layer: str) -> None:
    network = unsettled(backbones.make("resnet10t", seed=1))
    seen: list[torch.Tensor] = []
    copy = backbones_copy("resnet10t", network)
    copy.get_submodule(layer).register_forward_hook(lambda _, __, output: seen.append(output.clone()))
    extractor = pooled_network(network, pool="avg", layer=layer)
    found = embedded(extractor, photos())
    with torch.inference_mode():
        copy(extractor.normalize(photos()))
    expected = pooling.avg(seen[0])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_the_rest_of_the_network_is_not_run() -> None:
    extractor = extractor_of("resnet10t", pool="avg", layer="layer2")
    late = extractor.model.get_submodule("layer3")
    late.register_forward_hook(lambda *_: pytest.fail("it ran"))
    embedded(extractor, photos())


@pytest.mark.parametrize(
    ("name", "layer", "needed"),
    [
        (
            "resnet10t",
            "layer9",
            ("'resnet10t' has no such layer; did you mean 'layer4'", "(feature layers: 0 = "),
        ),
        ("resnet10t", "5", ("model.layer='5': ", "3 = layer3, 4 = layer4)")),
        ("resnet10t", "-6", ("model.layer='-6': ", "4 = layer4)")),
        ("test_vit", "blocks.9", ("did you mean", "'blocks.5'", "0 = blocks.0")),
        ("test_vit", "blocks.0.attn.q", ("did you mean 'blocks.0.attn",)),
        ("test_vit", "patch_drop.x", ("did you mean 'patch_drop'",)),
        ("pit_ti_224", "transformers.1", ("this layer of 'pit_ti_224' gives no map of an image",)),
    ],
)
def test_a_layer_that_is_none_names_those_that_are(name: str, layer: str, needed: tuple[str, ...]) -> None:
    text = user_error(extractor_of, name, pool="avg", layer=layer)
    assert all(part in text for part in needed), text


def test_a_module_that_takes_no_part_is_no_layer() -> None:
    network = backbones.make("resnet10t")
    network.spare = nn.Identity()
    assert "gives no map of an image" in user_error(pooled_network, network, pool="avg", layer="spare")


def test_the_end_of_a_network_is_no_layer() -> None:
    for pool in ("model", "fc", "avg+model"):
        text = user_error(extractor_of, "resnet10t", pool=pool, layer="2")
        assert "leave out model.layer" in text


# Poolings of the last map


@pytest.mark.parametrize("name", ["resnet10t", "test_vit", "swin_tiny_patch4_window7_224"])
@pytest.mark.parametrize("pool", sorted(pooling.POOLINGS))
def test_the_last_map_is_pooled(name: str, pool: str) -> None:
    extractor = extractor_of(name, pool=pool)
    batch = photos()
    with torch.inference_mode():
        features: Any = extractor.model.forward_features(extractor.normalize(batch))  # type: ignore[operator]
    if features.ndim == 3:
        # The patches, one by one, are rows of the image.
        features = torch.stack([features[:, 1:][:, 4 * row : 4 * row + 4] for row in range(4)], dim=1)
    if features.shape[1] == features.shape[2]:
        features = features.permute(0, 3, 1, 2)
    torch.testing.assert_close(embedded(extractor, batch), pooling.POOLINGS[pool](features))


def test_the_exponent_of_gem_counts() -> None:
    extractor = extractor_of("resnet10t", pool="gem", gem_p=5.0)
    with torch.inference_mode():
        features: Any = extractor.model.forward_features(extractor.normalize(photos()))  # type: ignore[operator]
    torch.testing.assert_close(embedded(extractor, photos()), pooling.gem(features, 5.0))
    for wrong in (0.0, -1.0, 11.0, float("nan")):
        assert "model.gem_p" in user_error(extractor_of, "resnet10t", pool="gem", gem_p=wrong)


def test_class_token_patches_and_both() -> None:
    extractor = extractor_of("test_vit", pool="cls+gem", gem_p=4.0)
    with torch.inference_mode():
        features: Any = extractor.model.forward_features(extractor.normalize(photos()))  # type: ignore[operator]
    patches = features[:, 1:].clamp(min=1e-6).pow(4).mean(dim=1).pow(1 / 4)
    expected = torch.cat([unit(features[:, 0]), unit(patches)], dim=1)
    torch.testing.assert_close(embedded(extractor, photos()), expected)
    plain = extractor_of("test_vit", pool="cls")
    assert torch.equal(embedded(plain, photos()), features[:, 0])
    mean = extractor_of("test_vit", pool="mean")
    torch.testing.assert_close(embedded(mean, photos()), features[:, 1:].mean(dim=1))


def test_the_class_token_of_an_early_layer() -> None:
    network: Any = backbones.make("test_vit", image_size=SIDE)
    extractor = extractor_of("test_vit", pool="cls", layer="1")
    with torch.inference_mode():
        (_, prefix), *_ = network.forward_intermediates(
            extractor.normalize(photos()), indices=[1], intermediates_only=True, return_prefix_tokens=True
        )
    torch.testing.assert_close(embedded(extractor, photos()), prefix[:, 0])


@pytest.mark.parametrize(("name", "layer"), [("resnet10t", ""), ("test_vit2", ""), ("cait_xxs24_224", "-1")])
def test_where_there_is_no_class_token(name: str, layer: str) -> None:
    # test_vit2 has a register token in its place; CaiT adds its own after the layers that see patches.
    assert "no class token here" in user_error(extractor_of, name, layer=layer, pool="cls")


def test_tokens_without_prefix_and_without_grid() -> None:
    network: Any = backbones.make("cait_xxs24_224", image_size=SIDE)
    images = torch.rand(2, 3, SIDE, SIDE)
    with torch.inference_mode():
        last = network.forward_features(images)
    assert tokens.arrange(last, network, images).prefix.shape == (2, 1, 192)
    assert tokens.arrange(last[:, 1:], network, images).maps.shape == (2, 192, 4, 4)
    # A network that knows nothing of its patches: squares are taken for grids.
    other = nn.Identity()
    other.num_prefix_tokens = 1  # type: ignore[assignment]
    for num, num_prefix, side in ((17, 1, 4), (16, 0, 4), (10, 1, 3), (1, 0, 1)):
        found = tokens.arrange(torch.rand(2, num, 5), other, images)
        assert (found.prefix.shape[1], found.maps.shape[2:]) == (num_prefix, (side, side))
    assert tokens.arrange(last[:, :8], network, images).maps.shape == (2, 192, 7, 1)


def test_parts_are_scaled_before_they_are_joined() -> None:
    names = ("model", "avg", "mac", "scda")
    extractor = extractor_of("resnet10t", pool=" + ".join(names))
    parts = [unit(embedded(extractor_of("resnet10t", pool=name), photos())) for name in names]
    torch.testing.assert_close(embedded(extractor, photos()), torch.cat(parts, dim=1))


def test_an_unknown_pooling_is_refused_before_weights_are_sought() -> None:
    text = user_error(extractor_of, "resnet10t", pool="gme", weights="pretrained")
    assert "model.pool='gme': use one of" in text


def test_a_black_image() -> None:
    for pool in ("+".join(sorted(pooling.POOLINGS)), "fc"):
        extractor = extractor_of("resnet10t", pool=pool, flip=True, scales=[1.0, 0.5])
        embedded(extractor, torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8))


# Fully connected layers


def test_fc_is_the_hidden_layer_where_there_is_one() -> None:
    fc, own, average = (extractor_of("mobilenetv3_small_050", pool=pool) for pool in ("fc", "model", "avg"))
    assert (fc.dim, average.dim) == (1024, 288)
    assert torch.equal(embedded(fc, photos()), embedded(own, photos()))
    assert fc.weights_digest == own.weights_digest


def test_fc_is_the_classifier_where_there_is_no_hidden_layer() -> None:
    extractor = extractor_of("tf_efficientnet_lite0", pool="fc", weights="offline")
    network = timm.create_model("tf_efficientnet_lite0")
    own = backbones.make("tf_efficientnet_lite0", "offline", classifier=True)
    network.load_state_dict(own.state_dict())
    with torch.inference_mode():
        expected = network.eval()(extractor.normalize(photos()))
    assert extractor.dim == 1000
    torch.testing.assert_close(embedded(extractor, photos()), expected, rtol=1e-3, atol=1e-3)


def test_the_classifier_of_a_file(tmp_path: Path) -> None:
    network = timm.create_model("resnet10t")
    save_file(network.state_dict(), tmp_path / "whole.safetensors")
    extractor = extractor_of("resnet10t", pool="fc", weights=str(tmp_path / "whole.safetensors"))
    with torch.inference_mode():
        expected = network.eval()(extractor.normalize(photos()))
    torch.testing.assert_close(embedded(extractor, photos()), expected, rtol=1e-3, atol=1e-4)
    assert extractor.family == "off-the-shelf"


@pytest.mark.parametrize("num_classes", [0, 10])
def test_a_file_without_its_classifier(tmp_path: Path, num_classes: int) -> None:
    network = timm.create_model("resnet10t", num_classes=num_classes)
    save_file(network.state_dict(), tmp_path / "body.safetensors")
    file = str(tmp_path / "body.safetensors")
    text = user_error(extractor_of, "resnet10t", pool="avg+fc", weights=file)
    assert "fc.weight" in text
    assert "a classifier of 1000 classes" in text
    assert extractor_of("resnet10t", pool="avg", weights=file).dim == 512


def test_weights_that_never_had_a_classifier() -> None:
    text = user_error(extractor_of, "vit_small_patch16_224.dino", pool="fc")
    assert "neither a hidden fully connected layer nor a classifier" in text


def test_wrong_files_are_one_line_under_every_pooling(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(backbones.make("resnet10t").state_dict(), file)
    (tmp_path / "broken.pth").write_bytes(b"nothing")
    for pool in ("avg", "fc", "cls+gem"):
        text = user_error(extractor_of, "test_vit", pool=pool, weights=str(file))
        assert "weights do not fit 'test_vit'" in text
        text = user_error(extractor_of, "test_vit", pool=pool, weights=str(tmp_path / "broken.pth"))
        assert "no readable weights" in text
        text = user_error(extractor_of, "test_vit", pool=pool, weights="nowhere.pth")
        assert "neither random, pretrained" in text


# Several sizes, mirror images


@pytest.mark.parametrize(
    ("pool", "power"), [("gem", 3.0), ("mac", 1.0), ("rmac", 1.0), ("avg+gem", 1.0), ("model", 1.0)]
)
def test_several_sizes_by_hand(pool: str, power: float) -> None:
    scales = [1.0, 0.7071, 0.5]
    extractor = extractor_of("resnet10t", pool=pool, scales=scales)
    single = extractor_of("resnet10t", pool=pool)
    images = extractor.normalize(photos())
    total = torch.zeros(3, extractor.dim)
    for scale in scales:
        side = round(SIDE * scale)
        smaller = functional.interpolate(images, (side, side), mode="bilinear", align_corners=False)
        total += unit(embedded(single, images if scale == 1 else smaller)) ** power
    expected = unit((total / 3) ** (1 / power))
    found = embedded(extractor, photos())
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))


def test_several_sizes_of_a_vit_are_whole_patches() -> None:
    extractor = extractor_of("test_vit", pool="cls+gem", scales=[1.0, 0.7071, 0.5, 0.01], image_size=96)
    assert extractor.sides == [96, 64, 48, 16]
    batch = photos(side=96)
    alone = extractor_of("test_vit", pool="cls+gem", scales=[0.5], image_size=96)
    images = extractor.normalize(batch)
    smaller = functional.interpolate(images, (48, 48), mode="bilinear", align_corners=False)
    network: Any = backbones.make("test_vit", image_size=96, dynamic_size=True)
    with torch.inference_mode():
        features = network.forward_features(smaller)
    patches = pooling.gem(features[:, 1:].mT[..., None])
    expected = unit(torch.cat([unit(features[:, 0]), unit(patches)], dim=1))
    torch.testing.assert_close(embedded(alone, batch), expected)
    embedded(extractor, batch)


def test_one_size_that_is_not_the_networks_own() -> None:
    assert extractor_of("resnet10t", pool="avg", scales=[0.5]).sides == [32]
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            embedded(extractor_of("resnet10t", pool="avg", scales=[0.5]), photos()),
            unit(embedded(extractor_of("resnet10t", pool="avg"), photos())),
        )


@pytest.mark.parametrize("scales", [[], [0.0], [1.0, -1.0], [5.0], [float("nan")]])
def test_scales_that_mean_nothing(scales: list[float]) -> None:
    assert "model.scales=" in user_error(extractor_of, "resnet10t", scales=scales)


def test_networks_of_one_size_say_so() -> None:
    text = user_error(extractor_of, "cait_xxs24_224", scales=[1.0, 0.5])
    assert "images of one size only" in text
    assert "model.scales=[1.0]" in text
    text = user_error(extractor_of, "test_convnext", scales=[1.0, 0.05])
    assert "cannot take inputs of one of 64, 3 px" in text


def test_each_vector_is_scaled_by_itself() -> None:
    views = [torch.randn(4, 5), torch.randn(4, 5) * 100]
    together = multi_scale.merged(views)
    for row in range(4):
        expected = sum(view[row] / view[row].norm() for view in views)
        assert isinstance(expected, torch.Tensor)
        torch.testing.assert_close(together[row], expected / expected.norm())
    assert not multi_scale.merged([torch.zeros(2, 3), torch.zeros(2, 3)]).any()


@pytest.mark.parametrize("options", [{}, {"scales": [1.0, 0.5]}])
@pytest.mark.parametrize(("name", "pool"), [("resnet10t", "gem"), ("test_vit", "cls+mean")])
def test_an_image_and_its_mirror_image_are_one(name: str, pool: str, options: dict[str, Any]) -> None:
    extractor = extractor_of(name, pool=pool, flip=True, **options)
    torch.testing.assert_close(embedded(extractor, photos().flip(3)), embedded(extractor, photos()))
    single = extractor_of(name, pool=pool, **options)
    one, other = (unit(embedded(single, batch)) for batch in (photos(), photos().flip(3)))
    assert not torch.allclose(one, other, atol=1e-4)
    torch.testing.assert_close(embedded(extractor, photos()), unit(one + other))


EVERYTHING: list[dict[str, Any]] = [
    {"name": "resnet10t", "pool": "+".join(sorted(pooling.POOLINGS)), "scales": [1.0, 0.5], "flip": True},
    {"name": "resnet10t", "pool": "rmac+scda", "layer": "-2"},
    {"name": "test_vit", "pool": "cls+gem", "scales": [1.0, 0.75]},
    {"name": "test_vit", "pool": "crow", "layer": "blocks.2", "flip": True},
    {"name": "mobilenetv3_small_050", "pool": "fc+avg"},
]


@pytest.mark.parametrize("options", EVERYTHING)
def test_batches_and_layouts_do_not_matter(options: dict[str, Any]) -> None:
    extractor = extractor_of(**options)
    batch = photos(4)
    together = embedded(extractor, batch)
    alone = torch.cat([embedded(extractor, image[None]) for image in batch])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    extractor.to(memory_format=torch.channels_last)
    laid_out = embedded(extractor, batch.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(laid_out, together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", ["avg", "gem", "rmac", "cls+gem"])
def test_half_precision_pools_in_full(pool: str) -> None:
    extractor = extractor_of("test_vit", pool=pool)
    full = embedded(extractor, photos())
    with torch.autocast("cpu", torch.bfloat16):
        half = embedded(extractor, photos())
    assert half.dtype == torch.float32
    assert functional.cosine_similarity(half, full).min() > 0.999
    assert not torch.equal(half, half.bfloat16().float()), "rounded after pooling"


# Region whitening


@pytest.fixture
def image_set(tmp_path: Path) -> ImageSet:
    names = [f"{i}.png" for i in range(12)]
    for i, name in enumerate(names):
        photo((20 * i, 90, 250 - 20 * i), seed=i, size=(70, 50)).save(tmp_path / name)
    return ImageSet(tmp_path, tuple(names))


def whitening(**options: Any) -> Representation:
    given: dict[str, Any] = {"name": "test_efficientnet", "weights": "random", "image_size": 96}
    cfg = timm_model.Config(**given | {"pool": "rmac", "rmac_whiten": True} | options)
    return Representation.make("rmac", cfg, torch.device("cpu"))


def taught(image_set: ImageSet, file: Path, **options: Any) -> PooledNetwork:
    representation = whitening(**options)
    learning.teach(representation, image_set, file, image_size=None, on_error="fail")
    extractor = representation.extractor
    assert isinstance(extractor, PooledNetwork)
    return extractor


def test_regions_are_whitened_by_what_was_learned(image_set: ImageSet, tmp_path: Path) -> None:
    extractor = taught(image_set, tmp_path / "learned.safetensors")
    plain = extractor_of("test_efficientnet", pool="avg", image_size=96)
    images = [Image.open(image_set.file(i)).convert("RGB") for i in range(12)]
    batch = torch.stack([extractor.preprocess(image) for image in images])
    with torch.inference_mode():
        maps: Any = plain.model.forward_features(plain.normalize(batch))  # type: ignore[operator]
    found = regions.vectors(maps).double().numpy()
    with torch.no_grad():
        material = extractor.material(images[3])
    torch.testing.assert_close(material.double(), torch.from_numpy(found[3]), rtol=0, atol=1e-5)
    rows = found.reshape(-1, found.shape[2])
    mean = rows.mean(axis=0)
    values, directions = np.linalg.eigh(np.cov(rows.T))
    # Only what the two computations must agree on: the directions that stand clear of rounding.
    kept = min(extractor.dim, 20)
    whitened = (found - mean) @ directions[:, ::-1][:, :kept] / np.sqrt(values[::-1][:kept])
    assert extractor.whitening is not None
    ours = extractor.whitening.matrix.double().numpy()[:kept] @ (found - mean).transpose(0, 2, 1)
    np.testing.assert_allclose(np.abs(ours.transpose(0, 2, 1)), np.abs(whitened), rtol=0.02, atol=0.02)
    by_hand = extractor.whitening(torch.from_numpy(found).float()).sum(dim=1)
    assert functional.cosine_similarity(embedded(extractor, batch), by_hand).min() > 0.999


def test_what_was_learned_is_part_of_the_identity(image_set: ImageSet, tmp_path: Path) -> None:
    file = tmp_path / "learned.safetensors"
    first, again = taught(image_set, file), taught(image_set, file)
    assert first.learns
    assert first.weights_digest == again.weights_digest != first.network_digest
    assert torch.equal(embedded(first, photos(side=96)), embedded(again, photos(side=96)))
    fewer = taught(image_set.take(np.arange(4, dtype=np.int64)), tmp_path / "fewer.safetensors")
    assert fewer.weights_digest != first.weights_digest
    assert fewer.dim == 4 * 14 - 1 < first.dim, "regions of few images span few dimensions"
    other = taught(image_set, file, seed=1)
    assert other.weights_digest != first.weights_digest
    joined = taught(image_set, tmp_path / "joined.safetensors", pool="avg+rmac", scales=[1.0, 0.5], flip=True)
    assert embedded(joined, photos(side=96)).shape[1] == joined.dim > 256


def test_nothing_is_embedded_before_it_has_learned() -> None:
    extractor = whitening().extractor
    assert extractor.dim == 0
    with pytest.raises(AssertionError, match="learn first"):
        extractor(photos(side=96))
    assert not extractor_of("resnet10t", pool="rmac").learns


def test_regions_that_do_not_differ_teach_nothing() -> None:
    representation = whitening()
    with torch.no_grad():
        same = representation.extractor.material(Image.new("RGB", (40, 40), (90, 90, 90)))[:1]
    assert "do not differ" in user_error(representation.extractor.learn, [same, same])


def test_whitening_needs_regions() -> None:
    text = user_error(extractor_of, "resnet10t", pool="mac", rmac_whiten=True)
    assert "model.rmac_whiten needs rmac" in text


# Configs and checkpoints


def test_both_extractors_have_the_options_in_their_configs() -> None:
    section = {"name": "resnet10t", "pool": "rmac", "layer": -2, "scales": [1, 0.5], "flip": True}
    cfg = config.plugin_config("extractor", section, "model")
    assert isinstance(cfg, timm_model.Config)
    assert (cfg.layer, cfg.scales, cfg.flip, cfg.gem_p) == ("-2", [1.0, 0.5], True, 3.0)
    options = {field.name for field in dataclasses.fields(cfg)}
    assert {field.name for field in dataclasses.fields(trained.Config)} - options == {
        "path",
        "network",
        "point",
    }
    for schema in (timm_model.Config, trained.Config):
        assert dataclasses.fields(schema)[0].name == "name"
    text = user_error(config.plugin_config, "extractor", section | {"scale": [1]}, "model")
    assert "did you mean 'model.scales'" in text


def saved(name: str, folder: Path) -> Path:
    spec = InputSpec(SIDE, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    network = backbones.make(name, image_size=SIDE, seed=3)
    card = checkpoint.Card(name, "standard", spec.to_dict())
    checkpoint.save(network, card, folder / "checkpoint.safetensors")
    return folder


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_vit", {"pool": "cls+gem", "scales": [1.0, 0.5], "flip": True}),
        ("test_vit", {"pool": "mean", "layer": "-3"}),
        ("resnet10t", {"pool": "scda", "layer": "layer3"}),
    ],
)
def test_a_checkpoint_takes_the_same_options(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    ours = trained.Extractor(trained.Config(path=str(saved(name, tmp_path)), **options)).eval()
    network = backbones.make(name, image_size=SIDE, seed=3, dynamic_size="scales" in options)
    same = pooled_network(network, **options)
    batch = same.normalize(photos())
    assert torch.equal(embedded(ours, batch), embedded(same, batch))


def test_a_checkpoint_has_no_classifier(tmp_path: Path) -> None:
    cfg = trained.Config(path=str(saved("resnet10t", tmp_path)), pool="fc")
    assert "nor a classifier" in user_error(trained.Extractor, cfg)
