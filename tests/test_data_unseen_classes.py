"""CUB-200-2011 and Cars-196: small look-alikes against a double loop."""

from pathlib import Path
from types import ModuleType
from typing import Any

import look_alike_classes as made
import numpy as np
import pytest
from look_alikes import cells, expected, lists
from scipy.io import savemat

from ssl_retrieval import metrics
from ssl_retrieval.data import cars196, cub200
from ssl_retrieval.errors import UserError
from ssl_retrieval.search import relevant_ranks
from ssl_retrieval.types import Task


def answers(task: Task) -> list[tuple[list, list]]:
    return list(zip(lists(task.relevant), lists(task.ignored), strict=True))


def searched(classes: list[tuple[int, int]], first: int, path: Any) -> list[tuple[str, int]]:
    return [(path(i, *photo), photo[0]) for i, photo in enumerate(classes) if photo[0] >= first]


BIRDS = searched(made.CUB, 101, lambda _, *photo: f"images/{made.cub_path(*photo)}")
ONE_FILE = searched(made.CARS, 99, lambda i, *_: made.car_path(i))

UNSEEN: list[tuple[ModuleType, Any, str]] = [
    (cub200, made.cub200, "images/001.Bird_1/Bird_1_0.jpg"),
    (cars196, made.cars196, "car_ims/000001.jpg"),
    (cars196, made.cars196_devkit, "cars_train/00001.jpg"),
]
each_set = pytest.mark.parametrize(("loader", "maker", "first"), UNSEEN, ids=["cub", "cars", "cars-devkit"])


@pytest.mark.parametrize(
    ("loader", "maker", "photos"), [(cub200, made.cub200, BIRDS), (cars196, made.cars196, ONE_FILE)]
)
def test_unseen_classes_search_among_themselves(
    loader: ModuleType, maker: Any, photos: list, tmp_path: Path
) -> None:
    task = loader.load(loader.Config(root=str(maker(tmp_path / "set"))))
    assert [*task.queries.paths] == [*task.gallery.paths] == [path for path, _ in photos]
    assert answers(task) == expected(photos, photos)
    assert task.level == "category"
    assert task.queries.boxes is None
    assert {"hit_rate@1", "hit_rate@2", "hit_rate@4", "hit_rate@8", "mAP@R"} <= set(task.metrics)


@each_set
def test_training_classes_are_those_of_the_first_half(
    loader: ModuleType, maker: Any, first: str, tmp_path: Path
) -> None:
    cfg = loader.Config(root=str(maker(tmp_path / "set")))
    task = loader.load(cfg)
    assert task.fit.paths[0] == first
    assert len(task.fit) == len(task.queries) == 6
    assert task.fit.paths == loader.images(cfg).paths
    assert not set(task.fit.paths) & set(task.gallery.paths)
    assert not set(task.fit.labels.tolist()) & set(task.gallery.labels.tolist())


@each_set
def test_the_official_split_searches_training_photos(
    loader: ModuleType, maker: Any, first: str, tmp_path: Path
) -> None:
    task = loader.load(loader.Config(root=str(maker(tmp_path / "set")), split="official"))
    # One of three photos of each of four classes is for training.
    assert (len(task.queries), len(task.gallery)) == (8, 4)
    assert task.gallery.paths[0] == first
    assert task.fit.paths == task.gallery.paths
    for i, relevant in enumerate(task.relevant):
        same = np.flatnonzero(task.gallery.labels == task.queries.labels[i])
        assert relevant.tolist() == same.tolist()
        assert len(relevant) == 1
    assert lists(task.ignored) == [[]] * 8
    assert task.name.endswith("-official")


@each_set
def test_queries_can_be_cut_to_boxes(loader: ModuleType, maker: Any, first: str, tmp_path: Path) -> None:
    task = loader.load(loader.Config(root=str(maker(tmp_path / "set")), query_crop="box"))
    assert task.protocol.query_crop == "box"
    assert task.gallery.boxes is None
    # The photos' left edges differ by their numbers.
    boxes = [task.queries.box(i) for i in range(3)]
    if loader is cub200:
        assert boxes == [(number, 2.0, number + 30.0, 42.5) for number in range(3)]
    elif first.startswith("car_ims"):
        assert boxes == [(number + 1, 2, 30, 40) for number in range(3)]
    else:
        assert boxes == [(1, 2, 30, 40), (1, 2, 30, 40), (2, 2, 30, 40)]


@each_set
def test_missing_photos_and_options(loader: ModuleType, maker: Any, first: str, tmp_path: Path) -> None:
    root = maker(tmp_path / "set")
    for options, complaint in [
        ({"split": "seen"}, "data.split='seen': use one of unseen, official"),
        ({"query_crop": "bbox"}, "query_crop='bbox'"),
        ({"root": str(tmp_path)}, f"try data.root={root}"),
        ({"on_error": "x"}, "on_error='x'"),
    ]:
        with pytest.raises(UserError, match=complaint):
            loader.load(loader.Config(**({"root": str(root)} | options)))
    (root / first).unlink()
    with pytest.raises(UserError, match=rf"1 of 12 images .*\({first}\)"):
        loader.load(loader.Config(root=str(root)))


def test_birds_tell_what_to_download(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no 'images.txt' in .*download CUB_200_2011.tgz"):
        cub200.load(cub200.Config(root=str(tmp_path)))


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("images", "1 a.jpg\n1 b.jpg\n", "lists image 1 twice"),
        ("images", "1 a.jpg\n2 a.jpg\n", "image path listed twice: 'images/a.jpg'"),
        ("images", "1 ../../secret.jpg\n", "leaves its root"),
        ("images", "1\n", "line 1: image path are needed, not '1'"),
        ("images", "", "has no rows"),
        ("image_class_labels", "1 1\n", "lacks image 2"),
        ("image_class_labels", "1 x\n", "line 1: image class are needed, not '1 x'"),
        ("bounding_boxes", "".join(f"{i} 1 1 {i - 1} 5\n" for i in range(1, 13)), "_1_0.jpg' has no area"),
        ("bounding_boxes", "".join(f"{i} nan 1 5 5\n" for i in range(1, 13)), "has no area"),
        ("train_test_split", "1 0 0\n", "line 1"),
    ],
)
def test_birds_name_a_wrong_list(tmp_path: Path, file: str, text: str, complaint: str) -> None:
    root = made.cub200(tmp_path / "birds")
    (root / f"{file}.txt").write_text(text)
    with pytest.raises(UserError, match=complaint):
        cub200.load(cub200.Config(root=str(root)))


def test_birds_without_classes_for_a_split(tmp_path: Path) -> None:
    root = made.cub200(tmp_path / "birds")
    for class_, complaint in [
        (5, "no test images"),
        (150, "no training images"),
        (0, "classes count from 1"),
    ]:
        rows = "".join(f"{i} {class_}\n" for i in range(1, 13))
        (root / "image_class_labels.txt").write_text(rows)
        with pytest.raises(UserError, match=complaint):
            cub200.load(cub200.Config(root=str(root)))


def test_cars_name_a_wrong_file(tmp_path: Path) -> None:
    root = made.cars196(tmp_path / "cars")
    cfg = cars196.Config(root=str(root))
    rows = [("car_ims/000001.jpg", 1, 2, 30, 40, 197, 0)]
    made.write_cars(root / "cars_annos.mat", rows, "relative_im_path")
    with pytest.raises(UserError, match="classes are not from 1 to 196"):
        cars196.load(cfg)
    made.write_cars(root / "cars_annos.mat", [(*rows[0][:5], 1, 0)], "fname")
    with pytest.raises(UserError, match="is no annotation of Stanford Cars"):
        cars196.load(cfg)
    made.write_cars(root / "cars_annos.mat", [("../x.jpg", *rows[0][1:5], 1, 0)], "relative_im_path")
    with pytest.raises(UserError, match="leaves its root"):
        cars196.load(cfg)
    made.write_cars(root / "cars_annos.mat", [(rows[0][0], 31, *rows[0][2:5], 1, 0)], "relative_im_path")
    with pytest.raises(UserError, match=r"box of 'car_ims/000001.jpg' has no area"):
        cars196.load(cfg)
    (root / "cars_annos.mat").write_bytes(b"no mat file")
    with pytest.raises(UserError, match="is no annotation of Stanford Cars"):
        cars196.load(cfg)
    (root / "cars_annos.mat").unlink()
    with pytest.raises(UserError, match=r"no 'cars_annos.mat' in .*download Stanford Cars"):
        cars196.load(cfg)


def test_cars_of_the_devkit_name_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "apart" / "empty").mkdir(parents=True)
    root = made.cars196_devkit(tmp_path / "cars")
    cfg = cars196.Config(root=str(root))
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": cells(("one", "two"))})
    with pytest.raises(UserError, match="names 2 classes, not 196"):
        cars196.load(cfg)
    labels = root / "devkit" / "cars_test_annos_withlabels.mat"
    labels.rename(root / labels.name)
    with pytest.raises(UserError, match="names 2 classes"):
        cars196.load(cfg)
    (root / labels.name).unlink()
    with pytest.raises(UserError, match=r"no 'cars_test_annos_withlabels.mat'"):
        cars196.load(cfg)
    with pytest.raises(UserError, match="neither car_ims/ nor cars_train/"):
        cars196.load(cars196.Config(root=str(tmp_path / "apart" / "empty")))


@pytest.mark.parametrize(("loader", "maker"), [(cub200, made.cub200), (cars196, made.cars196)])
def test_customary_metrics_equal_a_loop(loader: ModuleType, maker: Any, tmp_path: Path) -> None:
    task = loader.load(loader.Config(root=str(maker(tmp_path / "set"))))
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(len(task.queries), len(task.gallery))).astype(np.float32)
    ranks = relevant_ranks(scores, np.eye(len(task.gallery), dtype=np.float32), task.relevant, task.ignored)
    for name in task.metrics:
        values = metrics.compute(name, ranks)
        for i, row in enumerate(scores):
            order = [j for j in np.argsort(-row) if j not in task.ignored[i]]
            hits = [j in task.relevant[i] for j in order]
            if name.startswith("hit_rate@"):
                assert values[i] == any(hits[: int(name.partition("@")[2])])
