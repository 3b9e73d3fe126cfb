"""CIFAR-10, Grocery Store and UKBench: small look-alikes, then the real ones where they are at hand."""

from pathlib import Path

import look_alike_classes
import look_alikes
import pytest
import tarballs
from look_alikes import lists, make

from ssl_retrieval.data import cifar10, grocery, ukbench
from ssl_retrieval.errors import UserError

ARCHIVES = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture
def small_cifar(tmp_path: Path) -> Path:
    return look_alike_classes.cifar10(tmp_path / "cifar")


def test_cifar_leave_one_out(small_cifar: Path) -> None:
    task = cifar10.load(cifar10.Config(root=str(small_cifar), limit_per_class=2))
    assert task.queries.paths == (
        "test/cat/0000.png",
        "test/cat/0001.png",
        "test/dog/0000.png",
        "test/dog/0001.png",
    )
    assert lists(task.relevant) == [[1], [0], [3], [2]]
    assert lists(task.ignored) == [[0], [1], [2], [3]]
    assert task.fit is not None
    assert task.fit.paths[0] == "train/cat/0000.png"
    assert len(task.fit) == 4


def test_cifar_never_fits_on_what_is_searched(small_cifar: Path) -> None:
    task = cifar10.load(cifar10.Config(root=str(small_cifar), split="train"))
    assert task.queries.paths[0] == "train/cat/0000.png"
    assert task.fit is None


def test_cifar_test_to_train(small_cifar: Path) -> None:
    task = cifar10.load(cifar10.Config(root=str(small_cifar), mode="test_to_train"))
    assert {len(r) for r in task.relevant} == {3}
    assert lists(task.ignored) == [[]] * 6
    make(small_cifar, "train/owl/0.png")
    with pytest.raises(UserError, match="differ in classes: owl"):
        cifar10.load(cifar10.Config(root=str(small_cifar), mode="test_to_train"))


def test_cifar_images_are_train_by_default(small_cifar: Path) -> None:
    assert cifar10.images(cifar10.Config(root=str(small_cifar))).paths[0].startswith("train/")
    test = cifar10.images(cifar10.Config(root=str(small_cifar), images_split="test"))
    assert test.paths[0].startswith("test/")
    assert test.class_names == ("cat", "dog")


def test_cifar_mistakes(small_cifar: Path) -> None:
    with pytest.raises(UserError, match=f"try data.root={small_cifar}"):
        cifar10.load(cifar10.Config(root=str(small_cifar.parent)))
    with pytest.raises(UserError, match=f"try data.root={small_cifar}"):
        cifar10.load(cifar10.Config(root=str(small_cifar / "test")))
    with pytest.raises(UserError, match="mode='x'"):
        cifar10.load(cifar10.Config(root=str(small_cifar), mode="x"))
    make(small_cifar, "test/loose.png")
    with pytest.raises(UserError, match="in no class folder"):
        cifar10.load(cifar10.Config(root=str(small_cifar)))


@pytest.fixture
def small_grocery(tmp_path: Path) -> Path:
    return look_alike_classes.grocery(tmp_path / "grocery")


def test_grocery_fine_and_coarse_search_train(small_grocery: Path) -> None:
    fine = grocery.load(grocery.Config(root=str(small_grocery)))
    coarse = grocery.load(grocery.Config(root=str(small_grocery), task="coarse"))
    assert fine.queries.paths == ("test/b.jpg", "test/c.jpg")
    assert fine.gallery.paths == ("train/a 1.jpg", "train/b.jpg", "train/c.jpg")
    assert fine.gallery.class_names == ("Pink-Lady", "Granny", "Oatly")
    assert coarse.gallery.class_names == ("Apple", "Milk")
    assert lists(fine.relevant) == [[1], [2]]
    assert lists(coarse.relevant) == [[0, 1], [2]]
    assert fine.level == coarse.level == "category"
    assert fine.fit is not None
    assert fine.fit.paths == fine.gallery.paths


def test_grocery_iconic_searches_test(small_grocery: Path) -> None:
    make(small_grocery, "iconic-images/Packages/Oatly_Iconic.jpg")
    task = grocery.load(grocery.Config(root=str(small_grocery), task="iconic"))
    assert task.level == "instance"
    assert task.queries.paths == (
        "iconic/Pink-Lady_Iconic.jpg",
        "iconic/Granny_Iconic.jpg",
        "iconic-images/Packages/Oatly_Iconic.jpg",
    )
    assert lists(task.relevant) == [[], [0], [1]]
    assert task.fit is not None
    assert task.fit.paths[0].startswith("train/")


def test_grocery_images_by_split(small_grocery: Path) -> None:
    sizes = {
        split: len(grocery.images(grocery.Config(root=str(small_grocery), split=split)))
        for split in ("train", "val", "test", "iconic")
    }
    assert sizes == {"train": 3, "val": 1, "test": 2, "iconic": 3}


def test_grocery_mistakes(small_grocery: Path) -> None:
    with pytest.raises(UserError, match=f"try data.root={small_grocery}"):
        grocery.load(grocery.Config(root=str(small_grocery.parent)))
    with pytest.raises(UserError, match="task='fin'"):
        grocery.load(grocery.Config(root=str(small_grocery), task="fin"))
    (small_grocery / "test.txt").write_text("test/b.jpg, 9, 0\n")
    with pytest.raises(UserError, match="fine class 9 of test is not in"):
        grocery.load(grocery.Config(root=str(small_grocery)))
    (small_grocery / "train.txt").write_text("train/b.jpg 9 0\n")
    with pytest.raises(UserError, match="has 1 columns, expected 3"):
        grocery.load(grocery.Config(root=str(small_grocery)))
    (small_grocery / "train.txt").unlink()
    with pytest.raises(UserError, match=r"train\.txt' is missing"):
        grocery.load(grocery.Config(root=str(small_grocery)))


@pytest.fixture
def small_ukbench(tmp_path: Path) -> Path:
    return look_alikes.ukbench(tmp_path / "ukbench")


def test_ukbench_can_count_the_query_itself(small_ukbench: Path) -> None:
    task = ukbench.load(ukbench.Config(root=str(small_ukbench), self_match="counted"))
    assert len(task.queries) == len(task.gallery) == 8
    assert lists(task.relevant) == [[0, 1, 2, 3]] * 4 + [[4, 5, 6, 7]] * 4
    assert lists(task.ignored) == [[]] * 8
    assert task.protocol.self_match == "counted"
    assert task.level == "instance"


def test_ukbench_leaves_the_query_itself_out(small_ukbench: Path) -> None:
    task = ukbench.load(ukbench.Config(root=str(small_ukbench)))
    assert lists(task.relevant)[:2] == [[1, 2, 3], [0, 2, 3]]
    assert lists(task.ignored)[:2] == [[0], [1]]
    assert task.protocol.self_match == "ignored"


def test_ukbench_distractors_join_under_a_common_root(small_ukbench: Path, tmp_path: Path) -> None:
    make(tmp_path / "more" / "photos", "x/1.jpg", "2.jpg")
    extra = str(tmp_path / "more" / "photos")
    task = ukbench.load(ukbench.Config(root=str(small_ukbench), distractors=extra))
    assert task.queries.root == tmp_path.resolve()
    assert task.queries.paths[0] == "ukbench/ukbench00000.jpg"
    assert task.gallery.paths[-2:] == ("more/photos/2.jpg", "more/photos/x/1.jpg")
    assert all(task.gallery.file(i).exists() for i in range(len(task.gallery)))
    assert lists(task.relevant)[:2] == [[1, 2, 3], [0, 2, 3]]
    assert lists(task.ignored) == [[i] for i in range(8)]
    with pytest.raises(UserError, match="holds images of the dataset too"):
        ukbench.load(ukbench.Config(root=str(small_ukbench), distractors=str(tmp_path)))


def test_ukbench_mistakes(small_ukbench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=f"try data.root={small_ukbench}"):
        ukbench.load(ukbench.Config(root=str(small_ukbench.parent)))
    said: list[str] = []
    monkeypatch.setattr(ukbench, "say", said.append)
    (small_ukbench / "ukbench00005.jpg").unlink()
    assert lists(ukbench.load(ukbench.Config(root=str(small_ukbench))).relevant)[4:] == [
        [5, 6],
        [4, 6],
        [4, 5],
    ]
    assert "7 photos of 2 objects" in said[0]


def _unpack(name: str, to: Path) -> Path:
    archive = ARCHIVES / name
    if not archive.exists():
        pytest.skip(f"{name} is not beside the repository (../shared/data)")
    tarballs.unpack(archive, to)
    return to


@pytest.mark.slow
def test_real_grocery(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = str(_unpack("grocery_all_192.tar", tmp_path_factory.mktemp("grocery")) / "grocery")
    splits = {"train": 2640, "val": 296, "test": 2485, "iconic": 81}
    for split, count in splits.items():
        images = grocery.images(grocery.Config(root=root, split=split))
        assert len(images) == count
        assert all(images.file(i).is_file() for i in range(count))
        assert len(images.class_names) == 81
    coarse = grocery.load(grocery.Config(root=root, task="coarse"))
    assert len(coarse.gallery.class_names) == 43
    iconic = grocery.load(grocery.Config(root=root, task="iconic"))
    assert (len(iconic.queries), len(iconic.gallery)) == (81, 2485)
    assert iconic.num_queries_with_positives == 81


@pytest.mark.slow
def test_real_ukbench(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = _unpack("ukbench1000_240.tar", tmp_path_factory.mktemp("ukbench")) / "ukbench"
    task = ukbench.load(ukbench.Config(root=str(root)))
    assert len(task.queries) == len(task.gallery) == 1000
    assert {len(relevant) for relevant in task.relevant} == {3}


@pytest.mark.slow
def test_real_cifar(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = str(_unpack("cifar10_jpg.tar.xz", tmp_path_factory.mktemp("cifar")))
    assert len(cifar10.images(cifar10.Config(root=root))) == 50_000
    assert len(cifar10.images(cifar10.Config(root=root, images_split="test"))) == 10_000
    task = cifar10.load(cifar10.Config(root=root, limit_per_class=200))
    assert len(task.queries) == 2000
    assert {len(relevant) for relevant in task.relevant} == {199}
