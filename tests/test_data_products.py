"""Stanford Online Products and In-Shop: small look-alikes against a double loop."""

from pathlib import Path
from typing import Any

import look_alike_classes as made
import pytest
from look_alikes import expected, lists

from ssl_retrieval.data import inshop, stanford_online_products
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import Task


def answers(task: Task) -> list[tuple[list, list]]:
    return list(zip(lists(task.relevant), lists(task.ignored), strict=True))


# Products


def sold(task: str) -> list[tuple[str, int]]:
    part = 0 if task == "product" else 1
    photos = made.PRODUCTS["test"]
    return [(made.product_path("test", i), photo[part]) for i, photo in enumerate(photos)]


@pytest.mark.parametrize(("task_name", "level"), [("product", "instance"), ("kind", "category")])
def test_products_search_among_the_test_list(tmp_path: Path, task_name: str, level: str) -> None:
    root = made.stanford_online_products(tmp_path / "sop")
    cfg = stanford_online_products.Config(root=str(root), task=task_name)
    task = stanford_online_products.load(cfg)
    photos = sold(task_name)
    assert [*task.queries.paths] == [*task.gallery.paths] == [path for path, _ in photos]
    assert answers(task) == expected(photos, photos)
    assert task.level == level
    assert {"hit_rate@1", "hit_rate@10", "hit_rate@100", "hit_rate@1000"} <= set(task.metrics)
    assert task.fit is not None
    assert task.fit.paths == stanford_online_products.images(cfg).paths
    assert len(task.fit) == len(made.PRODUCTS["train"])
    if task_name == "kind":
        assert task.gallery.class_names == ("chair", "kettle")


def test_products_in_part(tmp_path: Path) -> None:
    root = str(made.stanford_online_products(tmp_path / "sop"))
    cfg = stanford_online_products.Config(root=root, task="kind", queries_per_class=1)
    task = stanford_online_products.load(cfg)
    assert (len(task.queries), len(task.gallery)) == (2, 6)
    assert sorted(map(len, task.relevant)) == [1, 3]
    assert task.name == "stanford_online_products-kind-1-queries-per-class-seed-0"


def test_products_mistakes(tmp_path: Path) -> None:
    root = made.stanford_online_products(tmp_path / "sop")

    def load(**options: Any) -> Task:
        return stanford_online_products.load(
            stanford_online_products.Config(**({"root": str(root)} | options))
        )

    with pytest.raises(UserError, match=r"data.task='products'.*did you mean 'product'"):
        load(task="products")
    with pytest.raises(UserError, match=f"try data.root={root}"):
        load(root=str(tmp_path))
    (root / "Ebay_train.txt").write_text(f"header\n1 3 1 {made.product_path('train', 0)}\n")
    with pytest.raises(UserError, match="product 3 stands in both lists"):
        load()
    (root / "Ebay_test.txt").write_text("header\n1 3 1\n")
    with pytest.raises(UserError, match=r"Ebay_test.txt', line 2: image product kind path are needed"):
        load()
    (root / "Ebay_test.txt").write_text("header\n1 3 1 chair_final/9.JPG\n2 3 1 chair_final/9.JPG\n")
    with pytest.raises(UserError, match=r"listed twice: 'chair_final/9.JPG'"):
        load()
    (root / "Ebay_test.txt").unlink()
    with pytest.raises(UserError, match=r"no 'Ebay_test.txt' .*download Stanford_Online_Products.zip"):
        load()


# Clothes


def clothes(part: str) -> list[tuple[str, int]]:
    return [(made.garment_path(i), photo[1]) for i, photo in enumerate(made.CLOTHES) if photo[0] == part]


@pytest.mark.parametrize("layout", ["flat", "as downloaded"])
def test_clothes_search_the_gallery(tmp_path: Path, layout: str) -> None:
    root = made.inshop(tmp_path / "inshop")
    prefix = ""
    if layout == "as downloaded":
        (root / "Eval").mkdir()
        (root / "list_eval_partition.txt").rename(root / "Eval" / "list_eval_partition.txt")
        (root / "Img").mkdir()
        (root / "img").rename(root / "Img" / "img")
        prefix = "Img/"
    task = inshop.load(inshop.Config(root=str(root)))
    queries, gallery, train = (clothes(part) for part in ("query", "gallery", "train"))
    assert [*task.queries.paths] == [prefix + path for path, _ in queries]
    assert [*task.gallery.paths] == [prefix + path for path, _ in gallery]
    assert answers(task) == expected(queries, gallery)
    assert task.fit is not None
    assert [*task.fit.paths] == [prefix + path for path, _ in train]
    assert {"hit_rate@1", "hit_rate@10", "hit_rate@20", "hit_rate@30"} <= set(task.metrics)
    assert inshop.images(inshop.Config(root=str(root))).paths == task.fit.paths


def test_clothes_mistakes(tmp_path: Path) -> None:
    root = made.inshop(tmp_path / "inshop")
    cfg = inshop.Config(root=str(root))
    file = root / "list_eval_partition.txt"
    text = file.read_text()
    for old, new, complaint in [
        (" query", " val", "'val' is none of train, query, gallery"),
        (" query", " train", "has no query photo"),
        ("id_00000001 train", "id_00000002 train", "garment id_00000002 is both for training and for test"),
        ("id_00000001 train", "train", r"line 3: path garment part are needed"),
    ]:
        file.write_text(text.replace(old, new))
        with pytest.raises(UserError, match=complaint):
            inshop.load(cfg)
    file.write_text(text)
    (root / made.garment_path(3)).unlink()
    with pytest.raises(UserError, match=r"1 of 7 images .*03_1_front.jpg\)"):
        inshop.load(cfg)
    file.unlink()
    with pytest.raises(UserError, match=r"no 'list_eval_partition.txt' .*download img.zip"):
        inshop.load(cfg)
