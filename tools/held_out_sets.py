"""Make labelled sets of pictures that the rule of `adapt` has never met, from packages that anyone can fetch.

    apt-get download tuxpaint-stamps-default wesnoth-1.16-data && npm pack pokesprite-images
    python tools/held_out_sets.py PACKAGES OUT
    ssl-retrieval study configs/adapt/held_out.yaml roots.held_out=OUT out=runs/held-out

The packages are unpacked into OUT, beside tables for the ``manifest`` loader:

=========== ============================================================================================
units       frames of the figures of a game (Battle for Wesnoth): the same figure in another pose
races       one picture of each figure, and its people as the class
terrain     tiles of the same game, and the kind of ground as the class
stamps      photos and drawings of a painting program for children (Tux Paint), by its folders
sprites     small drawings of monsters (pokesprite): one in other colours searches for the usual one
=========== ============================================================================================
"""

import argparse
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

FRAMES = 6
"""Kept of each figure, evenly."""
TILES = 100
"""Kept of each kind of ground, evenly."""
LEAST_STAMPS = 10
"""Smaller folders are left out."""
NO_GROUND = {
    "embellishments",
    "fog",
    "light",
    "map-specific",
    "masks",
    "misc",
    "off-map",
    "portals",
    "symbols",
    "void",
}
"""Folders of tiles that show no ground."""


def the_one(folder: Path, pattern: str) -> Path:
    """Find a downloaded package."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"{folder}: {len(found)} files {pattern}, one is needed: download it, see --help")
    return found[0]


def unpack(packages: Path, out: Path) -> None:
    """Unpack the three archives."""
    for name in ("tuxpaint-stamps-default", "wesnoth-1.16-data"):
        archive = the_one(packages, f"{name}_*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, out / name], check=True)
    sprites = out / "pokesprite-images"
    sprites.mkdir()
    # Pythons before 3.11.4 cannot keep an archive's entries inside; tar does.
    subprocess.run(["tar", "-xf", the_one(packages, "pokesprite-images-*.tgz"), "-C", sprites], check=True)


def evenly(items: Iterable[Path], count: int) -> list[Path]:
    """Keep so many, evenly in natural order."""
    ordered = sorted(items, key=lambda p: [int(w) if w.isdigit() else w for w in re.split(r"(\d+)", str(p))])
    kept = np.unique(np.linspace(0, len(ordered) - 1, count).round().astype(int))
    return [ordered[place] for place in kept] if len(ordered) > count else ordered


def grouped(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Sort frames by figure: the name is what stands before the first dash."""
    figures: dict[str, list[Path]] = {}
    for file in files:
        figures.setdefault(f"{file.parent.name}/{file.stem.split('-')[0]}", []).append(file)
    return {name: frames for name, frames in sorted(figures.items()) if len(frames) >= FRAMES}


def wesnoth(out: Path) -> dict[str, list[dict[str, str]]]:
    """Give the rows of units, races and terrain."""
    (images,) = (out / "wesnoth-1.16-data").glob("usr/share/games/wesnoth/*/data/core/images")
    units, races, terrain = [], [], []
    for name, frames in grouped((images / "units").rglob("*.png")).items():
        units += [{"path": str(f), "instance": name} for f in evenly(frames, FRAMES)]
        race = frames[0].relative_to(images / "units").parts[0]
        races.append({"path": str(min(frames, key=lambda f: (len(f.stem), f.stem))), "label": race})
    for kind in sorted(p for p in (images / "terrain").iterdir() if p.is_dir() and p.name not in NO_GROUND):
        terrain += [{"path": str(f), "label": kind.name} for f in evenly(kind.rglob("*.png"), TILES)]
    return {"units": units, "races": races, "terrain": terrain}


def stamps(out: Path) -> list[dict[str, str]]:
    """Give the rows of the stamps; letters, digits and signs are left out."""
    rows = []
    for kind in sorted((out / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps").iterdir()):
        files = sorted(kind.rglob("*.png"))
        if len(files) >= LEAST_STAMPS and kind.name != "symbols":
            rows += [{"path": str(file), "label": kind.name} for file in files]
    return rows


def sprites(out: Path) -> list[dict[str, str]]:
    """Give the rows of the sprites: queries in other colours; the usual ones are adapted to and searched."""
    folder = out / "pokesprite-images/package/pokemon-gen8"
    return [
        {"path": str(file), "instance": file.stem, "role": role, "split": part}
        for part, role in (("regular", "gallery"), ("shiny", "query"))
        for file in sorted((folder / part).glob("*.png"))
    ]


def main() -> None:
    """Unpack, and write a table per task."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packages", type=Path, help="folder with the downloaded packages")
    parser.add_argument("out", type=Path, help="where to unpack them")
    args = parser.parse_args()
    out: Path = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    unpack(args.packages, out)
    for name, rows in {**wesnoth(out), "stamps": stamps(out), "sprites": sprites(out)}.items():
        table = pd.DataFrame(rows)
        table["path"] = [str(Path(path).relative_to(out)) for path in table["path"]]
        table.to_csv(out / f"{name}.csv", index=False)
        groups = table["label" if "label" in table else "instance"].nunique()
        print(f"{name}: {len(table)} pictures, {groups} classes or objects")


if __name__ == "__main__":
    main()
