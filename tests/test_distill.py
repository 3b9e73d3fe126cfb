"""Distillation in the loop: the teacher stays, the student comes near it, and may search what it embedded."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from made_up_photos import photo
from method_makers import IMAGE_SIZE, method_of, views_for
from torch import Tensor

from ssl_retrieval import backbones, checkpoint, config, distillation, optim, train
from ssl_retrieval.augment import Augment, Output, View, finish_views, make_views
from ssl_retrieval.data import folder
from ssl_retrieval.defaults import Facts
from ssl_retrieval.errors import UserError
from ssl_retrieval.export import export
from ssl_retrieval.extractors import timm_model
from ssl_retrieval.extractors.checkpoint import Config as CheckpointConfig
from ssl_retrieval.extractors.checkpoint import Extractor
from ssl_retrieval.methods import distill
from ssl_retrieval.methods.distill import Method
from ssl_retrieval.streaming import Stream

TEACHER = {"name": "test_convnext", "weights": "random", "image_size": 48}
BASE: dict[str, Any] = {
    "model": {"name": "test_resnet", "image_size": 32, "stem": "standard"},
    "method": {"name": "distill", "teacher": TEACHER, "similarity": 1.0},
    "optimizer": {"name": "adamw", "lr": 0.002, "weight_decay": 1e-4},
    "epochs": 3,
    "batch_size": 8,
    "device": "cpu",
    "precision": "fp32",
    "memory_format": "contiguous",
    "log_every": 1,
    "monitor": {"every_epochs": 0},
}


def made(**options: Any) -> Method:
    method = method_of("distill", **options)
    assert isinstance(method, Method)
    return method


@pytest.fixture
def job(tmp_path: Path, photos: Path) -> Path:
    file = tmp_path / "distill.yaml"
    data = {"name": "folder", "root": str(photos)}
    file.write_text(yaml.safe_dump(BASE | {"data": data, "out": str(tmp_path / "run")}))
    return file


def go(job: Path, *overrides: str) -> Path:
    return train.pretrain(config.load(train.PretrainConfig, job, overrides)).parent


def steps(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("space", ["student", "teacher"])
def test_the_loss_is_the_weighted_sum_of_its_parts(space: str) -> None:
    weights = {"cosine": 2.0, "mse": 0.5, "similarity": 3.0, "rkd_distance": 5.0, "rkd_angle": 7.0}
    method = made(space=space, temperature=0.2, **weights)
    views = views_for(method)
    output = method.step(views, 0.0)
    with torch.no_grad():
        pooled = method.plain(method.encoder, views[0])
        projected = method.head.project(pooled)
        # Tiny networks of timm's have the student's mean and std, or others: undone and done anew.
        normal: Any = method.encoder.pretrained_cfg
        plain = views[1] * torch.tensor(normal["std"]).view(3, 1, 1) + torch.tensor(normal["mean"]).view(
            3, 1, 1
        )
        seen = (plain - torch.tensor(method.frozen.mean).view(3, 1, 1)) / torch.tensor(
            method.frozen.std
        ).view(3, 1, 1)
        taught = method.frozen(seen)
    searched = pooled if space == "student" else projected
    parts = {
        "cosine": distillation.cosine(projected, taught),
        "mse": distillation.relative_error(projected, taught),
        "similarity": distillation.similarity(searched, taught, 0.2),
        "rkd_distance": distillation.distances(searched, taught),
        "rkd_angle": distillation.angles(searched, taught),
    }
    for name, part in parts.items():
        assert float(output.logs[name]) == pytest.approx(float(part), rel=1e-3), name
    assert output.loss.item() == pytest.approx(
        sum(weights[name] * float(part) for name, part in parts.items()), rel=1e-3
    )


def test_student_and_teacher_see_the_same_crop_each_at_its_own_size(photos: Path) -> None:
    method = made()
    first, second = method.views(IMAGE_SIZE)
    assert (first.size, second.size, second.twin) == (IMAGE_SIZE, 48, 0)
    assert made(teacher=TEACHER | {"image_size": IMAGE_SIZE}).views(IMAGE_SIZE) == [first]
    strong = Augment(jitter=1.0, hue=0.3, grayscale=0.5)
    images = torch.randint(0, 256, (6, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    asked = [View(strong, 32), View(strong, 32, twin=0), View(strong, 32)]
    options: dict[str, Any] = {"seed": 3, "step": 5, "samples": torch.arange(6), "output": Output()}
    one, twin, other = make_views(images.to(torch.uint8), asked, **options)
    assert torch.equal(one, twin)
    assert not torch.equal(one, other)
    # Streamed photos are cut in other processes, by the same numbers.
    stream = Stream(folder.images(folder.Config(root=str(photos))), seed=3, num_workers=0)
    crops = next(iter(stream.batches(iter([(5, torch.arange(6))]), asked)))
    assert torch.equal(crops[0], crops[1])
    one, twin, other = finish_views(crops, asked, **options)
    assert torch.equal(one, twin)
    assert not torch.equal(one, other)


def test_the_teacher_gets_no_gradient_and_never_changes() -> None:
    method = made()
    before = {key: value.clone() for key, value in method.frozen.weights().items()}
    # Nothing of it is trained, saved or laid out with the method.
    assert not any(key.startswith("frozen") for key in method.state_dict())
    student = len(list(method.encoder.parameters())) + len(list(method.head.parameters()))
    assert len(list(method.parameters())) == student
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1, weight_decay=0.1)
    for step in range(3):
        method.set_mode("train")
        optimizer.zero_grad()
        method.step(views_for(method, step), 0.0).loss.backward()
        optimizer.step()
    assert all(not value.requires_grad for value in method.frozen.weights().values())
    assert before.keys() == method.frozen.weights().keys()
    assert all(torch.equal(value, before[key]) for key, value in method.frozen.weights().items())
    images = torch.rand(2, 3, 48, 48)
    first: Tensor = method.frozen(images)
    assert not first.requires_grad
    torch.testing.assert_close(method.frozen(torch.cat([images, images]))[:2], first, rtol=1e-4, atol=1e-5)


def test_the_teacher_is_the_extractor_of_its_section() -> None:
    method = made()
    wanted = timm_model.Extractor(timm_model.Config(**TEACHER)).eval()  # type: ignore[arg-type]
    assert method.frozen.digest == wanted.weights_digest
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(method.frozen(images), wanted(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", distill.LOSSES)
def test_each_loss_alone_falls(loss: str, job: Path) -> None:
    alone = [f"method.{name}={float(name == loss)}" for name in distill.LOSSES]
    found = [row["loss"] for row in steps(go(job, *alone, "epochs=5", "optimizer.lr=0.005"))]
    assert len(found) == 25
    assert np.mean(found[-5:]) < np.mean(found[:5])


def test_a_student_in_the_teachers_space_is_exported_with_its_projection(job: Path, tmp_path: Path) -> None:
    # The student begins as the teacher: whatever is wrong then is the projection.
    same = {"name": "test_resnet", "weights": "random", "image_size": 32}
    changes = [f"method.teacher.{key}={value}" for key, value in same.items()]
    run = go(job, "method.space=teacher", *changes, "epochs=1", "optimizer.lr=1e-5", "model.batchnorm=eval")
    card = checkpoint.read_card(run / "checkpoint.safetensors")
    teacher = timm_model.Extractor(timm_model.Config(**same)).eval()  # type: ignore[arg-type]
    assert (card.family, card.head["dim"]) == ("distilled", teacher.dim)
    student = Extractor(CheckpointConfig(path=str(run))).eval()
    pictures = [photo((60 * i, 200 - 40 * i, 90), seed=i) for i in range(5)]
    with torch.inference_mode():
        ours, theirs = (
            torch.nn.functional.normalize(e(torch.stack([e.preprocess(p) for p in pictures])), dim=1)
            for e in (student, teacher)
        )
    assert float((ours * theirs).sum(dim=1).min()) > 0.9


def test_the_projection_begins_as_a_ridge_regression() -> None:
    # To a teacher that is the student, and sees as much, the regression is exact.
    same = {"name": "test_resnet", "weights": "random", "image_size": IMAGE_SIZE}
    for mse in (0.0, 1.0):
        fitted = made(space="teacher", mse=mse, teacher=same)
        batches = [views_for(fitted, step) for step in range(6)]
        found = []
        for begins in (False, True):
            if begins:
                fitted.begin(iter(batches))
            fitted.eval()
            with torch.no_grad():
                found.append(fitted.step(batches[0], 0.0).logs["mse" if mse else "cosine"].item())
        assert found[1] < 0.01 < 0.2 < found[0]
    random = made(space="teacher", fit_projection=False)
    before = {key: value.clone() for key, value in random.state_dict().items()}
    random.begin(iter(batches))
    torch.testing.assert_close(random.state_dict(), before, rtol=0, atol=0)


def test_without_need_there_is_no_projection() -> None:
    same = {"name": "test_resnet", "weights": "random", "image_size": 48, "seed": 1}
    assert made(teacher=same, projection="none").head.projection is None
    assert made(teacher=same).head.projection is not None
    assert made(cosine=0.0, mse=0.0).head.projection is None, "nothing would train it"
    assert made().embedding_head().projection is None, "the student searches by what it pools"


def test_the_exported_student_is_a_timm_network(job: Path, tmp_path: Path) -> None:
    run = go(job, "epochs=1")
    model, card, _ = checkpoint.load(run / "checkpoint.safetensors")
    assert (card.method, card.backbone, card.family) == ("distill", "test_resnet", "distilled")
    assert card.recipe["method"]["teacher"]["name"] == "test_convnext"
    plain = backbones.make("test_resnet", str(run), image_size=32)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(plain(images), model(images))
    export(run, tmp_path / "exported")
    assert (tmp_path / "exported" / "model.safetensors").is_file()


def test_a_checkpoint_with_its_head_may_teach(job: Path, tmp_path: Path) -> None:
    first = go(job, "method.space=teacher", "epochs=1")
    teacher = ["method.teacher.name=checkpoint", f"method.teacher.path={first}"]
    second = go(job, *teacher, "epochs=1", f"out={tmp_path / 'second'}")
    digest = torch.load(second / "state.pt", weights_only=True)["method"]["teacher_digest"]
    wanted = Extractor(CheckpointConfig(path=str(first))).weights_digest
    assert bytes(digest.tolist()).hex() == wanted


def test_another_teacher_is_refused_when_a_run_goes_on(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "teacher.safetensors"
    for seed in (0, 1):
        network = backbones.make("test_convnext", seed=seed, image_size=48)
        spec = {"size": 48, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop": 1.0}
        checkpoint.save(network, checkpoint.Card("test_convnext", "standard", spec), kept)
        teacher = ["method.teacher.name=checkpoint", f"method.teacher.path={kept}"]
        if seed == 0:
            go(job, *teacher)
            continue
        with pytest.raises(UserError, match=r"method\.teacher\.name=checkpoint: its weights are not those"):
            go(job, *teacher)


def test_labels_are_never_seen(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[Tensor]] = []
    step = Method.step

    def noting(self: Method, views: list[Tensor], progress: float) -> Any:
        seen.append(views)
        return step(self, views, progress)

    monkeypatch.setattr(Method, "step", noting)
    go(job, "data.labels=folder", "epochs=1")
    assert all(len(views) == 2 and views[1].is_floating_point() for views in seen)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method.teacher.name=resnet5000"], "unknown extractor 'resnet5000'"),
        (["method.teacher.name=hog"], "method.teacher.name=hog: it is no network"),
        (["method.teacher.weights=nowhere.pth"], "method.teacher.weights='nowhere.pth'"),
        (["method.teacher.name=checkpoint", "method.teacher.path=nowhere"], "nowhere"),
        (["method.teacher.name=test_vit", "method.teacher.image_size=50"], "50"),
        (["method.teacher.pool=rmac", "method.teacher.rmac_whiten=true"], "it must learn first"),
        (["method.cosine=0", "method.similarity=0"], "all of method.cosine, method.mse"),
        (["method.mse=-1"], "method.mse=-1.0: a weight of 0 or more"),
        (["method.temperature=0"], "method.temperature=0.0: must be positive"),
        (["method.space=both"], "method.space='both'"),
        (["method.projection=deep"], "method.projection='deep'"),
        (["method.space=teacher", "method.cosine=0"], "method.space=teacher needs method.cosine"),
        (["method.projection=none"], "method.projection=none: the student's vectors have 96 values"),
        (["method.projection=none", "method.space=teacher"], "method.space=teacher exports the projection"),
        (["method.pool=max"], "method.pool='max'"),
        (["method.augment.flip=2"], "augment.flip=2"),
        (["images_per_class=2"], "method.name=distill sees no labels"),
    ],
)
def test_a_mistake_is_one_line(job: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        go(job, *overrides)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_teacher_is_named_before_images_are_decoded(job: Path, tmp_path: Path) -> None:
    tree = yaml.safe_load(job.read_text())
    del tree["method"]["teacher"]
    job.write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match=r"method\.teacher is missing"):
        go(job)
    assert not (tmp_path / "run" / "images.npy").exists()


def test_learned_weights_are_treated_gently() -> None:
    gentle = distill.defaults(Facts(pretrained=True))
    assert gentle["optimizer.lr"][0] == 3e-4
    known = {field.name for field in optim.OptimizerConfig.__dataclass_fields__.values()}
    for recipe in (gentle, distill.defaults(Facts())):
        assert {key.removeprefix("optimizer.") for key in recipe} <= known
