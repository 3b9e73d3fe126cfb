"""A user's own folder, in each of its layouts."""

from pathlib import Path

import pytest

from ssl_retrieval.data import folder
from ssl_retrieval.data.folder import Config
from ssl_retrieval.errors import UserError


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(folder, "say", lines.append)
    return lines


def make(root: Path, *names: str) -> str:
    """Loaders list files without opening them, so empty ones do."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return str(root)


def test_flat_folder_has_no_labels(tmp_path: Path, said: list[str]) -> None:
    cfg = Config(root=make(tmp_path, "b.jpg", "a.jpg"))
    assert folder.images(cfg).labels is None
    assert folder.load(cfg).num_queries_with_positives == 0
    assert said == []


def test_subfolders_are_classes_at_any_depth(tmp_path: Path, said: list[str]) -> None:
    task = folder.load(Config(root=make(tmp_path, "cat/x/1.jpg", "cat/y/2.jpg", "dog/1.jpg", "cat/3.jpg")))
    assert task.queries.paths == ("cat/3.jpg", "cat/x/1.jpg", "cat/y/2.jpg", "dog/1.jpg")
    assert task.queries.class_names == ("cat", "dog")
    assert [r.tolist() for r in task.relevant] == [[1, 2], [0, 2], [0, 1], []]
    assert [i.tolist() for i in task.ignored] == [[0], [1], [2], [3]]
    assert task.level == "category"
    assert task.fit is None
    assert task.name == tmp_path.name
    assert said == []


def test_mixed_layout_has_no_labels_and_says_so(tmp_path: Path, said: list[str]) -> None:
    root = make(tmp_path, "cat/1.jpg", "dog/1.jpg", "loose.jpg")
    assert folder.images(Config(root=root)).labels is None
    assert len(said) == 1
    assert "both directly in" in said[0]
    with pytest.raises(UserError, match="1 images lie directly in"):
        folder.images(Config(root=root, labels="folder"))


def test_a_single_subfolder_is_no_class_unless_told(tmp_path: Path, said: list[str]) -> None:
    root = make(tmp_path, "images/1.jpg", "images/2.jpg")
    assert folder.images(Config(root=root)).labels is None
    assert "one subfolder only" in said[0]
    assert folder.images(Config(root=root, labels="folder")).class_names == ("images",)


def test_labels_none_ignores_subfolders(tmp_path: Path) -> None:
    root = make(tmp_path, "cat/1.jpg", "dog/1.jpg")
    assert folder.images(Config(root=root, labels="none")).labels is None
    with pytest.raises(UserError, match=r"data\.labels='flat'"):
        folder.images(Config(root=root, labels="flat"))


def test_queries_search_in_the_gallery(tmp_path: Path) -> None:
    root = make(
        tmp_path, "val/cat/1.jpg", "val/emu/1.jpg", "train/cat/1.jpg", "train/cat/2.jpg", "train/ox/1.jpg"
    )
    cfg = Config(root=root, queries="val", gallery="train/")
    task = folder.load(cfg)
    assert task.queries.paths == ("val/cat/1.jpg", "val/emu/1.jpg")
    assert task.gallery.paths == ("train/cat/1.jpg", "train/cat/2.jpg", "train/ox/1.jpg")
    assert task.queries.class_names == task.gallery.class_names == ("cat", "emu", "ox")
    assert [r.tolist() for r in task.relevant] == [[0, 1], []]
    assert [i.tolist() for i in task.ignored] == [[], []]
    assert task.fit is task.gallery
    assert folder.images(cfg).paths == task.gallery.paths


def test_queries_and_gallery_go_together_and_need_classes(tmp_path: Path) -> None:
    root = make(tmp_path, "val/1.jpg", "train/cat/1.jpg")
    with pytest.raises(UserError, match="go together"):
        folder.load(Config(root=root, queries="val"))
    with pytest.raises(UserError, match="one subfolder per class"):
        folder.load(Config(root=root, queries="val", gallery="train"))
    with pytest.raises(UserError, match="does not exist"):
        folder.load(Config(root=root, queries="vall", gallery="train"))


def test_limit_per_class(tmp_path: Path) -> None:
    root = make(tmp_path, *(f"{name}/{i}.jpg" for name in ("cat", "dog") for i in range(12)))
    limited = folder.images(Config(root=root, limit_per_class=3))
    assert limited.paths == ("cat/0.jpg", "cat/1.jpg", "cat/2.jpg", "dog/0.jpg", "dog/1.jpg", "dog/2.jpg")
    with pytest.raises(UserError, match="at least 1"):
        folder.images(Config(root=root, limit_per_class=0))
