"""Reading published lists and looking for the files that they name."""

from pathlib import Path

import pytest
from look_alikes import make

from ssl_retrieval.atomic import atomic_folder
from ssl_retrieval.data.published import fields, published_file, require_files
from ssl_retrieval.errors import UserError


def test_fields_have_their_types_and_empty_lines_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("a header\n1  a/b.jpg\t0.5\n\n2 c.jpg 1e3\r\n")
    rows = fields(file, {"image": int, "path": str, "score": float}, header=1)
    assert rows.to_dict("list") == {"image": [1, 2], "path": ["a/b.jpg", "c.jpg"], "score": [0.5, 1000.0]}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"1 a\n2\n", "line 2: image path are needed, not '2'"),
        (b"1 a b\n", "line 1: image path are needed, not '1 a b'"),
        (b"1.5 a\n", "line 1"),
        (b"\n\n", "has no rows"),
        (b"\xff\xfe", "it is no text in UTF-8"),
    ],
)
def test_a_line_that_does_not_fit_is_named(tmp_path: Path, content: bytes, complaint: str) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(content)
    with pytest.raises(UserError, match=complaint):
        fields(file, {"image": int, "path": str})
    with pytest.raises(UserError, match=r"cannot read .*No such file"):
        fields(tmp_path / "none.txt", {"image": int})


def test_files_are_found_in_their_own_folders(tmp_path: Path) -> None:
    root = make(tmp_path / "set", "1.jpg", "a/1.jpg", "a/b/2.jpg")
    require_files(root, ["1.jpg", "a/1.jpg", "a/b/2.jpg"])
    for path in ("2.jpg", "b/1.jpg", "a/2.jpg"):
        with pytest.raises(UserError, match=rf"1 of 2 images .*\({path}\)"):
            require_files(root, ["1.jpg", path])
    with pytest.raises(UserError, match="leaves its root"):
        require_files(root, ["../set/1.jpg"])
    with pytest.raises(UserError, match="listed twice"):
        require_files(root, ["1.jpg", "1.jpg"])


def test_a_missing_file_has_a_hint_or_an_advice(tmp_path: Path) -> None:
    root = make(tmp_path / "set", "list.txt")
    assert published_file(root, "list.txt", "x") == root / "list.txt"
    with pytest.raises(UserError, match=f"no 'list.txt' in '{tmp_path}': try data.root={root}"):
        published_file(tmp_path, "list.txt", "x")
    with pytest.raises(UserError, match=r"no 'other.txt' .*: get it there"):
        published_file(root, "other.txt", "get it there")


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "folder"

    def interrupted() -> None:
        with atomic_folder(target) as partial:
            (partial / "1").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert list(target.parent.iterdir()) == []
    with atomic_folder(target) as partial:
        (partial / "1").touch()
        assert not target.exists()
    assert [path.name for path in target.parent.rglob("*")] == ["folder", "1"]
    assert target.stat().st_mode & 0o777 == 0o755


def test_of_two_that_make_a_folder_one_wins(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "folder") as partial:
        (partial / "late").touch()
        make(tmp_path / "folder", "early")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["early"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
