"""Folder of pictures in, comparison out: the files that scripts and people rely on."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command_line import Command
from made_up_photos import write_photos

from ssl_retrieval.report.files import read_report

DEFAULTS = {
    "mAP",
    "mAP@R",
    "mAP@100",
    "mAP_trapezoid",
    "precision@1",
    "recall@10",
    "hit_rate@1",
    "ndcg@10",
    "mrr",
}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("job") / "job.yaml"
    file.write_text("data: {name: folder}\nmodel: {name: color_histogram, bins: 4}")
    return file


COMPARE = """
title: Which one finds its <class>?
data: {name: folder}
models:
  pixels 4x4: {name: pixels, size: 4}
  colour histogram: {name: color_histogram, bins: 4}
  random network: {name: resnet10t, weights: random, image_size: 32}
num_gallery_queries: 3
notes: [These pictures are made up.]
"""


def check_report(report: dict[str, Any], folder: Path) -> None:
    assert report["schema"] == 1
    assert report["task"] == "photos"
    representation = report["representation"]
    assert {"name", "family", "dim", "key"} <= representation.keys()
    assert re.fullmatch("[0-9a-f]{16}", representation["key"])
    assert re.fullmatch("[0-9a-f]{16}", report["protocol"]["hash"])
    for field in ("image_size", "query_crop", "scales", "whitening", "self_match", "junk", "cutoff", "ties"):
        assert field in report["protocol"]
    assert DEFAULTS | {"knn@20"} <= report["metrics"].keys()
    per_query = pd.read_parquet(folder / report["per_query"])
    for name, metric in report["metrics"].items():
        low, high = metric["ci95"]
        assert 0 <= low <= metric["mean"] <= high <= 1 + 1e-9
        assert metric["num_queries"] == len(per_query) == 40
        assert per_query[name].mean() == pytest.approx(metric["mean"])
    costs = report["costs"]
    assert costs["embed_images_per_s"] > 0
    assert costs["search_queries_per_s"] > 0
    assert costs["bytes_per_image"] == 4 * representation["dim"]
    assert costs["peak_rss_mib"] > 10
    assert costs["train_s"] is None
    assert {"python", "torch", "numpy", "timm"} <= report["versions"].keys()


def test_embed_evaluate_compare(cli: Command, job: Path, photos: Path, tmp_path: Path) -> None:
    embedded = cli("embed", job, f"data.root={photos}", f"out={tmp_path / 'embeddings'}")
    assert (embedded.code, embedded.out) == (0, f"{tmp_path / 'embeddings'}\n")
    assert "40 images, 64 dimensions" in embedded.err

    files = []
    for name, keys in {"histogram": [], "pixels": ["model={name: pixels, size: 4}", "label=tiny"]}.items():
        out = tmp_path / name
        # A section is merged, so the histogram's own key has to go with it.
        source = job
        if keys:
            source = tmp_path / "pixels.yaml"
            source.write_text("data: {name: folder}")
        done = cli("evaluate", source, f"data.root={photos}", f"out={out}", *keys)
        assert done.code == 0, done.err
        assert f"written: {out / 'report.json'}" in done.err
        assert "mAP" in done.out
        files.append(out / "report.json")
        check_report(json.loads(files[-1].read_text()), out)
    reports = [read_report(file) for file in files]
    assert [report.representation["name"] for report in reports] == ["color_histogram", "tiny"]
    # Each class has its colour: the histogram must find nearly all, chance would be a quarter.
    assert np.nanmean(reports[0].per_query["mAP"]) > 0.8

    compared = cli("compare", *files, "--out", tmp_path / "both")
    assert compared.code == 0, compared.err
    assert "color_histogram" in compared.out
    assert "tiny" in compared.out
    for name in ("table.md", "table.csv", "report.html"):
        text = (tmp_path / "both" / name).read_text(encoding="utf-8")
        assert "color_histogram" in text
        assert "tiny" in text
    same = cli("compare", *files, f"out={tmp_path / 'again'}")
    assert same.code == 0
    assert (tmp_path / "again" / "table.csv").read_text() == (tmp_path / "both" / "table.csv").read_text()


def test_compare_from_a_config(cli: Command, photos: Path, tmp_path: Path) -> None:
    job = tmp_path / "compare.yaml"
    job.write_text(COMPARE)
    out = tmp_path / "out"
    done = cli("compare", job, f"data.root={photos}", f"out={out}")
    assert done.code == 0, done.err
    names = ["pixels 4x4", "colour histogram", "random network"]
    for name in names:
        file = out / "reports" / f"photos--{name}.json"
        check_report(json.loads(file.read_text()), file.parent)
        assert name in done.out.replace("\n", " ")
    assert {path.name for path in out.iterdir()} == {
        "table.md",
        "table.csv",
        "chart.png",
        "report.html",
        "reports",
        "embeddings",
    }
    table = pd.read_csv(out / "table.csv")
    assert len(table) >= 3
    assert set(names) <= set(table.astype(str).to_numpy().ravel())
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Which one finds its &lt;class&gt;?" in page
    assert "These pictures are made up." in page
    assert page.count("data:image") >= 3 * 3
    # It opens without a network: everything is inside.
    assert not re.search(r"""(?:src|href)=["'](?!data:|\#)""", page)
    from_reports = cli("compare", *sorted((out / "reports").glob("*.json")), "--out", tmp_path / "late")
    assert from_reports.code == 0

    again = cli("compare", job, f"data.root={photos}", f"out={out}")
    assert again.code == 0
    assert pd.read_csv(out / "table.csv")["mean"].tolist() == table["mean"].tolist()


def test_reports_of_different_protocols_are_not_compared_unless_forced(
    cli: Command, job: Path, photos: Path, tmp_path: Path
) -> None:
    files = []
    for size in (8, 16):
        out = tmp_path / str(size)
        keys = [f"protocol.image_size={size}", f"label=at {size}"]
        assert cli("evaluate", job, f"data.root={photos}", f"out={out}", *keys).code == 0
        files.append(out / "report.json")
    line = cli("compare", *files, "--out", tmp_path / "both").user_error()
    assert "protocol" in line
    assert not (tmp_path / "both").exists()
    assert cli("compare", *files, "--out", tmp_path / "both", "--force").code == 0


def test_one_folder_under_two_options_gives_two_tasks(cli: Command, photos: Path, tmp_path: Path) -> None:
    job = tmp_path / "compare.yaml"
    job.write_text(
        "data: {name: folder}\nmodels: {tiny: {name: pixels, size: 2}}\nnum_gallery_queries: 0\n"
        "tasks: {few: {limit_per_class: 3}, all: {}}"
    )
    done = cli("compare", job, f"data.root={photos}", f"out={tmp_path / 'out'}")
    assert done.code == 0, done.err
    found = [
        read_report(tmp_path / "out" / "reports" / f"photos-{label}--tiny.json") for label in ("few", "all")
    ]
    assert [len(report.query_ids) for report in found] == [12, 40]


def test_the_headline_metric_is_always_there(cli: Command, job: Path, photos: Path, tmp_path: Path) -> None:
    done = cli("evaluate", job, f"data.root={photos}", f"out={tmp_path}", "metrics=[hit_rate@1]")
    assert done.code == 0, done.err
    assert read_report(tmp_path / "report.json").per_query.keys() == {"mAP", "hit_rate@1"}


def test_skipped_images_are_told_once_and_reported(cli: Command, job: Path, tmp_path: Path) -> None:
    root = write_photos(tmp_path / "photos", per_class=3, classes=2)
    (root / "bear" / "1.png").write_text("no image")
    done = cli("evaluate", job, f"data.root={root}", f"out={tmp_path / 'out'}")
    assert done.code == 0
    assert done.err.count("bear/1.png: not an image") == 1
    report = read_report(tmp_path / "out" / "report.json")
    assert report.info["skipped"] == [["bear/1.png", "not an image"]]
    assert len(report.query_ids) == 5


def test_a_metric_that_needs_labels(cli: Command, photos: Path, tmp_path: Path) -> None:
    rows = [f"{name}/{i}.png,{name}" for name in ("bear", "door") for i in range(3)]
    (tmp_path / "list.csv").write_text("\n".join(["path,instance", *rows, "cloud/0.png,"]))
    (tmp_path / "job.yaml").write_text(
        f"data: {{name: manifest, root: {photos}, file: {tmp_path / 'list.csv'}}}\n"
        "model: {name: pixels, size: 2}\nmetrics: [knn@20]"
    )
    line = cli("evaluate", tmp_path / "job.yaml", f"out={tmp_path / 'out'}").user_error()
    assert line == "metric 'knn@20' needs labels, and task 'list' has none: leave it out"
    assert not (tmp_path / "out").exists()
