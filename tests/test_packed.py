"""Packs are checked when they are opened, and made by one command."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import Command
from made_up_photos import write_flat_photos

from ssl_retrieval import config, plugins
from ssl_retrieval.data import packed as packed_data
from ssl_retrieval.errors import UserError
from ssl_retrieval.packed import Packed, open_pack
from ssl_retrieval.packing import pack
from ssl_retrieval.types import ImageSet


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six pictures, the last one empty."""
    root = write_flat_photos(tmp_path / "photos", 6)
    (root / "5.png").write_bytes(b"")
    return root


@pytest.fixture
def file(photos: Path, tmp_path: Path) -> Path:
    pack(image_set(photos), 8, tmp_path / "p.npy", "skip")
    return tmp_path / "p.npy"


def image_set(root: Path) -> ImageSet:
    return ImageSet(root, tuple(f"{i}.png" for i in range(6)))


def opened(file: Path, **options: str) -> Packed:
    section = {"name": "packed", "root": str(file), **options}
    return packed_data.open_pack(config.plugin_config("dataset", section, "data"))


def change_index(**changes: object) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        index = file.with_suffix(".json")
        index.write_text(json.dumps(json.loads(index.read_text()) | changes))

    return change


def as_the_first_version(file: Path) -> None:
    index = json.loads(file.with_suffix(".json").read_text())
    np.save(file, np.load(file).transpose(0, 3, 1, 2))
    del index["format"], index["version"]
    file.with_suffix(".json").write_text(json.dumps(index))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"more")


def overwrite_header(file: Path) -> None:
    file.write_bytes(b"x" * 40 + file.read_bytes()[40:])


def other_shape(file: Path) -> None:
    np.save(file, np.load(file).reshape(5, 4, 16, 3))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut short": (cut, "is cut short (988 of 1088 bytes)"),
    "too long": (lengthen, "is longer than its index says"),
    "emptied": (lambda file: file.write_bytes(b""), "is cut short (0 of 1088 bytes)"),
    "no array": (overwrite_header, "is damaged"),
    "other shape": (other_shape, "does not fit its index 'p.json'"),
    "later version": (change_index(version=3), "is a pack of version 3, this program reads version 2"),
    "first version": (as_the_first_version, "is a pack of version 1, this program reads version 2"),
    "another index": (change_index(format="annotations"), "is no pack"),
    "no index": (lambda file: file.with_suffix(".json").unlink(), "has no index 'p.json' beside it"),
    "half an index": (lambda file: file.with_suffix(".json").write_text('{"format'), "is damaged"),
    "a list as index": (lambda file: file.with_suffix(".json").write_text("[]"), "is damaged"),
    "index without paths": (change_index(paths=None), "is damaged"),
    "no file": (lambda file: file.unlink(), "does not exist"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_pack_is_named(file: Path, damage: str) -> None:
    do, words = DAMAGES[damage]
    do(file)
    with pytest.raises(UserError) as caught:
        opened(file)
    line = str(caught.value)
    assert words in line
    assert str(file.with_suffix("")) in line
    assert "data pack" in line
    assert "\n" not in line


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_makes_its_own_damaged_pack_anew(photos: Path, file: Path, damage: str) -> None:
    before = [file.with_suffix(suffix).read_bytes() for suffix in (".npy", ".json")]
    DAMAGES[damage][0](file)
    pack(image_set(photos), 8, file, "skip")
    assert [file.with_suffix(suffix).read_bytes() for suffix in (".npy", ".json")] == before


def test_a_pack_of_a_dataset_gives_what_was_packed(photos: Path, file: Path) -> None:
    packed, same = opened(file), pack(image_set(photos), 8, file, "skip")
    assert (packed.pixels == same.pixels).all()
    assert (packed.paths, packed.skipped, packed.key) == (same.paths, same.skipped, same.key)
    assert packed.paths == tuple(f"{i}.png" for i in range(5))
    packed.pixels[:] = 0
    assert open_pack(file).pixels.any()


def test_a_pack_without_some_images_is_refused_when_told_so(file: Path) -> None:
    with pytest.raises(UserError, match=r"without '5.png' \(empty file \(0 bytes\)\)"):
        opened(file, on_error="fail")
    with pytest.raises(UserError, match=r"data\.on_error='stop'"):
        opened(file, on_error="stop")


def test_a_folder_and_nothing_at_all_are_no_pack(photos: Path) -> None:
    with pytest.raises(UserError, match=r"is a folder: give the \.npy file"):
        opened(photos)
    with pytest.raises(UserError, match=r"data\.root is not set"):
        opened(Path(), root="")


@pytest.mark.parametrize("function", ["load", "images"])
def test_stages_that_need_image_files_refuse_a_pack(file: Path, function: str) -> None:
    cfg = packed_data.Config(root=str(file))
    with pytest.raises(UserError, match="serve for pretraining only") as caught:
        getattr(plugins.find("dataset", "packed"), function)(cfg)
    assert str(file) in str(caught.value)


# The command


def test_the_command_packs_a_folder(cli: Command, photos: Path, tmp_path: Path) -> None:
    done = cli("data", "pack", photos, tmp_path / "new" / "p", "size=8")
    file = tmp_path / "new" / "p.npy"
    assert done.code == 0
    assert done.out == f"{file}\n"
    assert "1 unreadable image left out of" in done.err
    assert "5.png: empty file" in done.err
    assert (opened(file).pixels == pack(image_set(photos), 8, tmp_path / "q.npy", "skip").pixels).all()
    assert cli("data", "pack", photos, file, "size=16").code == 0
    assert opened(file).size == 16


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["size=7"], "size=7: must be at least 8"),
        (["size=big"], "wrong value for 'size'"),
        (["sise=64"], "did you mean 'size'"),
        (["64"], "cannot read override '64'"),
        (["on_error=ignore"], "use one of skip, fail"),
        (["size=8", "on_error=fail"], "5.png': empty file"),
    ],
)
def test_the_command_explains_wrong_settings(
    cli: Command, photos: Path, tmp_path: Path, settings: list[str], words: str
) -> None:
    assert words in cli("data", "pack", photos, tmp_path / "p.npy", *settings).user_error()
    assert not (tmp_path / "p.npy").exists()


def test_the_command_explains_wrong_places(cli: Command, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source, target, words in (
        (tmp_path / "nowhere", "p.npy", "does not exist"),
        (tmp_path / "empty", "p.npy", "no image in"),
        (photos, "empty", "is a folder: name a file in it"),
        (photos, "photos/0.png/p.npy", "is a file"),
    ):
        assert words in cli("data", "pack", source, tmp_path / target).user_error()


@pytest.mark.parametrize("name", ["p.npy", "p.json"])
def test_the_command_overwrites_nothing_but_packs(
    cli: Command, photos: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text('{"boxes": [1, 2]}')
    line = cli("data", "pack", photos, tmp_path / "p.npy", "size=8").user_error()
    assert f"{name}' exists and is of no pack" in line
    assert (tmp_path / name).read_text() == '{"boxes": [1, 2]}'


def test_the_command_shows_an_example(cli: Command) -> None:
    assert "ssl-retrieval data pack photos photos.npy size=256" in cli("data", "pack", "--help").out
    assert "pack" in cli("data").out
