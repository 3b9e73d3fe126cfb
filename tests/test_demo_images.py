"""The embedded emoji: the archive, its loader, and the script that makes it."""

import io
import multiprocessing
import re
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tool_scripts import load_tool

from ssl_retrieval.data import emoji
from ssl_retrieval.errors import UserError

REPO = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    return load_tool("build_demo_emoji")


def index() -> pd.DataFrame:
    with zipfile.ZipFile(emoji.ARCHIVE) as archive:
        return pd.read_csv(archive.open("index.csv"))


def test_archive_is_small_and_every_picture_is_64_px_rgb() -> None:
    assert emoji.ARCHIVE.stat().st_size < 8e6
    with zipfile.ZipFile(emoji.ARCHIVE) as archive:
        names = [name for name in archive.namelist() if name.endswith(".webp")]
        forms = {(i.format, i.size, i.mode) for i in (Image.open(archive.open(name)) for name in names)}
    table = index()
    assert len(names) == 3 * len(table) + (table["split"] == "test").sum()
    assert forms == {("WEBP", (64, 64), "RGB")}


def test_licences_are_shipped_and_every_folder_is_attributed() -> None:
    licenses = emoji.ARCHIVE.parent / "licenses"
    attribution = (licenses / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for name in re.findall(r"`([\w.-]+\.txt)`", attribution):
        assert (licenses / name).stat().st_size > 1000
    with zipfile.ZipFile(emoji.ARCHIVE) as archive:
        top = {name.partition("/")[0] for name in archive.namelist()}
    assert top == {"google", "twitter", "fluent", "moved", "index.csv"}
    assert all(f"| `{name}" in attribution for name in top)


def test_split_holds_a_third_of_each_group_and_no_motif_on_both_sides(builder: ModuleType) -> None:
    table = index()
    share = (table["split"] == "test").groupby(table["group"]).mean()
    assert share.between(0.3, 0.36).all()
    motif = [
        builder.motif(row.codepoints, row.subgroup, row.name)
        for row in table.itertuples(index=False, name="Row")
    ]
    assert table["split"].groupby(motif).nunique().max() == 1


@pytest.mark.parametrize("task", ["instance", "moved"])
def test_instance_tasks_seek_the_same_code_points_by_other_vendors(root: str, task: str) -> None:
    loaded = emoji.load(emoji.Config(root=root, task=task))
    assert loaded.level == "instance"
    assert loaded.queries.paths[0].startswith("moved/" if task == "moved" else "google/")
    for path, relevant, ignored in zip(loaded.queries.paths, loaded.relevant, loaded.ignored, strict=True):
        file = path.partition("/")[2]
        assert {loaded.gallery.paths[i] for i in relevant} == {f"twitter/{file}", f"fluent/{file}"}
        assert len(ignored) == 0
    assert all(loaded.queries.file(i).is_file() for i in range(len(loaded.queries)))


def test_category_task_ignores_the_same_emoji(root: str) -> None:
    task = emoji.load(emoji.Config(root=root, task="category"))
    assert task.level == "category"
    groups = np.array([path.split("/")[1] for path in task.gallery.paths])
    for path, relevant, ignored in zip(task.queries.paths, task.relevant, task.ignored, strict=True):
        _, group, file = path.split("/")
        assert set(groups[relevant]) == {group}
        assert {task.gallery.paths[i].rpartition("/")[2] for i in ignored} == {file}
        assert len(relevant) + len(ignored) == (groups == group).sum()


def test_training_images_are_unlabelled_and_show_no_test_emoji(root: str) -> None:
    train = emoji.images(emoji.Config(root=root))
    task = emoji.load(emoji.Config(root=root))
    assert train.labels is None
    assert len(train) > 3000
    tested = {path.rpartition("/")[2] for path in (*task.queries.paths, *task.gallery.paths)}
    assert tested.isdisjoint(path.rpartition("/")[2] for path in train.paths)
    assert task.fit is not None
    assert task.fit.paths == train.paths


@pytest.mark.parametrize("config", [{"task": "instances"}, {"split": "val"}, {"on_error": "ignore"}])
def test_wrong_values_are_refused_with_the_right_ones(root: str, config: dict[str, str]) -> None:
    cfg = emoji.Config(root=root, **config)
    with pytest.raises(UserError, match=r"use one of \w+, \w+"):
        emoji.images(cfg) if "split" in config else emoji.load(cfg)


def small_zip(path: Path, name: str = "a/b.txt", text: str = "x") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, text)
    return path


def test_unpacks_once_and_anew_when_the_archive_changes(tmp_path: Path) -> None:
    archive = small_zip(tmp_path / "1.zip")
    folder = emoji.unpack(archive, tmp_path / "root")
    (folder / "a/b.txt").write_text("touched")
    assert emoji.unpack(archive, tmp_path / "root") == folder
    assert (folder / "a/b.txt").read_text() == "touched"
    other = emoji.unpack(small_zip(archive, text="y"), tmp_path / "root")
    assert (other / "a/b.txt").read_text() == "y"
    assert sorted(p.name for p in (tmp_path / "root").iterdir()) == sorted([folder.name, other.name])


@pytest.mark.parametrize("name", ["../out.txt", "a/../../out.txt", "/out.txt", "..\\out.txt"])
def test_a_member_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    archive = small_zip(tmp_path / "bad.zip", name)
    with pytest.raises(UserError, match="leaves the folder"):
        emoji.unpack(archive, tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == []


def test_a_root_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot unpack"):
        emoji.unpack(emoji.ARCHIVE, tmp_path / "file")


def test_processes_that_unpack_at_once_agree(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        folders = pool.starmap(emoji.unpack, [(emoji.ARCHIVE, tmp_path)] * 6)
    assert set(folders) == set(tmp_path.iterdir())
    assert len(set(folders)) == 1
    assert (
        sum(path.suffix == ".webp" for path in folders[0].rglob("*"))
        == 3 * len(index()) + (index()["split"] == "test").sum()
    )


def drawings(seed: int) -> dict[str, Image.Image]:
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 64, 64, 4), np.uint8)
    return dict(zip(emoji.VENDORS, map(Image.fromarray, pixels), strict=True))


def test_builder_writes_the_same_bytes_twice_and_drops_repeated_drawings(
    tmp_path: Path, builder: ModuleType
) -> None:
    made = [
        builder.Emoji(f"1f60{i}", f"FACE {i}", "Smileys & Emotion", "face", drawings(i)) for i in range(6)
    ]
    repeated = builder.Emoji(
        "1f6ff", "AGAIN", "Objects", "tool", drawings(99) | {"fluent": drawings(0)["fluent"]}
    )
    kept = builder.distinct([*made, repeated])
    assert kept == made
    for name in ("1.zip", "2.zip"):
        builder.write_archive(kept, tmp_path / name)
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()
    table = pd.read_csv(io.BytesIO(zipfile.ZipFile(tmp_path / "1.zip").read("index.csv")))
    assert (table["split"] == "test").sum() == 2
    names = zipfile.ZipFile(tmp_path / "1.zip").namelist()
    assert sum(name.startswith("moved/smileys-emotion/") for name in names) == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1f3c4-200d-2640-fe0f", "1f3c4"),
        ("1f468-200d-1f680", "1f9d1-200d-1f680"),
        ("1f9d1-200d-1f384", "1f385"),
        ("1f6b6-200d-27a1-fe0f", "1f6b6-200d-2642-fe0f"),
    ],
)
def test_variants_share_a_motif(builder: ModuleType, one: str, other: str) -> None:
    assert builder.motif(one, "person-role", "A") == builder.motif(other, "person-role", "B")
