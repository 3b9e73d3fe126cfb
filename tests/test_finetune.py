"""Training on labels, for real and tiny: it learns, its head is exported, labels stay where they belong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from command_line import Command
from made_up_photos import photo
from safetensors.torch import load_file

from ssl_retrieval import backbones, checkpoint, config, train
from ssl_retrieval.augment import Augment, View
from ssl_retrieval.data import folder
from ssl_retrieval.errors import UserError
from ssl_retrieval.extractors.checkpoint import Config as ExtractorConfig
from ssl_retrieval.extractors.checkpoint import Extractor
from ssl_retrieval.methods.base import BaseMethod
from ssl_retrieval.streaming import Stream, _Photos
from ssl_retrieval.train_images import open_images

BASE: dict[str, Any] = {
    "model": {"name": "test_resnet", "image_size": 32, "stem": "standard"},
    "method": {"name": "arcface", "pool": "gem", "dim": 8},
    "optimizer": {"name": "adamw", "lr": 0.002, "weight_decay": 1e-4},
    "epochs": 3,
    "batch_size": 8,
    "device": "cpu",
    "precision": "fp32",
    "memory_format": "contiguous",
    "log_every": 1,
    "monitor": {"every_epochs": 0},
}


@pytest.fixture
def job(tmp_path: Path, photos: Path) -> Path:
    file = tmp_path / "finetune.yaml"
    data = {"name": "folder", "root": str(photos), "labels": "folder"}
    file.write_text(yaml.safe_dump(BASE | {"data": data, "out": str(tmp_path / "run")}))
    return file


def go(job: Path, *overrides: str) -> Path:
    return train.pretrain(config.load(train.PretrainConfig, job, overrides)).parent


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "method", ["method.name=softmax", "method.name=proxy_anchor", "method.name=triplet", "method.name=supcon"]
)
def test_the_loss_falls(job: Path, method: str) -> None:
    found = losses(go(job, method, "epochs=8", "images_per_class=2"))
    assert len(found) == 40
    assert np.mean(found[-5:]) < np.mean(found[:5])


def test_the_command_trains_and_the_checkpoint_embeds_with_its_head(job: Path, cli: Command) -> None:
    outcome = cli("finetune", job)
    assert outcome.code == 0, outcome.err
    file = Path(outcome.out.strip())
    model, card, _ = checkpoint.load(file)
    assert (card.family, card.head) == (
        "fine-tuned",
        {"pool": "gem", "gem_p": 3.0, "learn_gem_p": False, "dim": 8},
    )
    extractor = Extractor(ExtractorConfig(path=str(file.parent))).eval()
    assert (extractor.family, extractor.dim) == ("fine-tuned", 8)
    images = [extractor.preprocess(photo((90, 120, 150), seed=i)) for i in range(3)]
    batch = torch.stack(images)
    head = checkpoint.load_head(file, model, card)
    assert head is not None
    with torch.inference_mode():
        wanted = head(model, extractor.normalize(batch))
        torch.testing.assert_close(extractor(batch), wanted, rtol=1e-3, atol=1e-4)
    pooled = Extractor(ExtractorConfig(path=str(file.parent), pool="avg")).eval()
    assert pooled.dim == model.num_features
    assert pooled.weights_digest != extractor.weights_digest


def test_a_run_may_go_on_from_a_fine_tuned_one(job: Path, tmp_path: Path) -> None:
    first = go(job)
    go(job, f"out={tmp_path / 'second'}", f"model.weights={first}", "method.name=softmax", "epochs=1")
    assert checkpoint.read_card(tmp_path / "second" / "checkpoint.safetensors").start == str(first)


def test_labels_are_compact_and_a_self_supervised_method_never_sees_them(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, int]] = []
    real = open_images

    def noting(cfg: train.PretrainConfig, out: Path) -> Any:
        source, reason = real(cfg, out)
        seen.append((source.labels, len(source.paths)))
        return source, reason

    monkeypatch.setattr(train, "open_images", noting)
    step = BaseMethod.forward
    views: list[list[torch.Tensor]] = []

    def forward(self: BaseMethod, taken: list[torch.Tensor], progress: float) -> Any:
        views.append(taken)
        return step(self, taken, progress)

    monkeypatch.setattr(BaseMethod, "forward", forward)
    for name in ("simclr", "softmax"):
        for source in ("packed", "stream"):
            out = f"out={tmp_path / name / source}"
            go(job, f"method.name={name}", out, f"source={source}", "num_workers=0", "epochs=1")
    assert [labels is None for labels, _ in seen] == [True, True, False, False]
    for labels, count in seen[2:]:
        assert sorted(np.unique(labels)) == [0, 1, 2, 3]
        assert len(labels) == count
    assert all(view.is_floating_point() for view in views[0])
    assert views[-1][-1].dtype == torch.int64


def test_images_and_labels_belong_together(job: Path, photos: Path, tmp_path: Path) -> None:
    """The broken photo is left out, and the labels of the others stay theirs."""
    root = tmp_path / "photos"
    for file in sorted(photos.rglob("*.*")):
        copied = root / file.relative_to(photos)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_bytes(file.read_bytes())
    first = min(root.rglob("*.*"))
    first.write_bytes(b"no picture")
    for source in ("packed", "stream"):
        cfg = config.load(train.PretrainConfig, job, [f"data.root={root}", f"source={source}"])
        out = tmp_path / source
        out.mkdir()
        found, _ = open_images(cfg, out)
        names = sorted({path.split("/")[0] for path in found.paths})
        assert found.labels is not None
        assert [names[label] for label in found.labels] == [path.split("/")[0] for path in found.paths]
        assert len(found.paths) == 39


def test_a_damaged_photo_of_a_stream_is_replaced_by_one_of_its_class(photos: Path, tmp_path: Path) -> None:
    images = folder.images(folder.Config(root=str(photos), labels="folder"))
    stream = Stream(images, seed=0, num_workers=0)
    reader = _Photos(stream.images, [View(Augment(), 16)], 0, replaces=True)
    assert images.labels is not None
    for number in (0, 9, 25, 39):
        candidates = list(reader._candidates(number))
        assert candidates[0] == number
        assert sorted(candidates) == np.flatnonzero(images.labels == images.labels[number]).tolist()


def test_each_part_of_a_batch_holds_whole_groups_of_a_class(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = BaseMethod.forward
    seen: list[list[int]] = []

    def forward(self: BaseMethod, taken: list[torch.Tensor], progress: float) -> Any:
        seen.append(taken[-1].tolist())
        return step(self, taken, progress)

    monkeypatch.setattr(BaseMethod, "forward", forward)
    go(job, "method.name=supcon", "images_per_class=2", "accumulate=2", "epochs=2")
    assert len(seen) == 2 * 10
    for first, second in zip(seen[::2], seen[1::2], strict=True):
        assert len(first) == len(second) == 4
        assert first[0] == first[1] != first[2] == first[3]
        assert len({*first, *second}) == 4


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.labels=none"], "method.name=arcface learns from labels, which data.name=folder lacks"),
        (["images_per_class=4", "batch_size=20"], "needs 5 classes of at least 4 images"),
        (["images_per_class=3"], "images_per_class=3"),
        (["images_per_class=1"], "images_per_class=1: must be at least 2"),
        (["images_per_class=4", "accumulate=4"], "images_per_class=4: the 2 images"),
        (["images_per_class=2", "method.name=simclr"], "method.name=simclr sees no labels"),
        (["method.num_classes=3"], "the training labels name 4 classes"),
        (["data.name=packed"], "a pack holds none"),
        (["monitor.patience=2"], "monitor.patience needs passes"),
        (["monitor.patience=-1"], "monitor.patience=-1"),
        (["optimizer.encoder_lr=0"], "optimizer.encoder_lr=0"),
        (["optimizer.encoder_start=1.0"], "optimizer.encoder_start=1.0"),
    ],
)
def test_a_mistake_is_one_line(job: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        go(job, *overrides)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_labels_are_other_data(job: Path, photos: Path, tmp_path: Path) -> None:
    keys = set()
    for number, rows in enumerate((["a", "b"], ["a", "a"])):
        listed = tmp_path / f"{number}.csv"
        paths = sorted(str(file.relative_to(photos)) for file in photos.rglob("*.*"))
        labels = [rows[i % 2] if i else "c" for i in range(len(paths))]
        listed.write_text("path,label\n" + "\n".join(map(",".join, zip(paths, labels, strict=True))))
        cfg = config.load(
            train.PretrainConfig, job, ["data.name=manifest", f"data.root={photos}", f"data.file={listed}"]
        )
        keys.add(open_images(cfg, tmp_path)[0].key)
    assert len(keys) == 2


def test_the_network_waits_while_the_heads_learn(job: Path, tmp_path: Path) -> None:
    half = ["optimizer.encoder_start=0.9", "model.batchnorm=eval", "epochs=1"]
    waited = load_file(go(job, *half, f"out={tmp_path / 'waits'}") / "checkpoint.safetensors")
    moved = load_file(go(job, *half[1:], f"out={tmp_path / 'moves'}") / "checkpoint.safetensors")
    fresh = backbones.make("test_resnet", image_size=32).state_dict()
    assert all(torch.equal(waited[key], fresh[key]) for key in fresh)
    assert not all(torch.equal(moved[key], fresh[key]) for key in fresh)
    assert waited.keys() - fresh.keys() == {
        "embedding_head.projection.weight",
        "embedding_head.projection.bias",
    }


def test_the_exponent_of_gem_is_trained_where_that_is_asked_for(job: Path, tmp_path: Path) -> None:
    kept = load_file(go(job, f"out={tmp_path / 'kept'}") / "checkpoint.safetensors")
    trained = load_file(
        go(job, "method.learn_gem_p=true", f"out={tmp_path / 'free'}") / "checkpoint.safetensors"
    )
    assert trained.keys() - kept.keys() == {"embedding_head.exponent"}
    assert trained["embedding_head.exponent"].item() != 3.0


def test_a_run_ends_early_where_nothing_gets_better(
    job: Path, tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watched = [
        *("monitor.every_epochs=1", "monitor.patience=2", "epochs=50", "optimizer.lr=1e-7"),
        *("validation.name=folder", f"validation.root={photos}", f"out={tmp_path / 'early'}"),
    ]
    out = go(job, *watched)
    said = capsys.readouterr().err
    assert "no new best val_mAP in 2 passes" in said
    state = torch.load(out / "state.pt", weights_only=True)
    assert state["step"] < 250
    assert state["passes_since_best"] == 2
    assert checkpoint.read_card(out / "checkpoint.safetensors").step == state["step"]
    go(job, *watched)
    assert "nothing to do" in capsys.readouterr().err
