"""The command that looks behind the scores."""

from pathlib import Path

import pandas as pd
import pytest
from command_line import REPOSITORY, Command
from PIL import Image

from ssl_retrieval import config
from ssl_retrieval.analyze import AnalyzeConfig

PARTS = {
    "hubness": ["hubness.csv", "hubness_images.csv", "hubness.png"],
    "calibration": ["calibration.csv", "calibration_curve.csv", "calibration.png"],
    "label_errors": ["label_errors.csv"],
    "wins": ["wins.csv"],
    "invariance": ["invariance.csv", "invariance.png"],
}


@pytest.fixture
def job(photos: Path, tmp_path: Path) -> Path:
    file = tmp_path / "job.yaml"
    file.write_text(
        f"data: {{name: folder, root: {photos}}}\n"
        "models:\n  colours: {name: color_histogram, bins: 4}\n  pixels: {name: pixels, grey: true}\n"
        "derived:\n  both: {of: [colours, pixels]}\n"
        "num_altered: 4\nnum_shown: 4\nk: 5\n"
    )
    return file


def test_everything_is_written(cli: Command, job: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = cli("analyze", job, f"out={out}")
    assert done.code == 0, done.err
    for files in PARTS.values():
        for name in files:
            assert (out / name).stat().st_size > 100, name
            if name.endswith(".png"):
                assert Image.open(out / name).format == "PNG"
    page = (out / "report.html").read_text("utf-8")
    assert page.count("<h2>") == len(PARTS)
    assert page.count("data:image/png;base64,") == 3
    hubs = pd.read_csv(out / "hubness_images.csv")
    assert (hubs[["colours", "pixels", "both"]].sum() == 40 * 5).all()
    assert (hubs["relevant_for"] == 9).all()
    assert len(pd.read_csv(out / "wins.csv")) == 40
    assert set(pd.read_csv(out / "invariance.csv")["representation"]) == {"colours", "pixels"}
    assert len(pd.read_csv(out / "label_errors.csv")) == 40


def test_only_what_is_asked_is_answered(cli: Command, job: Path, tmp_path: Path) -> None:
    done = cli("analyze", job, f"out={tmp_path / 'out'}", "parts=[wins]", "wins=[pixels,colours]")
    assert done.code == 0, done.err
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"embeddings", "report.html", "wins.csv"}
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "Where does pixels beat colours, and where does it lose?" in page
    # Shown queries: their own picture, and eight results of each of the two.
    shown = page.count('class="asked"')
    assert 1 <= shown <= 4
    assert page.count("<img") == shown * 17


def test_labels_of_gallery_and_queries_are_doubted(
    cli: Command, tmp_path: Path, photos: Path, job: Path
) -> None:
    root = tmp_path / "split"
    for part, numbers in (("train", range(8)), ("test", range(8, 10))):
        for name in ("apple", "bear", "cloud", "door"):
            (root / part / name).mkdir(parents=True)
            for i in numbers:
                (root / part / name / f"{i}.png").write_bytes((photos / name / f"{i}.png").read_bytes())
    for part in ("train", "test"):
        (root / part / "apple" / "planted.png").write_bytes((photos / "cloud" / "9.png").read_bytes())
    done = cli(
        "analyze",
        job,
        f"data.root={root}",
        "data.queries=test",
        "data.gallery=train",
        f"out={tmp_path / 'out'}",
        "parts=[label_errors]",
        "doubts=colours",
    )
    assert done.code == 0, done.err
    table = pd.read_csv(tmp_path / "out" / "label_errors.csv")
    assert len(table) == 9 + 33
    first = table.groupby("side").first()
    assert first["id"].to_dict() == {
        "gallery": "train/apple/planted.png",
        "queries": "test/apple/planted.png",
    }
    assert set(first["suggested"]) == {"cloud"}


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("parts=[hubnes]", "parts='hubnes': use one of hubness, calibration, label_errors, wins, invariance"),
        ("wins=[pixels,none]", "wins=['pixels', 'none']: give two labels of colours, pixels, both"),
        ("doubts=none", "doubts='none': use one of colours, pixels, both"),
        ("k=0", "k=0: must be at least 1"),
        ("num_altered=1", "num_altered=1: must be at least 2"),
        ("precisions=[95]", "95.0 is wanted; each must lie between 0 and 1"),
        ("models=null", "missing section 'models'"),
    ],
)
def test_mistakes_are_one_line(
    cli: Command, job: Path, tmp_path: Path, override: str, complaint: str
) -> None:
    done = cli("analyze", job, f"out={tmp_path / 'out'}", override)
    assert done.code == 2
    assert complaint in done.err


@pytest.mark.parametrize(
    "file", sorted((REPOSITORY / "configs" / "analyze").glob("*.yaml")), ids=lambda file: file.stem
)
def test_shipped_configs_load_and_name_their_command(file: Path) -> None:
    config.load(AnalyzeConfig, file, ["data.root=photos", "out=runs/one"])
    assert f"# ssl-retrieval analyze configs/analyze/{file.name} data.root=" in file.read_text("utf-8")
