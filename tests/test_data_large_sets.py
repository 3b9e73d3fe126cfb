"""CIFAR-100, ImageNet's layout and iNaturalist: small look-alikes against a double loop; drawing a part."""

import json
import pickle
from pathlib import Path
from typing import Any

import look_alike_classes as made
import numpy as np
import pytest
from look_alikes import expected, lists, make
from PIL import Image

from ssl_retrieval.data import cifar100, draws, imagenet_folder, inaturalist
from ssl_retrieval.data.draws import DrawConfig, check_draws, draw, some_per_class
from ssl_retrieval.data.tasks import labelled
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import Task


def answers(task: Task) -> list[tuple[list, list]]:
    return list(zip(lists(task.relevant), lists(task.ignored), strict=True))


# CIFAR-100

FORMS = pytest.mark.parametrize("form", [made.cifar100, made.cifar100_binary])


def cifar_photos(split: str, level: str) -> list[tuple[str, str]]:
    names = made.CIFAR100_NAMES
    photos = []
    for number, label in enumerate(made.CIFAR100[split]):
        fine, coarse = names["fine"][label], names["coarse"][made.CIFAR100_COARSE[label]]
        photos.append((f"{split}/{fine}/{number:05d}.png", fine if level == "fine" else coarse))
    return photos


@FORMS
@pytest.mark.parametrize("level", ["fine", "coarse"])
def test_cifar_is_unpacked_without_loss(tmp_path: Path, form: Any, level: str) -> None:
    cfg = cifar100.Config(root=str(form(tmp_path / "cifar")), task=level)
    task = cifar100.load(cfg)
    photos = cifar_photos("test", level)
    assert [*task.queries.paths] == [path for path, _ in photos]
    assert answers(task) == expected(photos, photos)
    pixels = made.cifar100_pixels("test").reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    for i, wanted in enumerate(pixels):
        with Image.open(task.queries.file(i)) as image:
            assert np.array_equal(np.asarray(image), wanted)
    assert task.fit is not None
    assert [*task.fit.paths] == [path for path, _ in cifar_photos("train", level)]
    assert task.name == f"cifar100-{level}-test"


@FORMS
def test_cifar_test_searches_train(tmp_path: Path, form: Any) -> None:
    cfg = cifar100.Config(root=str(form(tmp_path / "cifar")), mode="test_to_train")
    task = cifar100.load(cfg)
    assert answers(task) == expected(cifar_photos("test", "fine"), cifar_photos("train", "fine"))
    assert task.queries.class_names == task.gallery.class_names
    limited = cifar100.load(cifar100.Config(root=cfg.root, limit_per_class=1))
    assert len(limited.queries) == 3
    assert cifar100.load(cifar100.Config(root=cfg.root, split="train")).fit is None


def test_cifar_is_written_once_and_elsewhere_if_asked(tmp_path: Path) -> None:
    root = made.cifar100(tmp_path / "cifar")
    cfg = cifar100.Config(root=str(root), unpacked=str(tmp_path / "png"))
    first = cifar100.images(cfg)
    assert first.root == tmp_path / "png"
    stamp = first.file(0).stat().st_mtime_ns
    for file in ("train", "test", "meta"):
        (root / file).unlink()
    assert cifar100.images(cfg).paths == first.paths
    assert first.file(0).stat().st_mtime_ns == stamp
    assert not (root / "images").exists()


def test_cifar_runs_nothing_in_a_pickle(tmp_path: Path) -> None:
    class Malice:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "trace",)

    root = made.cifar100(tmp_path / "cifar")
    (root / "test").write_bytes(pickle.dumps({"data": Malice()}))
    with pytest.raises(UserError, match="is refused, "):
        cifar100.load(cifar100.Config(root=str(root)))
    assert not (tmp_path / "trace").exists()


def changed(**changes: Any) -> dict[str, Any]:
    content = {"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0, 1], "coarse_labels": [0, 1]}
    return {key: value for key, value in (content | changes).items() if value is not None}


@pytest.mark.parametrize(
    "content",
    [
        changed(data=None),
        changed(data=[1, 2]),
        changed(data=np.zeros((2, 3072), np.float32)),
        changed(data=np.zeros((2, 3000), np.uint8)),
        changed(fine_labels=[0]),
        changed(fine_labels=[0, 3]),
        changed(fine_labels=[0, -1]),
        changed(coarse_labels=[0, 2]),
        changed(coarse_labels=["a", "b"]),
        [1, 2],
    ],
)
def test_cifar_names_a_wrong_pickle(tmp_path: Path, content: Any) -> None:
    root = made.cifar100(tmp_path / "cifar")
    (root / "test").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(UserError, match=r"test' is no part of CIFAR-100 .*download"):
        cifar100.load(cifar100.Config(root=str(root)))
    assert not (root / "images").exists()


def test_cifar_mistakes(tmp_path: Path) -> None:
    root = made.cifar100_binary(tmp_path / "cifar")
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"task": "fin"}, "data.task='fin'"),
        ({"mode": "x"}, "data.mode='x'"),
        ({"split": "x"}, "data.split='x'"),
        ({"root": str(tmp_path)}, f"try data.root={root}"),
        ({"limit_per_class": 0}, "limit_per_class=0"),
        ({"unpacked": str(root)}, "is in the way"),
        ({"unpacked": str(root / "test.bin" / "x")}, "cannot write to"),
    ]
    for options, complaint in mistakes:
        with pytest.raises(UserError, match=complaint):
            cifar100.load(cifar100.Config(**({"root": str(root)} | options)))
    (root / "coarse_label_names.txt").write_text("../../x\ntrees\n")
    with pytest.raises(UserError, match="a class name is no word"):
        cifar100.load(cifar100.Config(root=str(root)))
    (root / "train.bin").write_bytes(b"short")
    with pytest.raises(UserError, match=r"train.bin' is no part of CIFAR-100"):
        cifar100.load(cifar100.Config(root=str(root)))
    made.cifar100_binary(tmp_path / "other")
    (tmp_path / "other" / "test.bin").unlink()
    with pytest.raises(UserError, match=r"no 'test.bin'"):
        cifar100.load(cifar100.Config(root=str(tmp_path / "other")))
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(UserError, match=r"neither 'meta' nor 'train.bin' .*download the python or"):
        cifar100.load(cifar100.Config(root=str(tmp_path / "a" / "b")))


# ImageNet's layout


def class_photos(part: str, count: int) -> list[tuple[str, str]]:
    return [(f"{part}/{name}/{name}_{i}.JPEG", name) for name in ("n01", "n02") for i in range(count)]


def test_imagenet_val_searches_train(tmp_path: Path) -> None:
    cfg = imagenet_folder.Config(root=str(made.imagenet(tmp_path / "imagenet")))
    task = imagenet_folder.load(cfg)
    assert answers(task) == expected(class_photos("val", 3), class_photos("train", 6))
    assert task.name == "imagenet-val-in-train"
    assert task.fit is not None
    assert task.fit.paths == task.gallery.paths == imagenet_folder.images(cfg).paths


def test_imagenet_val_searches_val(tmp_path: Path) -> None:
    root = str(made.imagenet(tmp_path / "imagenet"))
    task = imagenet_folder.load(imagenet_folder.Config(root=root, gallery="val"))
    assert answers(task) == expected(class_photos("val", 3), class_photos("val", 3))
    assert task.fit is not None
    assert {path.split("/")[0] for path in task.fit.paths} == {"train"}
    assert imagenet_folder.load(imagenet_folder.Config(root=root, gallery="val", train="")).fit is None
    assert imagenet_folder.load(imagenet_folder.Config(root=root, queries="train")).fit is None


def test_imagenet_in_part(tmp_path: Path) -> None:
    root = str(made.imagenet(tmp_path / "imagenet"))
    options: dict[str, Any] = {"root": root, "queries_per_class": 2, "gallery_per_class": 3}
    task = imagenet_folder.load(imagenet_folder.Config(**options))
    assert (len(task.queries), len(task.gallery)) == (4, 6)
    assert {len(relevant) for relevant in task.relevant} == {3}
    assert task.name == "imagenet-val-in-train-2-queries-per-class-3-gallery-per-class-seed-0"
    again = imagenet_folder.load(imagenet_folder.Config(**options))
    assert (again.queries.paths, again.gallery.paths) == (task.queries.paths, task.gallery.paths)
    others = [imagenet_folder.load(imagenet_folder.Config(**options, seed=seed)) for seed in range(1, 6)]
    assert any(other.gallery.paths != task.gallery.paths for other in others)
    same = imagenet_folder.load(imagenet_folder.Config(**options | {"queries": "train"}))
    assert set(same.queries.paths) < set(same.gallery.paths)
    assert {len(ignored) for ignored in same.ignored} == {1}


def test_imagenet_mistakes(tmp_path: Path) -> None:
    root = made.imagenet(tmp_path / "imagenet")

    def load(**options: Any) -> Task:
        return imagenet_folder.load(imagenet_folder.Config(**({"root": str(root)} | options)))

    with pytest.raises(UserError, match=r"no folder 'test' .*image-net.org"):
        load(queries="test")
    with pytest.raises(UserError, match=f"try data.root={root}"):
        load(root=str(tmp_path))
    with pytest.raises(UserError, match="queries_per_class=0"):
        load(queries_per_class=0)
    with pytest.raises(UserError, match=r"data.train is empty"):
        imagenet_folder.images(imagenet_folder.Config(root=str(root), train=""))
    make(root, "train/n03/1.JPEG")
    with pytest.raises(UserError, match=r"val and train in .* differ in 1 classes \(n03\)"):
        load()
    make(root, "val/ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(UserError, match=r"ILSVRC2012_val_00000001.JPEG' .* is in no class folder"):
        load()


# iNaturalist


def nature_photos(split: str, rank: str) -> list[tuple[str, Any]]:
    photos = []
    for number, species in enumerate(made.NATURE[split]):
        entry = made.SPECIES[species]
        # The plant's genus has the birds' name: a kingdom tells them apart.
        group = {"species": species, "genus": (entry["kingdom"], entry["genus"]), "class": entry["class"]}
        photos.append((made.nature_path(split, number), group.get(rank, 0)))
    return photos


@pytest.mark.parametrize("rank", ["species", "genus", "class", "supercategory"])
@pytest.mark.parametrize("gallery", ["val", "train"])
def test_nature_by_rank(tmp_path: Path, rank: str, gallery: str) -> None:
    cfg = inaturalist.Config(root=str(made.inaturalist(tmp_path / "inat")), rank=rank, gallery=gallery)
    task = inaturalist.load(cfg)
    assert answers(task) == expected(nature_photos("val", rank), nature_photos(gallery, rank))
    assert task.queries.class_names == task.gallery.class_names
    assert task.name == f"inat-{rank}-in-{gallery}"
    assert task.fit is not None
    assert task.fit.paths == inaturalist.images(cfg).paths
    assert not set(task.fit.paths) & set(task.queries.paths)


def test_nature_without_training_photos(tmp_path: Path) -> None:
    root = made.inaturalist(tmp_path / "inat")
    (root / "train.json").unlink()
    cfg = inaturalist.Config(root=str(root), train="", gallery_per_class=1, queries_per_class=1)
    task = inaturalist.load(cfg)
    assert task.fit is None
    assert len(task.queries) == len(task.gallery) == 3
    with pytest.raises(UserError, match=r"data.train is empty"):
        inaturalist.images(cfg)
    with pytest.raises(UserError, match=r"no 'train.json' .*download it with its photos"):
        inaturalist.load(inaturalist.Config(root=str(root)))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda content: content["annotations"].append(content["annotations"][0]), "has two categories"),
        (lambda content: content["annotations"].pop(), "KeyError"),
        (lambda content: content["categories"].pop(), "KeyError"),
        (lambda content: content.pop("images"), "KeyError: 'images'"),
        (lambda content: content["images"].append(content["images"][0]), "image path listed twice"),
        (lambda content: content["images"][0].update(file_name="../x.jpg"), "leaves its root"),
        (lambda content: content["images"][0].update(file_name="val/none.jpg"), r"1 of 6 images .*none.jpg"),
        (lambda content: content.update(images=3), "TypeError"),
    ],
)
def test_nature_names_wrong_annotations(tmp_path: Path, change: Any, complaint: str) -> None:
    root = made.inaturalist(tmp_path / "inat")
    content = json.loads((root / "val.json").read_text())
    change(content)
    (root / "val.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=complaint):
        inaturalist.load(inaturalist.Config(root=str(root)))


def test_nature_mistakes(tmp_path: Path) -> None:
    root = made.inaturalist(tmp_path / "inat")
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"rank": "specis"}, "did you mean 'species'"),
        ({"gallery": "test"}, "data.gallery='test'"),
        ({"train": "val.json"}, "share photos"),
        ({"queries_per_class": 0}, "must be at least 1"),
        ({"root": str(tmp_path)}, f"try data.root={root}"),
    ]
    for options, complaint in mistakes:
        with pytest.raises(UserError, match=complaint):
            inaturalist.load(inaturalist.Config(**({"root": str(root)} | options)))
    content = json.loads((root / "train.json").read_text())
    content["categories"][0]["name"] = "x"
    (root / "train.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="differ in categories"):
        inaturalist.load(inaturalist.Config(root=str(root), gallery="train"))
    (root / "val.json").write_text("{")
    with pytest.raises(UserError, match=r"val.json' is no annotation of iNaturalist \(JSONDecodeError"):
        inaturalist.load(inaturalist.Config(root=str(root)))


# Drawing a part


def test_a_draw_keeps_order_classes_and_its_seed() -> None:
    names = np.random.default_rng(0).choice(["ape", "bee", "cat"], 60).tolist()
    images = labelled(Path("/photos"), [f"{i}.jpg" for i in range(60)], names)
    drawn = some_per_class(images, 7, seed=3)
    assert drawn.labels is not None
    assert np.bincount(drawn.labels).tolist() == [7, 7, 7]
    numbers = [int(path.removesuffix(".jpg")) for path in drawn.paths]
    assert numbers == sorted(numbers)
    assert [images.class_names[label] for label in drawn.labels] == [names[number] for number in numbers]
    assert some_per_class(images, 7, seed=3).paths == drawn.paths
    assert some_per_class(images, 7, seed=4).paths != drawn.paths
    assert some_per_class(images, None, seed=3) is images
    assert some_per_class(images, 60, seed=3).paths == images.paths


def test_the_memory_of_very_many_relevant_images_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(draws, "say", said.append)
    images = labelled(Path("/photos"), [f"{i}.jpg" for i in range(20)], ["ape"] * 15 + ["bee"] * 5)
    draw(DrawConfig(), images, images)
    assert said == []
    monkeypatch.setattr(draws, "_MUCH", 32 * 20 * 15 - 1)
    draw(DrawConfig(), images, images)
    assert "20 queries with up to 15 relevant images" in said[0]
    draw(DrawConfig(queries_per_class=5), images, images)
    assert len(said) == 1


def test_queries_are_drawn_from_a_gallery_that_they_share() -> None:
    images = labelled(Path("/photos"), [f"{i}.jpg" for i in range(20)], ["ape", "bee"] * 10)
    queries, gallery = draw(DrawConfig(queries_per_class=2, gallery_per_class=5), images, images)
    assert (len(queries), len(gallery)) == (4, 10)
    assert set(queries.paths) <= set(gallery.paths)
    with pytest.raises(UserError, match=r"data.gallery_per_class=-1"):
        check_draws(DrawConfig(gallery_per_class=-1))
