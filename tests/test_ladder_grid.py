"""A small ladder of baselines: what its tables, reports and page say."""

import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command_line import Command
from small_grids import (
    below_table,
    evaluation,
    grid,
    markdown_table,
    mean_of,
    report_of,
    split,
)

from ssl_retrieval import store as store_module
from ssl_retrieval.compare import Comparison, compare
from ssl_retrieval.embed import embed
from ssl_retrieval.evaluate import evaluate
from ssl_retrieval.grid import run_grid
from ssl_retrieval.report.files import read_report
from ssl_retrieval.report.table import costs, to_rich

__all__ = ["split"]


class TableReader(HTMLParser):
    """Counts the columns of each row of the first table of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.widths: list[int] = []
        self.num_tables = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.num_tables += tag == "table"
        if self.num_tables != 1:
            return
        given = dict(attrs)
        if tag == "tr":
            self.widths.append(0)
        if tag in ("td", "th"):
            self.widths[-1] += int(given.get("colspan") or 1)


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory, split: Path) -> tuple[Path, Comparison]:
    """A small ladder on a task that has training images; read only."""
    out = tmp_path_factory.mktemp("ladder")
    derived = {
        "white": {"of": ["histogram"], "steps": ["pca_whiten:8"]},
        "too many": {"of": ["histogram"], "steps": ["pca:40"]},
        "learned": {"of": ["pixels"], "steps": ["learned_whiten:3"]},
        "joined": {"of": ["histogram", "pixels"], "weights": [1.0, 0.5]},
        "sum": {"of": ["histogram", "pixels"], "fuse": "score_sum"},
        "ranks": {"of": ["white", "pixels"], "fuse": "reciprocal_rank"},
        "coded": {"of": ["white"], "steps": ["itq:8"]},
        "signs": {"of": ["white"], "steps": ["sign"]},
    }
    return out, run_grid(grid(out, split, derived=derived, fit_limit=20))


def test_every_rung_is_in_every_table(ladder: tuple[Path, Comparison]) -> None:
    out, comparison = ladder
    names = [
        "histogram",
        "pixels",
        "white",
        "too many",
        "learned",
        "joined",
        "sum",
        "ranks",
        "coded",
        "signs",
    ]
    assert list(comparison.representations) == names
    assert markdown_table(out).index.tolist() == names
    assert pd.read_csv(out / "table.csv").representation.unique().tolist() == names
    page = (out / "report.html").read_text()
    assert all(f'<th scope="row">{name}<small>' in page for name in names)
    for name in names:
        # Each class has its own colour: chance would be a quarter.
        assert mean_of(report_of(out, name)) > 0.4, name


def test_whitening_is_fitted_on_the_training_images(ladder: tuple[Path, Comparison]) -> None:
    out, _ = ladder
    whole = json.loads((out / "reports" / "toys--white.json").read_text())
    assert whole["representation"]["fitted"] == {
        "source": "the task's own training images",
        "num_images": 20,
        "num_in_gallery": 20,
        "num_in_queries": 0,
    }
    assert whole["representation"]["dim"] == 8
    (note,) = whole["representation"]["notes"]
    assert note == "pca_whiten:8: 8 of 64 dimensions: fitted on only 20 images, which span at most 19"
    (note,) = report_of(out, "too many").representation["notes"]
    assert note.startswith("pca:40: 19 of 64 dimensions: fitted on only 20 images")
    plain = json.loads((out / "reports" / "toys--histogram.json").read_text())
    assert (plain["representation"]["fitted"], plain["representation"]["notes"]) == (None, [])
    assert report_of(out, "ranks").representation["fitted"] == whole["representation"]["fitted"]


def test_tables_and_pages_say_where_it_was_fitted(ladder: tuple[Path, Comparison]) -> None:
    out, _ = ladder
    fitted = (
        "white; too many; learned; ranks; coded; signs: fitted on 20 images: the task's own training images; "
        "20 of them are in the gallery too (toys)."
    )
    assert fitted in below_table(out)
    assert "too many: pca:40: 19 of 64 dimensions" in below_table(out)
    page = (out / "report.html").read_text()
    assert fitted in page.replace("&#39;", "'")
    assert "too many: pca:40" in page
    assert "QUERIES" not in below_table(out) + page


def test_costs_are_in_every_table(ladder: tuple[Path, Comparison]) -> None:
    out, comparison = ladder
    table = markdown_table(out)
    assert table.columns[-6:].tolist() == [
        "dim",
        "images/s",
        "bytes/image",
        "search ms",
        "peak MiB",
        "training s",
    ]
    assert table["dim"].tolist() == ["64", "48", "8", "19", "3", "112", "112", "56", "8", "8"]
    assert table["bytes/image"].tolist() == ["256", "192", "32", "76", "12", "448", "448", "224", "1", "1"]
    assert (table["training s"] == "–").all()
    for column in ("images/s", "search ms", "peak MiB"):
        assert (table[column].str.replace(",", "").astype(float) > 0).all(), column
    long = pd.read_csv(out / "table.csv")
    assert (long.peak_rss_mib > 10).all()
    assert (long.search_queries_per_s > 0).all()
    for name in comparison.representations:
        stored = report_of(out, name).costs
        assert (stored["peak_rss_mib"] or 0) > 10
        assert stored.keys() == {
            "embed_images_per_s",
            "search_queries_per_s",
            "bytes_per_image",
            "peak_rss_mib",
            "train_s",
        }
    page = (out / "report.html").read_text()
    assert all(f">{title}</th>" in page for title in ("search ms", "peak MiB"))
    widths = TableReader(page).widths
    # The first header cell spans three rows.
    assert len({widths[0], *(width + 1 for width in widths[1:3]), *widths[3:]}) == 1


def test_reciprocal_ranks_rank(ladder: tuple[Path, Comparison], split: Path, tmp_path: Path) -> None:
    out, _ = ladder
    alone = grid(tmp_path, split, derived={"ranks": {"of": ["pixels"], "fuse": "reciprocal_rank"}})
    run_grid(alone)
    np.testing.assert_array_equal(
        report_of(tmp_path, "ranks").per_query["mAP"], report_of(out, "pixels").per_query["mAP"]
    )
    fused = mean_of(report_of(out, "ranks"))
    assert fused > min(mean_of(report_of(out, "white")), mean_of(report_of(out, "pixels")))


@pytest.mark.parametrize("name", ["histogram", "white", "ranks", "coded"])
def test_a_report_holds_the_config_that_makes_it_again(
    ladder: tuple[Path, Comparison], cli: Command, tmp_path: Path, name: str
) -> None:
    out, _ = ladder
    before = report_of(out, name)
    job = tmp_path / "again.yaml"
    job.write_text(json.dumps(before.config))
    command = "compare" if "models" in before.config else "evaluate"
    done = cli(command, job, f"out={tmp_path / 'again'}")
    assert done.code == 0, done.err
    assert f"<code>ssl-retrieval {command} CONFIG.yaml" in (out / "report.html").read_text()
    file = tmp_path / "again" / ("report.json" if command == "evaluate" else f"reports/toys--{name}.json")
    again = read_report(file)
    assert again.representation == before.representation
    np.testing.assert_array_equal(again.per_query["mAP"], before.per_query["mAP"])
    made = {path.name for path in (tmp_path / "again" / "reports").glob("*.json")}
    assert "toys--joined.json" not in made, "only what it is made of is made again"


def test_a_second_run_embeds_nothing(
    split: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    derived = {"white": {"of": ["histogram"], "steps": ["pca_whiten:8"]}}
    cfg = grid(tmp_path / "out", split, derived=derived)
    run_grid(cfg)
    table = (tmp_path / "out" / "table.csv").read_text()
    capsys.readouterr()
    keys = []

    def looking(*args: Any, **options: Any) -> Any:
        found = embed(*args, **options)
        keys.append((found.key, found.images_per_s))
        return found

    monkeypatch.setattr(store_module, "embed", looking)
    run_grid(cfg)
    assert "embedding takes about 0 s" in capsys.readouterr().err
    assert len(keys) == 4, "queries and gallery of two models; the gallery is what is fitted on"
    columns = ["representation", "metric", "mean", "embed_images_per_s", "peak_rss_mib"]
    again = pd.read_csv(tmp_path / "out" / "table.csv")[columns]
    pd.testing.assert_frame_equal(again, pd.read_csv(io.StringIO(table))[columns])


def test_evaluate_with_steps(ladder: tuple[Path, Comparison], split: Path, tmp_path: Path) -> None:
    report = evaluate(evaluation(tmp_path, split, steps=["pca_whiten:8"], fit_limit=20, label="mine"))
    of_grid = report_of(ladder[0], "white")
    assert report.representation == of_grid.representation | {"name": "mine"}
    np.testing.assert_array_equal(report.per_query["mAP"], of_grid.per_query["mAP"])
    assert read_report(tmp_path / "report.json").config["steps"] == ["pca_whiten:8"]


def test_reports_from_before_still_load(
    ladder: tuple[Path, Comparison], cli: Command, tmp_path: Path
) -> None:
    out, _ = ladder
    files = []
    for name in ("histogram", "white"):
        source = out / "reports" / f"toys--{name}.json"
        old = json.loads(source.read_text())
        for key in ("fitted", "notes"):
            old["representation"].pop(key)
        for key in ("peak_rss_mib", "search_queries_per_s"):
            old["costs"].pop(key)
        old["info"].pop("num_images_without_features")
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(old))
        beside = source.with_name(old["per_query"])
        (tmp_path / old["per_query"]).write_bytes(beside.read_bytes())
    done = cli("compare", *files, "--out", tmp_path / "late")
    assert done.code == 0, done.err
    table = markdown_table(tmp_path / "late")
    assert table["search ms"].tolist() == table["peak MiB"].tolist() == ["–", "–"]
    assert "fitted on" not in below_table(tmp_path / "late")
    new = out / "reports" / "toys--ranks.json"
    assert cli("compare", *files, new, "--out", tmp_path / "mixed").code == 0
    assert "ranks: fitted on 20 images" in below_table(tmp_path / "mixed")


def test_the_terminal_names_only_what_was_fitted_on_queries(ladder: tuple[Path, Comparison]) -> None:
    texts = [str(part) for part in to_rich(ladder[1]).renderables]
    assert not any("itted on" in text for text in texts)


def test_slow_searches_are_written_without_exponents(ladder: tuple[Path, Comparison]) -> None:
    report = report_of(ladder[0], "ranks")
    report.costs["search_queries_per_s"] = 1 / 1.234
    assert costs(compare([report]), "ranks")[3] == "1,234"
    report.costs["search_queries_per_s"] = None
    assert costs(compare([report]), "ranks")[3] == "–"
