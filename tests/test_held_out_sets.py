"""The sets that the rule of `adapt` has never met: what is taken from the packages, and under which class."""

import io
import tarfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tarballs
from PIL import Image
from tool_scripts import load_tool

from ssl_retrieval.data import manifest


@pytest.fixture(scope="module")
def tool() -> Any:
    return load_tool("held_out_sets")


def picture(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA", (8, 8)).save(file)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder in which the Debian packages are unpacked and the npm package is not."""
    root = tmp_path_factory.mktemp("packages")
    images = root / "wesnoth-1.16-data/usr/share/games/wesnoth/1.16/data/core/images"
    for number in range(1, 13):
        picture(images / f"units/elves/archer-bow-{number}.png")
        picture(images / f"units/drakes/glider-fly-{number}.png")
    picture(images / "units/elves/archer.png")
    picture(images / "units/elves/druid.png")
    for kind in ("water", "sand", "misc"):
        picture(images / f"terrain/{kind}/deep/{kind}.png")
    stamps = root / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps"
    for kind, count in {"animals": 11, "medical": 3, "symbols": 20}.items():
        for number in range(count):
            picture(stamps / kind / "some" / f"{number}.png")
    with tarfile.open(root / "pokesprite-images-1.0.0.tgz", "w:gz") as archive:
        for part in ("regular", "shiny"):
            for name in ("mew", "onix"):
                content = io.BytesIO()
                Image.new("RGBA", (8, 8)).save(content, "PNG")
                entry = tarfile.TarInfo(f"package/pokemon-gen8/{part}/{name}.png")
                entry.size = content.tell()
                content.seek(0)
                archive.addfile(entry, content)
    return root


def test_frames_are_kept_evenly_and_races_take_the_plain_figure(tool: Any, packages: Path) -> None:
    rows = tool.wesnoth(packages)
    frames = [Path(row["path"]).stem for row in rows["units"] if row["instance"] == "drakes/glider"]
    assert frames == [f"glider-fly-{number}" for number in (1, 3, 5, 8, 10, 12)]
    assert {row["instance"] for row in rows["units"]} == {"drakes/glider", "elves/archer"}
    races = {row["label"]: Path(row["path"]).name for row in rows["races"]}
    assert races == {"elves": "archer.png", "drakes": "glider-fly-1.png"}
    assert [row["label"] for row in rows["terrain"]] == ["sand", "water"]


def test_small_folders_and_signs_are_no_stamps(tool: Any, packages: Path) -> None:
    assert [row["label"] for row in tool.stamps(packages)] == ["animals"] * 11


def test_tables_are_read_by_the_loader(
    tool: Any,
    packages: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def unpack_npm_only(folder: Path, out: Path) -> None:
        for name in ("wesnoth-1.16-data", "tuxpaint-stamps-default"):
            (out / name).symlink_to(folder / name, target_is_directory=True)
        tarballs.unpack(folder / "pokesprite-images-1.0.0.tgz", out / "pokesprite-images")

    monkeypatch.setattr(tool, "unpack", unpack_npm_only)
    monkeypatch.setattr("sys.argv", ["held_out_sets.py", str(packages), str(tmp_path / "sets")])
    tool.main()
    assert "sprites: 4 pictures, 2 classes or objects" in capsys.readouterr().out
    assert not pd.read_csv(tmp_path / "sets/terrain.csv")["path"].str.startswith("/").any()
    task = manifest.load(manifest.Config(file=str(tmp_path / "sets/sprites.csv"), level="instance"))
    assert (len(task.queries), len(task.gallery)) == (2, 2)
    usual = manifest.images(manifest.Config(file=str(tmp_path / "sets/sprites.csv"), split="regular"))
    assert all("/regular/" in path for path in usual.paths)


def test_a_package_that_is_not_there_is_named(tool: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"0 files tuxpaint-stamps-default_\*\.deb, one is needed"):
        tool.unpack(tmp_path, tmp_path / "out")
