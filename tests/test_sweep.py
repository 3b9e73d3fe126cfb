"""``ssl-retrieval sweep`` from the command line to its tables: what is tried, chosen and scored."""

from pathlib import Path

import pandas as pd
import pytest
import yaml
from command_line import Command
from made_up_photos import write_photos

from ssl_retrieval import config
from ssl_retrieval.sweep import SweepConfig

CONFIGS = sorted((Path(__file__).parent.parent / "configs" / "sweep").glob("*.yaml"))
NETWORK = "data: {name: folder}\nmodel: {name: test_resnet, weights: random, image_size: 32}\n"


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other pictures of the same classes."""
    return write_photos(tmp_path_factory.mktemp("more") / "photos", per_class=7)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("job") / "job.yaml"
    file.write_text(NETWORK + "poolings: [gem]\nlayers: ['-2']\nresolutions: [24]\ndimensions: [6, 3]\n")
    return file


def test_points_are_tried_in_rounds_and_the_choice_is_scored_elsewhere(
    cli: Command, job: Path, photos: Path, more: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    other = [f"{key}.{item}" for key in ("fit", "validation") for item in ("name=folder", f"root={more}")]
    done = cli("sweep", job, f"data.root={photos}", f"out={out}", "fit_on_test=true", *other)
    assert done.code == 0, done.err
    table = pd.read_csv(out / "table.csv", keep_default_na=False)
    by_task = dict(list(table.groupby("role")))
    tried, scored = by_task["choosing"], by_task["scoring"]
    places = tried[tried["axis"] == "place"]
    assert list(places["point"]) == [
        f"{place}{how}"
        for place in ("default", "gem", "layer -2 gem")
        for how in ("", ", whitened", ", half-whitened")
    ]
    best = places.iloc[int(places["mAP"].astype(float).argmax())]
    (resolution,) = tried[tried["axis"] == "resolution"].to_dict("records")
    assert (resolution["place"], resolution["processing"]) == (best["place"], best["processing"])
    assert int(resolution["image_size"]) == 24
    shorter = tried[tried["axis"] == "dimensions"]
    assert set(shorter["dim"].astype(int)) == {6, 3}
    assert set(shorter["bytes_per_image"].astype(float)) == {24.0, 12.0}
    assert (scored["num_queries"].astype(int) == 40).all()
    assert (tried["num_queries"].astype(int) == 28).all()
    (chosen,) = tried[tried["recommended"].astype(str) == "True"]["point"]
    assert {"default", chosen} <= set(scored["point"])
    assert done.out.splitlines()[-1].startswith("Recommended: ")
    page = (out / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert (out / "sweep.png").is_file()
    for name in ("table.md", "report.html"):
        assert "Scored" in (out / name).read_text() or "scored" in (out / name).read_text()

    again = cli("evaluate", out / "recommended.yaml", f"out={tmp_path / 'again'}")
    assert again.code == 0, again.err
    wanted = float(scored.set_index("point").loc[chosen, "mAP"])
    assert f"{wanted:.3f}" in again.out


def test_one_task_is_split_by_class_and_what_cannot_be_fitted_is_left_out(
    cli: Command, job: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = cli("sweep", job, f"data.root={photos}", f"out={out}", "axes=[pooling,whitening,dimensions]")
    assert done.code == 0, done.err
    assert "half of the queries of photos (20); scored by the other half (20)" in done.out
    table = pd.read_csv(out / "table.csv")
    assert list(table[table["role"] == "choosing"]["point"]) == ["default", "gem"]
    assert set(table["num_queries"]) == {20}
    assert "whitening and fewer dimensions are left out" in (out / "table.md").read_text()


def test_a_descriptor_that_is_no_network_can_be_whitened(
    cli: Command, photos: Path, more: Path, tmp_path: Path
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("data: {name: folder}\nmodel: {name: color_histogram, bins: 3}\ndimensions: [4]\n")
    done = cli(
        "sweep", file, f"data.root={photos}", f"out={tmp_path / 'out'}", "fit.name=folder", f"fit.root={more}"
    )
    assert done.code == 0, done.err
    assert "default, half-whitened" in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        (["axes=[colour]"], "axes: no axis 'colour': use some of network, pooling"),
        (["resolutions=[0]"], "resolutions=[0]: each must be at least 1"),
        (["dimensions=[-4]"], "dimensions=[-4]: each must be at least 1"),
        (["whiten_dim=0"], "whiten_dim=0: must be at least 1"),
        (["max_loss=2"], "max_loss=2.0: must be in [0, 1]"),
        (["poolings=[best]"], "model.pool='best': use one of"),
        (["layers=['17']"], "model.layer='17'"),
        (["validation.name=folder", "validation.root=PHOTOS"], "40 of its queries are queries of data too"),
        (["statistics.test=none"], "statistics.test='none'"),
    ],
)
def test_mistakes_are_said_in_one_line(
    cli: Command, job: Path, photos: Path, tmp_path: Path, changes: list[str], names: str
) -> None:
    changes = [change.replace("PHOTOS", str(photos)) for change in changes]
    done = cli("sweep", job, f"data.root={photos}", f"out={tmp_path / 'out'}", *changes)
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert done.code == 2
    assert len(lines) == 1
    assert names in lines[0]


def test_sections_are_needed(cli: Command, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("data: {name: folder, root: photos}\n")
    assert "missing section 'model'" in cli("sweep", file, f"out={tmp_path / 'out'}").user_error()


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_config_loads_and_opens_with_its_command(file: Path) -> None:
    trained = [] if "offline" in file.read_text("utf-8") else ["model.path=runs/simclr"]
    cfg = config.load(SweepConfig, file, ["data.root=photos", "out=runs/one", *trained])
    assert cfg.data.root == "photos"
    comment = "".join(line for line in file.read_text("utf-8").splitlines() if line.startswith("#"))
    assert f"ssl-retrieval sweep configs/sweep/{file.name}" in comment
    assert yaml.safe_load(file.read_text("utf-8"))["out"] == "???"
