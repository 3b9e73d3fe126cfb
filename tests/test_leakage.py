"""The command that looks for copies, on folders with planted ones."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from command_line import REPOSITORY, Command
from PIL import Image
from test_perceptual_hash import scene

from ssl_retrieval import config
from ssl_retrieval.leakage import LeakageConfig
from ssl_retrieval.report.files import read_report


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Queries, a gallery and training images; ``leak`` holds altered copies of two queries and one item."""
    root = tmp_path_factory.mktemp("leak")
    seed = 0
    for part in ("test", "train"):
        for name in ("cat", "dog"):
            (root / "task" / part / name).mkdir(parents=True)
            for i in range(4):
                scene(seed := seed + 1).save(root / "task" / part / name / f"{i}.png")
    leak = root / "leak"
    leak.mkdir()
    for i in range(5):
        scene(100 + i).save(leak / f"clean{i}.png")
    task = root / "task"
    shutil.copy(task / "test" / "cat" / "0.png", leak / "same.png")
    flipped = Image.open(task / "test" / "dog" / "1.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    flipped.resize((80, 60), Image.Resampling.BICUBIC).save(leak / "flipped.jpg", quality=50)
    Image.open(task / "train" / "dog" / "2.png").save(leak / "item.jpg", quality=30)
    # A copy within the gallery, under another label.
    Image.open(task / "train" / "cat" / "3.png").save(task / "train" / "dog" / "wrong.jpg", quality=60)
    return root


@pytest.fixture
def job(data: Path, tmp_path: Path) -> Path:
    file = tmp_path / "job.yaml"
    file.write_text(
        f"data: {{name: folder, queries: test, gallery: train, root: {data / 'task'}}}\n"
        f"training: {{name: folder, root: {data / 'leak'}}}\n"
        "model: {name: pixels}\nmin_cosine: 0.999\nnum_planted: 5\n"
    )
    return file


def pairs_of(out: Path) -> dict[str, set[tuple[str, str]]]:
    table = pd.read_csv(out / "pairs.csv")
    return {
        str(scope): set(zip(part["first"], part["second"], strict=True))
        for scope, part in table.groupby("scope")
    }


def table_of(file: Path, key: str) -> dict[str, dict[str, float]]:
    """Column -> row's name -> value."""
    columns = pd.read_csv(file).set_index(key).to_dict()
    return {str(name): column for name, column in columns.items()}


def test_planted_copies_are_reported_and_left_out(
    cli: Command, data: Path, job: Path, tmp_path: Path
) -> None:
    done = cli("leakage", job, f"out={tmp_path / 'out'}", "exclude=both")
    assert done.code == 0, done.err
    assert pairs_of(tmp_path / "out") == {
        "training-queries": {("same.png", "test/cat/0.png"), ("flipped.jpg", "test/dog/1.png")},
        "training-gallery": {("item.jpg", "train/dog/2.png")},
        "within-gallery": {("train/cat/3.png", "train/dog/wrong.jpg")},
    }
    assert (
        "Of 8 queries 0 are training images themselves; 2 have a near copy (2 by content or hash) among"
        in done.err
    )
    listed = pd.read_csv(tmp_path / "out" / "exclude.csv").to_numpy().tolist()
    assert listed == [
        ["task", "query", "test/cat/0.png"],
        ["task", "query", "test/dog/1.png"],
        ["task", "gallery", "train/dog/2.png"],
    ]
    summary = table_of(tmp_path / "out" / "summary.csv", "scope")
    assert summary["pairs_by_content"]["training-queries"] == 1
    assert summary["pairs"]["queries-gallery"] == 0
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert page.count("data:image/jpeg;base64,") == 8
    planted = table_of(tmp_path / "out" / "planted.csv", "copy")
    assert planted["hash"]["mirrored"] == 1
    assert planted["hash"]["crop of 50 % of the area"] < 1

    evaluation = tmp_path / "evaluate.yaml"
    evaluation.write_text("data: {name: folder, queries: test, gallery: train}\nmodel: {name: pixels}")
    done = cli(
        "evaluate",
        evaluation,
        f"data.root={data / 'task'}",
        f"out={tmp_path / 'eval'}",
        f"protocol.exclude={tmp_path / 'out' / 'exclude.csv'}",
    )
    assert done.code == 0, done.err
    report = read_report(tmp_path / "eval" / "report.json")
    assert len(report.query_ids) == 6
    assert report.info["num_gallery"] == 8


def test_of_the_gallerys_own_copies_one_stays(cli: Command, job: Path, tmp_path: Path) -> None:
    done = cli("leakage", job, f"out={tmp_path}/out", "exclude=both", "exclude_for=gallery", "training=null")
    assert done.code == 0, done.err
    listed = pd.read_csv(tmp_path / "out" / "exclude.csv").to_numpy().tolist()
    assert listed == [["task", "gallery", "train/dog/wrong.jpg"]]


def test_images_that_were_trained_on_are_left_out(cli: Command, data: Path, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("data: {name: folder}\ntraining: {name: folder}\nnum_planted: 0")
    done = cli(
        "leakage",
        job,
        f"data.root={data / 'task' / 'test'}",
        f"training.root={data / 'task' / 'test' / 'cat'}",
        f"out={tmp_path / 'out'}",
        "exclude=queries",
    )
    assert done.code == 0, done.err
    listed = pd.read_csv(tmp_path / "out" / "exclude.csv")
    assert listed["id"].tolist() == [f"cat/{i}.png" for i in range(4)]
    summary = table_of(tmp_path / "out" / "summary.csv", "scope")
    assert summary["same_files"]["training-queries"] == 4
    assert summary["pairs"]["training-queries"] == 0


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("exclude=all", "exclude='all': use one of report, queries, both"),
        ("exclude_for=luck", "exclude_for='luck': use one of training, gallery"),
        ("max_hamming=99", "max_hamming=99: bits of 64"),
        ("min_cosine=0", "min_cosine=0.0: a cosine above 0"),
        ("num_shown=-1", "num_shown=-1: must be 0 or more"),
        ("training.root=/none", "training.root='/none' does not exist"),
        ("model.name=asmk", "gives scores and no vectors"),
    ],
)
def test_mistakes_are_one_line(
    cli: Command, job: Path, tmp_path: Path, override: str, complaint: str
) -> None:
    assert complaint in cli("leakage", job, f"out={tmp_path / 'out'}", override).user_error()


def test_exclusion_for_training_needs_training_images(cli: Command, job: Path, tmp_path: Path) -> None:
    done = cli("leakage", job, f"out={tmp_path / 'out'}", "exclude=queries", "training=null")
    assert "none are given: set training.name=… and training.root=…" in done.user_error()


@pytest.mark.parametrize(
    "file", sorted((REPOSITORY / "configs" / "leakage").glob("*.yaml")), ids=lambda file: file.stem
)
def test_shipped_configs_load_and_name_their_command(file: Path) -> None:
    config.load(LeakageConfig, file, ["data.root=photos", "out=runs/one"])
    assert f"# ssl-retrieval leakage configs/leakage/{file.name} data.root=" in file.read_text("utf-8")
