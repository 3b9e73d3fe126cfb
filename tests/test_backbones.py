"""Where weights come from, what is frozen, and that a checkpoint gives the network back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_photos import photo
from safetensors.torch import save_file
from timm.layers.drop import DropPath
from torch import nn

from ssl_retrieval import backbones, checkpoint, tokens
from ssl_retrieval.errors import UserError
from ssl_retrieval.network_input import InputSpec

SPEC = InputSpec(32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), crop=0.875)
NAMES = {
    "resnet10t": 64,
    "tf_efficientnet_lite0": 64,
    "mobilenetv3_small_050": 64,
    "vit_tiny_patch16_224": 32,
    "convnext_atto": 64,
}


def images(side: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def last_map(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    features: Any = model.forward_features(batch)  # type: ignore[operator]
    return tokens.arrange(features, model, batch).maps


def same(first: nn.Module, second: nn.Module) -> bool:
    return backbones.weights_digest(first) == backbones.weights_digest(second)


def user_error(call: Any, *arguments: Any, **more: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments, **more)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_random_weights_follow_the_seed_and_nothing_else() -> None:
    torch.manual_seed(1)
    first = backbones.make("resnet10t", seed=3)
    state = torch.get_rng_state()
    torch.rand(7)
    second = backbones.make("resnet10t", seed=3)
    assert same(first, second)
    assert not same(first, backbones.make("resnet10t", seed=4))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state()), "the caller's random state is left alone"


@pytest.mark.parametrize(("name", "side"), NAMES.items())
def test_dimensions_and_maps(name: str, side: int) -> None:
    model = backbones.make(name, image_size=side)
    assert not model.training
    with torch.inference_mode():
        pooled = backbones.own_pooling(model, images(side))
        maps = last_map(model, images(side))
    assert pooled.shape == (2, backbones.feature_dim(model))
    assert maps.ndim == 4
    assert maps.shape[0] == 2
    if name.startswith("vit"):
        assert maps.shape == (2, 192, 2, 2), "four patches without the class token"


def rule(side: int, own: int) -> int | None:
    """The choice in the plainest words; None = no patch fits."""
    if side % own == 0 and side // own >= 7:
        return own
    fitting = [patch for patch in (4, 8, 14, 16) if side % patch == 0]
    return max((patch for patch in fitting if side // patch >= 7), default=min(fitting, default=None))


def test_small_images_get_small_patches() -> None:
    for side in range(1, 260):
        for name, own in (("test_vit", 16), ("vit_small_patch14_dinov2", 14), ("vit_tiny_patch16_224", 16)):
            wanted = rule(side, own)
            if wanted is None:
                assert "no multiple of 4 px" in user_error(backbones.choose_patch, None, side, name)
                continue
            chosen, reason = backbones.choose_patch(None, side, name)
            assert chosen == wanted, (side, own)
            assert (f"own {own} px" in reason) == (chosen != own)


@pytest.mark.parametrize(
    ("side", "patch", "words"),
    [
        (32, 4, "the network's own 16 px would leave 2 × 2 patches of 32 px"),
        (224, 16, "the network's own, 14 × 14 patches"),
        (100, 4, "100 px are no multiple of the network's own 16 px"),
    ],
)
def test_the_patch_is_chosen_for_a_reason_and_can_be_built(side: int, patch: int, words: str) -> None:
    assert backbones.choose_patch(None, side, "test_vit") == (patch, words)
    model = backbones.make("test_vit", image_size=side, patch_size=patch)
    assert backbones.patch_size(model) == patch
    with torch.inference_mode():
        assert last_map(model, images(side)).shape[2:] == (side // patch, side // patch)


def test_the_patch_that_was_asked_for_or_learned_is_kept() -> None:
    assert backbones.choose_patch(8, 32, "test_vit") == (8, "set in the config")
    chosen = backbones.choose_patch(None, 32, "test_vit", "pretrained")
    assert chosen == (16, "the weights were learned with it")
    assert backbones.choose_patch(None, 32, "resnet18") == (None, "resnet18 has no patches")
    # Swin's patches are merged on the way: they are no tokens of the last map, and timm sets windows by them.
    assert backbones.choose_patch(None, 224, "swin_tiny_patch4_window7_224")[0] is None


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        ((16, 40, "test_vit"), "set model.image_size=32 or 48, or model.patch_size=4 or 8"),
        ((16, 8, "test_vit"), "set model.image_size=16, or model.patch_size=4 or 8"),
        ((None, 30, "test_vit"), "set model.image_size=28 or 32"),
        ((None, 40, "test_vit", "pretrained"), "no multiple of 16 px, the patches of 'test_vit'"),
        ((4, 32, "resnet18"), "model.patch_size=4: 'resnet18' has no patch size to set"),
        ((0, 32, "test_vit"), "model.patch_size=0: must be at least 1"),
    ],
)
def test_patches_that_are_impossible(arguments: tuple[Any, ...], needed: str) -> None:
    assert needed in user_error(backbones.choose_patch, *arguments)
    patch, side, name, *weights = arguments
    if patch is not None and not weights:
        assert needed in user_error(backbones.make, name, image_size=side, patch_size=patch)


def test_a_network_tells_its_patch_size() -> None:
    assert backbones.patch_size(backbones.make("test_vit")) == 16
    for name in ("resnet10t", "convnext_atto", "test_efficientnet"):
        assert backbones.patch_size(backbones.make(name)) == 1


def test_a_vit_takes_several_sizes_only_where_asked() -> None:
    model = backbones.make("vit_tiny_patch16_224", image_size=64, patch_size=8, dynamic_size=True, seed=2)
    fixed = backbones.make("vit_tiny_patch16_224", image_size=64, patch_size=8, seed=2)
    assert same(model, fixed)
    with torch.inference_mode():
        assert torch.equal(backbones.own_pooling(model, images(64)), backbones.own_pooling(fixed, images(64)))
        assert backbones.own_pooling(model, images(24)).shape == (2, 192)
        with pytest.raises(AssertionError):
            backbones.own_pooling(fixed, images(24))
    assert same(backbones.make("resnet10t", dynamic_size=True), backbones.make("resnet10t"))
    assert "images of one size only" in user_error(backbones.make, "cait_xxs24_224", dynamic_size=True)


def test_stochastic_depth_is_there_or_refused() -> None:
    for name in ("test_vit", "resnet10t"):
        model = backbones.make(name, drop_path=0.25, seed=1)
        rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
        assert max(rate for rate in rates if rate is not None) == pytest.approx(0.25)
        plain = backbones.make(name, seed=1)
        assert same(model, plain)
        with torch.inference_mode():
            assert torch.equal(model(images(160)), plain(images(160))), "and nothing is dropped in use"
    assert "model.drop_path=0.1: 'vgg11'" in user_error(backbones.make, "vgg11", drop_path=0.1)
    for rate in (-0.1, 1.0):
        assert "at least 0 and below 1" in user_error(backbones.make, "resnet10t", drop_path=rate)


def test_an_unknown_name_suggests_the_nearest() -> None:
    assert "did you mean 'resnet18'" in user_error(backbones.make, "resnet_18")
    backbones.check_name("vit_small_patch16_224.dino")


@pytest.mark.parametrize(
    ("name", "side", "stem"),
    [
        ("resnet18", 32, "small"),
        ("resnet18", 40, "small"),
        ("resnet18", 41, "standard"),
        ("tf_efficientnet_lite0", 32, "small"),
        # What has no stride-2 convolution to begin with cannot have a small stem, and auto must not fail.
        ("vit_tiny_patch16_224", 32, "standard"),
        ("convnext_atto", 32, "standard"),
    ],
)
def test_the_stem_that_auto_chooses_can_be_built(name: str, side: int, stem: str) -> None:
    chosen, reason = backbones.choose_stem("auto", side, name)
    assert chosen == stem
    assert reason
    backbones.make(name, image_size=side, stem=chosen)


def test_a_stem_that_was_asked_for_is_used_or_refused() -> None:
    assert backbones.choose_stem("standard", 32, "resnet18")[0] == "standard"
    assert backbones.choose_stem("small", 224, "resnet18")[0] == "small"
    assert "one of auto, small, standard" in user_error(backbones.choose_stem, "tiny", 32, "resnet18")
    text = user_error(backbones.make, "convnext_atto", stem="small")
    assert "'convnext_atto'" in text
    assert "model.stem=standard" in text


@pytest.mark.parametrize(
    ("name", "standard", "small"),
    [
        ("resnet18", 1, 4),
        ("resnet10t", 1, 4),
        ("tf_efficientnet_lite0", 1, 2),
        ("mobilenetv3_small_050", 1, 2),
    ],
)
def test_a_small_stem_keeps_the_resolution(name: str, standard: int, small: int) -> None:
    for stem, side in (("standard", standard), ("small", small)):
        model = backbones.make(name, image_size=32, stem=stem)
        with torch.inference_mode():
            assert last_map(model, images(32)).shape[2:] == (side, side)


def test_resnets_small_stem_is_the_papers() -> None:
    model: Any = backbones.make("resnet18", stem="small", seed=2)
    assert (model.conv1.kernel_size, model.conv1.stride, model.conv1.padding) == ((3, 3), (1, 1), (1, 1))
    assert isinstance(model.maxpool, nn.Identity)
    assert same(model, backbones.make("resnet18", stem="small", seed=2)), "its weights follow the seed, too"


def trained(model: nn.Module) -> set[str]:
    return {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("stages", "left"),
    [
        (0, {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}),
        (1, {"layer2", "layer3", "layer4"}),
        (3, {"layer4"}),
        (4, set()),
    ],
)
def test_freeze_takes_the_stem_and_the_first_stages(stages: int, left: set[str]) -> None:
    model = backbones.make("resnet10t")
    backbones.freeze(model, stages)
    assert trained(model) == left


def test_freeze_of_an_efficientnet() -> None:
    model = backbones.make("tf_efficientnet_lite0")
    backbones.freeze(model, 2)
    frozen = {".".join(n.split(".")[:2]) for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"conv_stem.weight", "bn1.weight", "bn1.bias", "blocks.0", "blocks.1"}


@pytest.mark.parametrize("stages", [-1, 5])
def test_freezing_more_than_there_is(stages: int) -> None:
    text = user_error(backbones.freeze, backbones.make("resnet10t"), stages)
    assert f"model.freeze={stages}" in text
    assert "4 stages" in text


def test_frozen_batch_normalisation_keeps_its_statistics() -> None:
    model: Any = backbones.make("resnet10t")
    backbones.freeze(model, 2)
    backbones.train_mode(model, "train")
    before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    model(images(64))
    changed = {
        k.split(".")[0] for k, v in model.state_dict().items() if "running" in k and not v.equal(before[k])
    }
    assert changed == {"layer3", "layer4"}


def test_batchnorm_eval_keeps_all_statistics() -> None:
    model = backbones.make("resnet10t")
    backbones.train_mode(model, "eval")
    before = backbones.weights_digest(model)
    model(images(64))
    assert backbones.weights_digest(model) == before
    assert model.training
    assert "model.batchnorm='off'" in user_error(backbones.train_mode, model, "off")


def test_batchnorm_of_every_kind_can_be_kept() -> None:
    model = nn.Sequential(nn.SyncBatchNorm(3), nn.BatchNorm1d(3), nn.BatchNorm2d(3), nn.Dropout())
    backbones.train_mode(model, "eval")
    assert [layer.training for layer in model] == [False, False, False, True]
    backbones.train_mode(model, "train")
    assert all(layer.training for layer in model)
    model[0].requires_grad_(False)
    backbones.train_mode(model, "train")
    assert [layer.training for layer in model] == [False, True, True, True]


def test_a_digest_sees_every_value() -> None:
    model = backbones.make("resnet10t")
    before = backbones.weights_digest(model)
    assert backbones.weights_digest(model.to(memory_format=torch.channels_last)) == before
    with torch.no_grad():
        dict(model.named_buffers())["layer4.0.bn2.running_mean"][3] += 1e-7
    assert backbones.weights_digest(model) != before


@pytest.mark.parametrize(
    ("name", "stem"),
    [("resnet10t", "small"), ("tf_efficientnet_lite0", "standard"), ("vit_tiny_patch16_224", "standard")],
)
def test_a_checkpoint_gives_the_network_back(tmp_path: Path, name: str, stem: str) -> None:
    model = backbones.make(name, image_size=32, stem=stem, seed=3)
    file = tmp_path / "new" / "checkpoint.safetensors"
    card = checkpoint.Card(name, stem, SPEC.to_dict(), "simclr", "random", 7, 1.5, 40, 3, {"note": "ü"})
    checkpoint.save(model.to(memory_format=torch.channels_last), card, file)
    loaded, read, spec = checkpoint.load(file)
    assert read == card
    assert spec == SPEC
    assert same(loaded, model)
    assert not loaded.training
    with torch.inference_mode():
        first, second = (backbones.own_pooling(m, images(32)) for m in (model, loaded))
    torch.testing.assert_close(first, second)
    assert [path.name for path in file.parent.iterdir()] == ["checkpoint.safetensors"]


def test_a_checkpoint_brings_its_patches_back(tmp_path: Path) -> None:
    model = backbones.make("test_vit", image_size=32, patch_size=4, dynamic_size=True, seed=3)
    card = checkpoint.Card(
        "test_vit",
        "standard",
        SPEC.to_dict(),
        patch_size=4,
        dynamic_size=True,
        network="teacher",
        recipe={"epochs": 3},
        data="0123",
        scores={"knn": 0.5},
    )
    checkpoint.save(model, card, tmp_path / "c.safetensors")
    loaded, read, _ = checkpoint.load(tmp_path / "c.safetensors")
    assert read == card
    assert same(loaded, model)
    with torch.inference_mode():
        assert torch.equal(loaded(images(16)), model(images(16)))


def test_a_checkpoint_from_before_these_fields_still_loads(tmp_path: Path) -> None:
    card = {
        "schema": 1,
        "backbone": "resnet10t",
        "stem": "standard",
        "input": SPEC.to_dict(),
        "method": "simclr",
    }
    model = backbones.make("resnet10t", seed=3)
    save_file(model.state_dict(), tmp_path / "c.safetensors", metadata={"ssl_retrieval": json.dumps(card)})
    loaded, read, _ = checkpoint.load(tmp_path / "c.safetensors")
    assert same(loaded, model)
    assert (read.patch_size, read.network, read.dynamic_size, read.recipe) == (None, "student", False, {})


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    assert "no checkpoint" in user_error(checkpoint.load, tmp_path / "nothing.safetensors")
    (tmp_path / "garbage").write_bytes(b"garbage" * 10)
    assert "not a checkpoint of ssl_retrieval" in user_error(checkpoint.load, tmp_path / "garbage")
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(2)}, foreign)
    assert "model.weights=FILE" in user_error(checkpoint.load, foreign)
    save_file({"a": torch.zeros(2)}, foreign, metadata={"ssl_retrieval": json.dumps({"schema": 99})})
    assert "another version" in user_error(checkpoint.load, foreign)
    card = {"schema": 1, "backbone": "resnet10t", "stem": "standard", "input": {}, "of_the_future": 1}
    save_file({"a": torch.zeros(2)}, foreign, metadata={"ssl_retrieval": json.dumps(card)})
    assert "another version" in user_error(checkpoint.load, foreign)


def test_a_checkpoint_with_other_weights_than_its_card_says(tmp_path: Path) -> None:
    file = tmp_path / "c.safetensors"
    card = checkpoint.Card("resnet18", "standard", SPEC.to_dict())
    checkpoint.save(backbones.make("resnet10t"), card, file)
    assert "do not fit 'resnet18'" in user_error(checkpoint.load, file)


def test_network_input_survives_json() -> None:
    assert InputSpec.from_dict(json.loads(json.dumps(SPEC.to_dict()))) == SPEC


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (7, 5), (400, 3), (2, 2000), (1, 1)])
def test_every_shape_of_image_becomes_the_network_input(size: tuple[int, int]) -> None:
    tensor = SPEC(photo((120, 60, 30), 0, size))
    assert tensor.shape == (3, 32, 32)
    assert tensor.dtype == torch.float32
    assert tensor.isfinite().all()


def test_the_input_is_resized_cut_and_normalised_as_timm_does() -> None:
    from timm.data.transforms_factory import create_transform

    image = photo((120, 60, 30), 1, (90, 61))
    theirs = create_transform(
        32, mean=SPEC.mean, std=SPEC.std, interpolation="bicubic", crop_pct=0.875, crop_mode="center"
    )
    # timm resizes with Pillow: the same but for rounding, a step of 8 bits here and there.
    torch.testing.assert_close(SPEC(image), theirs(image), atol=1.01 / 255 / min(SPEC.std), rtol=0)
