"""Lists of images to leave out, and how reports say so."""

from pathlib import Path

import pytest
from command_line import Command

from ssl_retrieval.data import folder
from ssl_retrieval.errors import UserError
from ssl_retrieval.exclusion import apply, write_list
from ssl_retrieval.report.files import read_report
from ssl_retrieval.types import Protocol, Task


@pytest.fixture
def task(photos: Path) -> Task:
    return folder.load(folder.Config(root=str(photos)))


def listed(file: Path, *rows: tuple[str, str, str]) -> Path:
    write_list(rows, file)
    return file


def test_listed_images_go_and_the_protocol_says_so(task: Task, tmp_path: Path) -> None:
    file = listed(
        tmp_path / "list.csv",
        (task.name, "query", "apple/0.png"),
        (task.name, "gallery", "apple/0.png"),
        (task.name, "gallery", "door/9.png"),
        ("another", "query", "not/here.png"),
    )
    kept = apply(task, file)
    assert set(task.queries.paths) - set(kept.queries.paths) == {"apple/0.png"}
    assert set(task.gallery.paths) - set(kept.gallery.paths) == {"apple/0.png", "door/9.png"}
    assert kept.protocol.excluded.startswith("1 queries and 2 gallery images (")
    assert "1 queries and 2 gallery images are left out" in kept.description
    assert kept.protocol.to_dict()["hash"] != task.protocol.to_dict()["hash"]


def test_the_protocol_depends_on_what_goes_not_on_how_it_is_written(task: Task, tmp_path: Path) -> None:
    rows = [(task.name, "query", "apple/0.png"), (task.name, "query", "bear/1.png")]
    one = apply(task, listed(tmp_path / "a.csv", *rows))
    same = apply(task, listed(tmp_path / "b.csv", *rows[::-1], ("another", "gallery", "x")))
    other = apply(task, listed(tmp_path / "c.csv", rows[0], (task.name, "query", "bear/2.png")))
    assert one.protocol == same.protocol
    assert one.protocol != other.protocol


def test_whole_tasks_keep_the_hash_they_had() -> None:
    # As in reports from before tasks could be cut: they can still be compared.
    assert "excluded" not in Protocol().to_dict()


def test_a_list_about_other_tasks_changes_nothing(
    task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert apply(task, listed(tmp_path / "list.csv", ("another", "query", "x.png"))) is task
    assert "nothing is left out there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a,b\n1,2\n", "its columns are a, b; task, role, id are needed"),
        ("", "no CSV file"),
        ("task,role,id\nphotos,training,apple/0.png\n", "role 'training': use one of query, gallery"),
        ("task,role,id\nphotos,query,apple/77.png\n", "'apple/77.png' is no query of task 'photos'"),
    ],
)
def test_a_wrong_list_is_refused(task: Task, tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError, match=complaint):
        apply(task, tmp_path / "list.csv")


def test_a_list_of_everything_is_refused(task: Task, tmp_path: Path) -> None:
    file = listed(tmp_path / "list.csv", *[(task.name, "query", path) for path in task.queries.paths])
    with pytest.raises(UserError, match=r"leaves out 40 queries and 0 gallery images .* nothing is left"):
        apply(task, file)
    with pytest.raises(UserError, match="no such file; `ssl-retrieval leakage` writes one"):
        apply(task, tmp_path / "none.csv")


def test_numbers_with_and_without_do_not_mix(cli: Command, photos: Path, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("data: {name: folder}\nmodel: {name: color_histogram, bins: 4}\nmetrics: [mAP]")
    file = listed(tmp_path / "list.csv", ("photos", "query", "apple/0.png"))
    root = f"data.root={photos}"
    assert cli("evaluate", job, root, f"out={tmp_path / 'all'}", "label=all").code == 0
    done = cli("evaluate", job, root, f"out={tmp_path / 'cut'}", "label=cut", f"protocol.exclude={file}")
    assert done.code == 0, done.err
    whole, cut = (read_report(tmp_path / name / "report.json") for name in ("all", "cut"))
    rows = [row for row, query in enumerate(whole.query_ids) if query != "apple/0.png"]
    assert [whole.query_ids[row] for row in rows] == list(cut.query_ids)
    assert whole.per_query["mAP"][rows].tolist() == cut.per_query["mAP"].tolist()
    mixed = cli(
        "compare", *(tmp_path / name / "report.json" for name in ("all", "cut")), "--out", tmp_path / "x"
    )
    assert "different protocols (excluded None and '1 queries" in mixed.user_error()
