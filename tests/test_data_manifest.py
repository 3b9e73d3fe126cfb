"""A table of the user's own images: what it means, and what is wrong with it."""

from pathlib import Path

import pandas as pd
import pytest

from ssl_retrieval.data import manifest
from ssl_retrieval.data.manifest import Config
from ssl_retrieval.errors import UserError


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(manifest, "say", lines.append)
    return lines


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "photos.csv"


def config(file: Path, text: str, **options: str) -> Config:
    file.write_text(text, encoding="utf-8")
    return Config(file=str(file), **options)


def lists(arrays: tuple) -> list[list[int]]:
    return [array.tolist() for array in arrays]


def test_labels_only_is_leave_one_out(table: Path) -> None:
    task = manifest.load(config(table, "path,label\na.jpg,cat\nb.jpg,dog\nc.jpg,cat\nd.jpg,\n"))
    assert task.level == "category"
    assert task.name == "photos"
    assert task.queries.root == table.parent
    assert lists(task.relevant) == [[2], [], [0], []]
    assert lists(task.ignored) == [[0], [1], [2], [3]]
    assert task.queries.labels is None


def test_instances_and_roles(table: Path) -> None:
    text = (
        "path,label,instance,role\n"
        "q.jpg,shoe,1,query\n"
        "a.jpg,shoe,1,gallery\n"
        "b.jpg,shoe,2,Both\n"
        "c.jpg,shoe,2,\n"
        "d.jpg,shoe,1,distractor\n"
    )
    task = manifest.load(config(table, text))
    assert task.level == "instance"
    assert task.queries.paths == ("q.jpg", "b.jpg", "c.jpg")
    assert task.gallery.paths == ("a.jpg", "b.jpg", "c.jpg", "d.jpg")
    assert lists(task.relevant) == [[0], [2], [1]]
    assert lists(task.ignored) == [[], [1], [2]]
    by_label = manifest.load(Config(file=str(table), level="category"))
    assert lists(by_label.relevant) == [[0, 1, 2], [0, 2], [0, 1]]


def test_split_picks_rows_and_train_fits(table: Path) -> None:
    text = "path,label,split\na.jpg,x,train\nb.jpg,x,test\nc.jpg,x,test\n"
    task = manifest.load(config(table, text, split="test"))
    assert task.queries.paths == ("b.jpg", "c.jpg")
    assert task.name == "photos-test"
    assert task.fit is not None
    assert task.fit.paths == ("a.jpg",)
    assert manifest.images(Config(file=str(table), split="train")).paths == ("a.jpg",)
    assert len(manifest.images(Config(file=str(table)))) == 3
    assert manifest.load(Config(file=str(table))).fit is None


def test_images_are_labelled_when_all_have_a_label(table: Path) -> None:
    images = manifest.images(config(table, "path,label\na.jpg,dog\nb.jpg,cat\n"))
    assert images.labels is not None
    assert images.labels.tolist() == [1, 0]
    assert images.class_names == ("cat", "dog")


def test_parquet_gives_the_same_as_csv(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"path": ["a.jpg", "b.jpg", "c.jpg"], "label": [3, 4, 3], "role": ["both", None, ""]}
    )
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv", index=False)
    tasks = [manifest.load(Config(file=str(tmp_path / name))) for name in ("t.parquet", "t.csv")]
    assert lists(tasks[0].relevant) == lists(tasks[1].relevant) == [[2], [], [0]]
    assert tasks[0].queries.class_names == tasks[1].queries.class_names == ("3", "4")


def test_names_that_look_like_missing_values_stay(table: Path) -> None:
    images = manifest.images(config(table, "\ufeffpath,label\na.jpg,NA\nb.jpg,null\n"))
    assert images.class_names == ("NA", "null")


def test_root_is_another_folder_when_set(table: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    cfg = config(table, "path\n./a//b.jpg\n", root=str(tmp_path / "elsewhere"))
    assert manifest.images(cfg).file(0) == tmp_path / "elsewhere" / "a" / "b.jpg"


def test_unknown_columns_are_named(table: Path, said: list[str]) -> None:
    manifest.images(config(table, "path,lable,width\na.jpg,cat,3\n"))
    assert len(said) == 2
    assert "'lable' is ignored (not 'label'?)" in said[0]
    assert said[1].endswith("'width' is ignored")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("pth,label\na.jpg,x\n", {}, r"no column 'path': did you mean 'pth'"),
        ("file,label\na.jpg,x\n", {}, r"no column 'path': it has file, label"),
        ("path,label\n", {}, "has no rows"),
        ("", {}, "cannot read"),
        ("path\na.jpg\na.jpg\n", {}, "lists 'a.jpg' twice"),
        ("path\na.jpg\n./a.jpg\n", {}, "lists 'a.jpg' twice"),
        ("path\na.jpg\n/b.jpg\n", {}, r"data row 2: path '/b\.jpg' must be relative"),
        ("path\n../b.jpg\n", {}, "data row 1: path .* must be relative"),
        ("path,label\n,x\n", {}, "data row 1: the path is empty"),
        ("path,role\na.jpg,qury\n", {}, "role='qury'.*did you mean 'query'"),
        ("path,role\na.jpg,query\n", {}, "1 queries and 0 gallery images"),
        ("path,role\na.jpg,gallery\n", {}, "0 queries and 1 gallery images"),
        ("path,split\na.jpg,test\n", {"split": "tst"}, "did you mean 'test'"),
        ("path\na.jpg\n", {"split": "test"}, "has no column 'split'"),
        ("path,label\na.jpg,x\n", {"level": "instance"}, "no values in column 'instance'"),
        ("path\na.jpg\n", {"level": "object"}, "data.level='object'"),
        ("path\na.jpg\n", {"root": "/nowhere/at/all"}, "does not exist"),
    ],
)
def test_mistakes_get_one_clear_line(table: Path, text: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        manifest.load(config(table, text, **options))
    assert "\n" not in str(caught.value).strip()


def test_the_table_itself_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").touch()
    for file, message in (
        ("", "not set"),
        ("b.csv", "does not exist"),
        ("a.xlsx", "give a .csv or .parquet"),
    ):
        with pytest.raises(UserError, match=message):
            manifest.load(Config(file=file and str(tmp_path / file)))
