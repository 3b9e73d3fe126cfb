"""Tables of matching pairs: what is read, what is refused, and clusters against union-find."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl_retrieval.errors import UserError
from ssl_retrieval.pairs import clusters, read_pairs

PATHS = ("a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg", "NA")


def write(folder: Path, *rows: str, header: str = "path_a,path_b") -> Path:
    file = folder / "pairs.csv"
    file.write_text("\n".join([header, *rows]) + "\n")
    return file


def test_pairs_are_numbers_of_images(tmp_path: Path) -> None:
    file = write(tmp_path, "b/1.jpg,a/1.jpg", " a/2.jpg ,./b/2.jpg", "NA,a/1.jpg")
    found = read_pairs(file, PATHS)
    assert found.dtype == np.int64
    assert found.tolist() == [[2, 0], [1, 3], [4, 0]]


def test_other_columns_and_their_order_do_not_matter(tmp_path: Path) -> None:
    file = write(tmp_path, "9,a/2.jpg,a/1.jpg", header="inliers,path_b, path_a ")
    assert read_pairs(file, PATHS).tolist() == [[0, 1]]


def test_a_parquet_file_is_read_too(tmp_path: Path) -> None:
    file = tmp_path / "pairs.parquet"
    pd.DataFrame({"path_a": ["a/1.jpg"], "path_b": ["b/2.jpg"]}).to_parquet(file)
    assert read_pairs(file, PATHS).tolist() == [[0, 3]]


def test_pairs_of_unreadable_images_are_left_out_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, "a/1.jpg,broken.jpg", "a/1.jpg,a/2.jpg")
    assert read_pairs(file, PATHS, left_out=["broken.jpg"]).tolist() == [[0, 1]]
    assert "1 pairs are left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["a/1.jpg,a/2.jpg", "a/1.jpg,c.jpg"], "data row 2: 'c.jpg' is none of the training images"),
        (["a/1.jpg,../a/1.jpg"], "data row 1: '../a/1.jpg' is none of the training images"),
        (["a/1.jpg,./a/1.jpg"], "data row 1: 'a/1.jpg' is paired with itself"),
        (
            ["a/1.jpg,a/2.jpg", "b/1.jpg,b/2.jpg", "a/2.jpg,a/1.jpg"],
            "data row 3: 'a/2.jpg' and 'a/1.jpg' are",
        ),
        (["a/1.jpg,"], "data row 1: path_b is empty"),
        ([], "has no rows"),
    ],
)
def test_a_wrong_row_is_one_line(tmp_path: Path, rows: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        read_pairs(write(tmp_path, *rows), PATHS)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_table_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no column 'path_b': it has path_a, path"):
        read_pairs(write(tmp_path, "a,b", header="path_a,path"), PATHS)
    with pytest.raises(UserError, match=r"method\.pairs=.*gone\.csv' does not exist"):
        read_pairs(tmp_path / "gone.csv", PATHS)
    with pytest.raises(UserError, match=r"give a \.csv or \.parquet file"):
        read_pairs(tmp_path / "pairs.txt", PATHS)
    (tmp_path / "pairs.parquet").write_bytes(b"no table")
    with pytest.raises(UserError, match=r"cannot read method\.pairs="):
        read_pairs(tmp_path / "pairs.parquet", PATHS)


@given(
    num_images=st.integers(1, 12),
    drawn=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=15),
)
def test_clusters_are_those_of_union_find(num_images: int, drawn: list[tuple[int, int]]) -> None:
    pairs = [(a % num_images, b % num_images) for a, b in drawn]
    root = list(range(num_images))
    for a, b in pairs:
        old, new = root[a], root[b]
        root = [new if value == old else value for value in root]
    found = clusters(np.array(pairs, np.int64).reshape(-1, 2), num_images)
    assert found.shape == (num_images,)
    same = found[:, None] == found[None]
    assert (same == (np.array(root)[:, None] == np.array(root)[None])).all()
