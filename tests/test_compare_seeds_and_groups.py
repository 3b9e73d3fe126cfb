"""``compare`` from its config to its files: seeds as one method, classes resampled, reports read again."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import Command

from ssl_retrieval.report.files import read_report

JOB = """
data: {name: folder}
models:
  pixels: {name: pixels, size: 4}
  net 0: {name: resnet10t, weights: random, image_size: 32, seed: 0}
  net 1: {name: resnet10t, weights: random, image_size: 32, seed: 1}
  net 2: {name: resnet10t, weights: random, image_size: 32, seed: 2}
  net 3: {name: resnet10t, weights: random, image_size: 32, seed: 3}
seeds: {one: [net 0, net 1], other: [net 2, net 3]}
metrics: [mAP]
num_gallery_queries: 1
embed: {num_workers: 0}
"""


def headline_rows(out: Path) -> pd.DataFrame:
    rows = pd.read_csv(out / "table.csv")
    return rows[rows["metric"] == "mAP"].set_index("representation")


def test_random_networks_that_differ_by_seed_are_a_tie(cli: Command, photos: Path, tmp_path: Path) -> None:
    job, out, again = tmp_path / "job.yaml", tmp_path / "out", tmp_path / "again"
    job.write_text(JOB)

    first = cli("compare", job, f"data.root={photos}", f"out={out}", "statistics.resample=groups")
    assert first.code == 0, first.err
    rows = headline_rows(out)
    assert rows.index.tolist() == ["pixels", "one", "other"]
    assert rows["num_seeds"].tolist() == [1, 2, 2]
    assert set(rows["resampling"]) == {"resample the 4 classes with all their queries"}
    assert "one: 2 seeds, mAP" in (out / "table.md").read_text()

    reports = sorted((out / "reports").glob("*.json"))
    assert len(reports) == 5
    by_seed = {r.representation["name"]: r for r in map(read_report, reports)}
    assert by_seed["net 2"].representation["seed_of"] == "other"
    groups = by_seed["net 2"].query_groups
    assert groups is not None
    assert np.bincount(groups).tolist() == [10, 10, 10, 10]
    assert by_seed["net 2"].config["seed_of"] == "other"

    networks = [file for file in reports if "net" in file.name]
    second = cli("compare", *networks, "statistics.resample=queries", f"out={again}")
    assert second.code == 0, second.err
    rows = headline_rows(again)
    assert set(rows["resampling"]) == {"resample the 40 queries"}
    assert rows["in_best_group"].tolist() == [True, True]
    means = [np.nanmean(by_seed[name].per_query["mAP"]) for name in ("net 0", "net 1")]
    assert rows.loc["one", "mean"] == pytest.approx(np.mean(means))


def test_evaluate_marks_a_seed(cli: Command, photos: Path, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("data: {name: folder}\nmodel: {name: pixels, size: 2}\nembed: {num_workers: 0}\n")
    keys = (f"data.root={photos}", f"out={tmp_path / 'out'}", "seed_of=dots", "label=dots 0")
    done = cli("evaluate", job, *keys)
    assert done.code == 0, done.err
    report = read_report(tmp_path / "out" / "report.json")
    assert report.representation["seed_of"] == "dots"
    assert report.representation["name"] == "dots 0"
    assert "too few" in done.out
