"""Reports on disk, tables, charts and pages."""

import base64
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from ssl_retrieval.compare import Comparison, compare
from ssl_retrieval.errors import UserError
from ssl_retrieval.report.chart import draw_chart, family_colours
from ssl_retrieval.report.files import read_report, write_report
from ssl_retrieval.report.gallery import GalleryQuery, GalleryRow, pick_queries, thumbnail
from ssl_retrieval.report.headline import headline
from ssl_retrieval.report.page import write_page, write_search_page
from ssl_retrieval.report.table import to_csv, to_markdown, to_rich
from ssl_retrieval.types import Protocol, Report

NASTY = "<script>alert('x')</script> | & co"
VOID_ELEMENTS = {"meta", "link", "img", "br"}


def make_report(name: str, family: str, mean: float, task: str, level: str, seed: int) -> Report:
    num_queries = 60
    average_precision = np.random.default_rng(seed).normal(mean, 0.05, num_queries).clip(0, 1)
    average_precision[:2] = np.nan
    hit_rate = np.where(np.isnan(average_precision), np.nan, (average_precision > 0.4).astype(float))
    return Report(
        task=task,
        representation={"name": name, "family": family, "dim": 512, "key": "abc"},
        protocol=Protocol(image_size=64).to_dict(),
        query_ids=tuple(f"{i}.png" for i in range(num_queries)),
        per_query={"mAP": average_precision, "hit_rate@1": hit_rate},
        pooled={"uap": mean / 2},
        costs={"embed_images_per_s": 1234.5, "bytes_per_image": 2048.0, "train_s": None},
        config={"seed": 0, "data": {"name": "folder"}},
        versions={"torch": "2.11"},
        info={"level": level, "description": "Find it again."},
    )


@pytest.fixture
def reports() -> list[Report]:
    return [
        make_report(name, family, mean, task, level, seed)
        for task, level in (("toys", "instance"), ("kinds", "category"))
        for seed, (name, family, mean) in enumerate(
            [
                ("pixels", "hand-crafted", 0.2),
                (NASTY, "off-the-shelf", 0.5),
                ("simclr", "self-supervised", 0.7),
            ]
        )
    ]


@pytest.fixture
def comparison(reports: list[Report]) -> Comparison:
    return compare(reports)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    files = [tmp_path / f"{NASTY.replace('/', '_')}{i}.png" for i in range(4)]
    for i, file in enumerate(files):
        Image.new("RGB", (40 + i, 60), (50 * i, 90, 120)).save(file)
    return files


def test_a_written_report_is_read_back_whole(tmp_path: Path, reports: list[Report]) -> None:
    file = tmp_path / "deep" / "report.json"
    write_report(reports[0], file)

    back = read_report(file)

    for name, values in reports[0].per_query.items():
        np.testing.assert_array_equal(back.per_query[name], values)
    for field in ("task", "representation", "protocol", "query_ids", "pooled", "costs", "config", "info"):
        assert getattr(back, field) == getattr(reports[0], field), field
    assert {path.name for path in file.parent.iterdir()} == {"report.json", "report.per_query.parquet"}


def test_report_json_follows_schema_1(tmp_path: Path, reports: list[Report]) -> None:
    empty = np.full(60, np.nan)
    report = replace(
        reports[0],
        per_query=reports[0].per_query | {"recall@5": empty},
        costs={"train_s": float("nan"), "peak_rss_mib": np.float64(1.5)},
    )
    write_report(report, tmp_path / "a.json")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    table = pd.read_parquet(tmp_path / content["per_query"])

    assert content["schema"] == 1
    assert content["level"] == "instance"
    assert set(content["representation"]) == {"name", "family", "dim", "key"}
    assert content["protocol"]["hash"] == Protocol(image_size=64).to_dict()["hash"]
    assert content["costs"] == {"train_s": None, "peak_rss_mib": 1.5}
    average_precision = content["metrics"]["mAP"]
    assert average_precision["num_queries"] == 58
    assert average_precision["mean"] == pytest.approx(np.nanmean(report.per_query["mAP"]), abs=1e-12)
    assert average_precision["ci95"][0] < average_precision["mean"] < average_precision["ci95"][1]
    assert content["metrics"]["uap"] == {"mean": 0.1, "ci95": None, "num_queries": 60}
    assert content["metrics"]["recall@5"] == {"mean": None, "ci95": [None, None], "num_queries": 0}
    assert list(table.columns) == ["query", "mAP", "hit_rate@1", "recall@5"]


def test_bad_report_files_give_one_clear_line(tmp_path: Path, reports: list[Report]) -> None:
    file = tmp_path / "a.json"
    write_report(reports[0], file)
    good = json.loads(file.read_text())

    def message(content: Any) -> str:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(UserError) as caught:
            read_report(file)
        assert "\n" not in str(caught.value)
        assert str(file) in str(caught.value)
        return str(caught.value)

    with pytest.raises(UserError, match=r"cannot read the report .*absent\.json"):
        read_report(tmp_path / "absent.json")
    assert "not JSON" in message("{")
    assert "not a report" in message([1, 2])
    assert "not a report" in message({"name": "something else"})
    assert "schema 2" in message(good | {"schema": 2})
    assert "'costs' is missing" in message({k: v for k, v in good.items() if k != "costs"})
    assert "'dim' is missing" in message(good | {"representation": {"name": "a", "family": "b"}})
    assert "not a report" in message(good | {"metrics": [1]})
    assert "'ndcg@5' is missing" in message(good | {"metrics": {"ndcg@5": {"mean": 1.0}}})
    assert "b.parquet in the same folder" in message(good | {"per_query": "b.parquet"})


def test_a_damaged_or_foreign_parquet_file_is_refused(tmp_path: Path, reports: list[Report]) -> None:
    file, other = tmp_path / "a.json", tmp_path / "b.json"
    write_report(reports[0], file)
    write_report(reports[1], other)
    (tmp_path / "b.per_query.parquet").replace(tmp_path / "a.per_query.parquet")

    with pytest.raises(UserError, match="belong to different runs"):
        read_report(file)

    (tmp_path / "a.per_query.parquet").write_text("no parquet")
    with pytest.raises(UserError, match="is not a Parquet file"):
        read_report(file)


def test_csv_holds_every_number(comparison: Comparison) -> None:
    table = pd.read_csv(io.StringIO(to_csv(comparison)))

    assert len(table) == 2 * 3 * 3
    row = table[(table.task == "toys") & (table.representation == NASTY) & (table.metric == "mAP")].iloc[0]
    entry = comparison.tasks[0].entry(NASTY)
    assert entry is not None
    assert (row["mean"], row.low, row.high) == (entry.score.mean, entry.score.low, entry.score.high)
    assert row.num_queries == 58
    assert row.p_holm == entry.p_holm
    assert row.best == "simclr"
    assert str(row.in_best_group) == "False"
    assert (row.dim, row.bytes_per_image, row.level) == (512, 2048.0, "instance")
    pooled = table[table.metric == "uap"]
    assert pooled.low.isna().all()
    assert pooled.p_holm.isna().all()


def test_markdown_is_one_row_per_representation(comparison: Comparison) -> None:
    text = to_markdown(comparison)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    table = pd.DataFrame(cells[2:], columns=cells[0])

    assert table.representation.tolist() == [
        "pixels",
        "&lt;script>alert('x')&lt;/script> \\| &amp; co",
        "simclr",
    ]
    best = table["toys (instance-level) mAP"].tolist()
    assert best[2].startswith("**0.")
    assert not best[0].startswith("**")
    mean, low, high = (float(x) for x in re.findall(r"\d\.\d+", best[0]))
    assert low < mean < high
    assert table["kinds (category-level) hit_rate@1"].str.fullmatch(r"\d\.\d{3}").all()
    assert table["images/s"].tolist() == ["1,234"] * 3
    assert str(comparison.tasks[0].protocol["hash"]) in text


def test_rich_table_fits_80_columns_and_marks_the_best(comparison: Comparison) -> None:
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(to_rich(comparison))
    text = console.export_text()

    assert "instance-level" in text
    assert "category-level" in text
    assert "train s" in text
    starred = [line for line in text.splitlines() if re.search(r"\d\*", line)]
    assert len(starred) == 1
    assert starred[0].startswith("simclr")
    assert "…" not in text


def test_rich_table_fits_with_long_names_and_a_third_metric(reports: list[Report]) -> None:
    wordy = [
        replace(
            report,
            task=task,
            per_query=report.per_query | {"ns_score": report.per_query["mAP"] * 4},
            representation=report.representation | {"name": f"{report.representation['name']} at 64 pixels"},
        )
        for report in reports[:3]
        for task in ("groceries seen on other shelves", "b", "c", "d")
    ]
    console = Console(width=84, file=io.StringIO(), record=True)
    console.print(to_rich(compare(wordy)))
    lines = console.export_text().splitlines()

    assert sum("representation" in line for line in lines) == 2, "a fourth task starts a second table"
    assert sum(line.rstrip().endswith("train s") for line in lines) == 2
    assert [line.split()[0] for line in lines[1:3]] == ["groceries", "on"]
    mean = np.nanmean(reports[2].per_query["mAP"])
    assert any(line.startswith("simclr at 64") and f"{mean:.3f}*" in line for line in lines)


def test_headline_names_the_winner_and_whether_it_is_real(comparison: Comparison) -> None:
    first, second, third = headline(comparison.tasks[0])

    assert first.startswith("simclr retrieves best: mAP 0.")
    assert "really ahead of all others" in second
    assert "adjusted p < 0.001" in second
    assert f"simclr beats {NASTY}" in third


def test_headline_admits_a_tie(reports: list[Report]) -> None:
    best = reports[2]
    values = best.per_query["mAP"][::-1].copy()
    twin = replace(
        best,
        representation=best.representation | {"name": "twin", "family": "off-the-shelf"},
        per_query={"mAP": np.where(np.isnan(best.per_query["mAP"]), np.nan, np.roll(values, 2))},
    )

    _, second, third = headline(compare([best, twin]).tasks[0])

    assert "cannot be told apart from" in second
    assert "cannot be told apart from" in third


def test_chart_is_a_selfcontained_deterministic_svg(comparison: Comparison) -> None:
    task = comparison.tasks[0]
    colours = family_colours([entry.family for entry in task.entries])

    svg = draw_chart(task, colours)

    root = ElementTree.fromstring(svg)
    texts = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert NASTY in texts
    for entry in task.entries:
        assert any(text.startswith(f"{entry.score.mean:.3f}") for text in texts)
        assert colours[entry.family] in svg
    assert NASTY in root.attrib["aria-label"]
    assert "currentColor" in svg
    assert svg == draw_chart(task, colours)


def test_chart_survives_a_zero_score() -> None:
    zero = make_report("zero", "random", 0.0, "toys", "instance", 0)
    zero = replace(zero, per_query={"mAP": np.zeros(60)})

    svg = draw_chart(compare([zero]).tasks[0], family_colours(["random"]))

    assert ">0.000" in svg


def test_picked_queries_are_wins_losses_and_a_sample(comparison: Comparison) -> None:
    task = comparison.tasks[0]
    rival = task.entry(NASTY)
    assert rival is not None
    lead = task.best.report.per_query["mAP"] - rival.report.per_query["mAP"]

    picked = pick_queries(task, 9)

    assert len({query.query_id for query in picked}) == 9
    assert picked[0].query_id == f"{np.nanargmax(lead)}.png"
    assert picked[0].reason.startswith(f"largest win of simclr against {NASTY}: AP 0.")
    kinds = Counter(re.findall(r"win|loss|random", " ".join(query.reason for query in picked)))
    losses = min(3, int((lead < 0).sum()))
    assert kinds == Counter({"win": 3, "loss": losses, "random": 6 - losses})
    assert not {"0.png", "1.png"} & {query.query_id for query in picked}
    assert picked == pick_queries(task, 9)
    assert len(pick_queries(task, 1000)) == 58


class PageReader(HTMLParser):
    """Collects what a page refers to and checks that every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def check_selfcontained(text: str) -> PageReader:
    page = PageReader(text)
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href"):
            if name in attributes:
                assert str(attributes[name]).startswith(("data:", "#"))
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert page.of("script") == []
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    for image in page.of("img"):
        assert image["alt"]
    assert len(ids) == len(set(ids))
    return page


def test_page_is_one_file_and_escapes_names(
    tmp_path: Path, comparison: Comparison, images: list[Path]
) -> None:
    rows = [
        GalleryRow(name, images[1:], [True, False, True], [0.9, 0.8, 0.7])
        for name in comparison.representations
    ]
    galleries = {"toys": [GalleryQuery(images[0], f"largest win of {NASTY}", rows)]}
    file = tmp_path / "report.html"

    write_page(comparison, galleries, file, title=f"About {NASTY}", notes=[f"Note {NASTY}"])

    text = file.read_text(encoding="utf-8")
    page = check_selfcontained(text)
    assert len(page.of("svg")) == 2
    assert len(page.of("img")) == 1 + 3 * 3
    assert Counter(row.get("class") for row in page.of("li"))["right"] == 6
    assert Counter(row.get("class") for row in page.of("li"))["wrong"] == 3
    assert text.count("✗</b> 0.80") == 3
    assert all("scope" in header for header in page.of("th") if header.get("colspan") != "4")
    assert "instance-level" in text
    assert "category-level" in text
    assert str(comparison.tasks[0].protocol["hash"]) in text
    assert "simclr retrieves best" in text


def test_forced_comparison_shows_its_note_everywhere(tmp_path: Path, reports: list[Report]) -> None:
    other = replace(reports[1], protocol=Protocol(image_size=128).to_dict())
    comparison = compare([reports[0], other], force=True)
    write_page(comparison, {}, tmp_path / "a.html", "Forced")
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(to_rich(comparison))

    for text in ((tmp_path / "a.html").read_text(), to_markdown(comparison), console.export_text()):
        assert "Forced comparison" in text
        assert "image_size 64 and 128" in text


def test_page_of_a_single_report(tmp_path: Path, reports: list[Report]) -> None:
    write_page(compare(reports[:1]), {}, tmp_path / "a.html", "One")

    text = (tmp_path / "a.html").read_text()
    check_selfcontained(text)
    assert "compares 1 image\nrepresentation by how well" in text
    assert "on 1 task:" in text


def test_search_page(tmp_path: Path, images: list[Path]) -> None:
    file = tmp_path / "found.html"

    write_search_page(images[0], [(images[1], 0.987), (tmp_path / "gone.png", 0.5)], file)

    text = file.read_text(encoding="utf-8")
    page = check_selfcontained(text)
    assert len(page.of("img")) == 3
    assert "similarity 0.987" in text
    assert "gone.png" in text


def test_thumbnails_are_small_jpegs(tmp_path: Path) -> None:
    Image.new("RGBA", (3000, 20), (255, 0, 0, 0)).save(tmp_path / "strip.png")

    address = thumbnail(tmp_path / "strip.png")

    header, _, payload = address.partition(",")
    assert header == "data:image/jpeg;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(payload)))
    assert picture.format == "JPEG"
    assert picture.size == (96, 1)
    assert picture.getpixel((5, 0)) == (255, 255, 255)


def test_groups_are_written_and_read_back_and_rule_intervals(tmp_path: Path, reports: list[Report]) -> None:
    grouped = replace(reports[0], query_groups=np.repeat(np.arange(30), 2))
    write_report(grouped, tmp_path / "a.json")
    write_report(grouped, tmp_path / "b.json", resample="queries")

    contents = [json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json")]

    np.testing.assert_array_equal(read_report(tmp_path / "a.json").query_groups, grouped.query_groups)
    assert pd.read_parquet(tmp_path / "a.per_query.parquet").columns[:2].tolist() == ["query", "group"]
    # Two queries find nothing: the first object has none left.
    assert contents[0]["intervals"]["resampling"] == "resample the 29 objects with all their queries"
    assert contents[1]["intervals"]["resampling"] == "resample the 58 queries"
    assert contents[0]["metrics"]["mAP"]["ci95"] != contents[1]["metrics"]["mAP"]["ci95"]


def test_every_table_says_what_ties_and_what_the_task_can_tell_apart(
    tmp_path: Path, reports: list[Report]
) -> None:
    twin = replace(reports[2], representation=reports[2].representation | {"name": "twin"})
    twin.per_query["mAP"][2:] += np.random.default_rng(0).normal(0, 0.02, 58)
    comparison = compare([*reports[:3], twin])
    task = comparison.tasks[0]
    tie = next(entry for entry in task.ranked if entry is not task.best)
    write_page(comparison, {}, tmp_path / "page.html", "t")
    page, markdown = (tmp_path / "page.html").read_text(), to_markdown(comparison)
    console = Console(width=80, file=io.StringIO())
    console.print(to_rich(comparison))
    terminal = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]

    assert task.best.behind_best is None
    assert tie.in_best_group
    for text in (page, markdown, terminal):
        assert "≈ a tie: not significantly different from the best" in text
        assert f"differences of about {task.detectable:.3f} mAP" in text
        assert "resample the 58 queries" in text
    assert f"**{tie.score.mean:.3f}**≈ [" in markdown
    assert f"**{task.best.score.mean:.3f}**★ [" in markdown
    assert f"<strong>{tie.score.mean:.3f}≈</strong>" in page
    assert f"{tie.score.mean:.3f}≈" in terminal
    assert f"{task.best.score.mean:.3f}*" in terminal
    rows = pd.read_csv(io.StringIO(to_csv(comparison))).query("metric == 'mAP'")
    np.testing.assert_allclose(rows["detectable"], task.detectable)
    assert rows["num_seeds"].tolist() == [1] * 4
