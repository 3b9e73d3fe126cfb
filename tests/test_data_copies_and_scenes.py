"""Holidays, Copydays, INSTRE, DISC21 and Google Landmarks v2: small look-alikes."""

from pathlib import Path
from typing import Any

import look_alikes
import numpy as np
import pytest
from look_alikes import INSTRE, INSTRE_QUERIES, cells, lists, make, write_gnd
from scipy.io import savemat

from ssl_retrieval.data import copydays, disc21, gldv2, holidays, instre
from ssl_retrieval.errors import UserError

# Holidays


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return look_alikes.holidays(tmp_path / "holidays")


def test_holidays_takes_the_query_out(scenes: Path) -> None:
    task = holidays.load(holidays.Config(root=str(scenes)))
    assert task.queries.paths == ("jpg/100000.jpg", "jpg/100100.jpg")
    assert len(task.gallery) == 5
    assert lists(task.relevant) == [[1, 2], [4]]
    assert lists(task.ignored) == [[0], [3]]
    assert (task.level, task.protocol.self_match) == ("instance", "ignored")


def test_holidays_with_distractors(scenes: Path, tmp_path: Path) -> None:
    make(tmp_path / "flickr", "a/100001.jpg")
    task = holidays.load(holidays.Config(root=str(scenes), distractors=str(tmp_path / "flickr")))
    assert task.name == "holidays-1-distractors"
    assert task.gallery.paths[-1] == "flickr/a/100001.jpg"
    assert lists(task.relevant) == [[1, 2], [4]]
    assert lists(task.ignored) == [[0], [3]]


def test_holidays_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no photo named 100000.jpg"):
        holidays.load(holidays.Config(root=str(make(tmp_path / "a", "x.jpg"))))
    with pytest.raises(UserError, match="no query among the 1 photos"):
        holidays.load(holidays.Config(root=str(make(tmp_path / "b", "100001.jpg"))))


# Copydays


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    return look_alikes.copydays(tmp_path / "copydays")


def test_copies_search_for_their_originals(copies: Path) -> None:
    task = copydays.load(copydays.Config(root=str(copies)))
    assert task.name == "copydays-strong"
    assert task.gallery.paths == ("original/200000.jpg", "original/200100.jpg")
    assert lists(task.relevant) == [[0], [0], [1]]
    crops = copydays.load(copydays.Config(root=str(copies), queries="crops/80"))
    assert crops.name == "copydays-crops-80"
    assert crops.queries.paths == ("crops/80/200100.jpg",)
    assert lists(crops.relevant) == [[1]]


def test_copies_search_among_distractors(copies: Path, tmp_path: Path) -> None:
    make(tmp_path / "yfcc", "1.jpg", "200100.jpg")
    task = copydays.load(copydays.Config(root=str(copies), distractors=str(tmp_path / "yfcc")))
    assert task.name == "copydays-strong-2-distractors"
    assert len(task.gallery) == 4
    assert lists(task.relevant) == [[0], [0], [1]]


def test_copydays_mistakes(copies: Path) -> None:
    for options, complaint in [
        ({"queries": "original"}, "are the originals"),
        ({"queries": "weak"}, "no folder 'weak'"),
        ({"root": str(copies.parent)}, f"try data.root={copies}"),
    ]:
        with pytest.raises(UserError, match=complaint):
            copydays.load(copydays.Config(**({"root": str(copies)} | options)))
    (copies / "original" / "200100.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 2 images .*\(200100\)"):
        copydays.load(copydays.Config(root=str(copies)))
    make(copies, "jpegqual/x.jpg")
    with pytest.raises(UserError, match=r"no photo named 200000.jpg"):
        copydays.load(copydays.Config(root=str(copies), queries="jpegqual"))


# INSTRE


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    return look_alikes.instre(tmp_path / "instre")


def test_instre_counts_from_one(objects: Path) -> None:
    task = instre.load(instre.Config(root=str(objects)))
    assert task.queries.paths == INSTRE_QUERIES
    assert task.gallery.paths == INSTRE
    assert lists(task.relevant) == [[0], [1, 2]]
    assert lists(task.ignored) == [[], []]
    assert task.queries.box(0) == (1, 2, 30, 40)
    whole = instre.load(instre.Config(root=str(objects), query_crop="none"))
    assert whole.queries.boxes is None
    assert whole.protocol.query_crop == "none"
    assert instre.images(instre.Config(root=str(objects))).paths == INSTRE


@pytest.mark.parametrize(
    ("positives", "boxes", "complaint"),
    [
        (([0], [1]), ([0, 0, 1, 1], [0, 0, 1, 1]), "whole numbers from 1 to 3"),
        (([4], [1]), ([0, 0, 1, 1], [0, 0, 1, 1]), "whole numbers from 1 to 3"),
        (([1], [1]), ([5, 0, 1, 1], [0, 0, 1, 1]), "left below right"),
        (([1], [1]), ([0, 0, 1], [0, 0, 1, 1]), "is no ground truth of INSTRE"),
        (([1],), ([0, 0, 1, 1],), "2 queries, but answers for 1"),
    ],
)
def test_instre_names_a_wrong_ground_truth(objects: Path, positives: Any, boxes: Any, complaint: str) -> None:
    write_gnd(objects, positives, boxes)
    with pytest.raises(UserError, match=complaint):
        instre.load(instre.Config(root=str(objects)))


def test_instre_mistakes(objects: Path) -> None:
    with pytest.raises(UserError, match=f"data.root='{objects}' has it"):
        instre.load(instre.Config(root=str(objects.parent)))
    (objects / INSTRE[1]).unlink()
    with pytest.raises(UserError, match=r"1 of 5 images .*\(INSTRE-S2/02/1.jpg\)"):
        instre.load(instre.Config(root=str(objects)))
    (objects / "gnd_instre.mat").write_bytes(b"no mat file")
    with pytest.raises(UserError, match="is no ground truth of INSTRE"):
        instre.load(instre.Config(root=str(objects)))


def test_instre_looks_at_nothing_outside(objects: Path) -> None:
    content = {"imlist": cells(("../../etc/passwd",)), "qimlist": cells(INSTRE_QUERIES)}
    gnd = np.zeros((1, 2), dtype=[("ok", object), ("bbx", object)])
    gnd[0, 0] = gnd[0, 1] = (np.array([1]), np.array([0, 0, 1, 1]))
    savemat(objects / "gnd_instre.mat", content | {"gnd": gnd})
    with pytest.raises(UserError, match="leaves its root"):
        instre.load(instre.Config(root=str(objects)))


# DISC21


@pytest.fixture
def disc(tmp_path: Path) -> Path:
    return look_alikes.disc21(tmp_path / "disc21")


def test_disc21_keeps_queries_without_positives(disc: Path) -> None:
    task = disc21.load(disc21.Config(root=str(disc)))
    assert task.name == "disc21-dev"
    assert lists(task.relevant) == [[2], [], [0, 1], []]
    assert task.num_queries_with_positives == 2
    assert task.gallery.paths[0] == "references/part0/R000000.jpg"
    assert "uap" in task.metrics
    assert task.fit is None
    assert "2 of them copies" in task.description


def test_disc21_reads_a_header_and_fits_on_train(disc: Path) -> None:
    file = disc / "dev_ground_truth.csv"
    file.write_text(f"query_id,reference_id\n{file.read_text()}")
    make(disc, "train/T000000.jpg")
    task = disc21.load(disc21.Config(root=str(disc)))
    assert lists(task.relevant) == [[2], [], [0, 1], []]
    assert task.fit is not None
    assert task.fit.paths == ("train/T000000.jpg",)
    assert disc21.images(disc21.Config(root=str(disc))).paths == task.fit.paths


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("Q00000,R000009\n", r"1 of 1 images .*references' \(R000009\)"),
        ("Q00009,R000000\n", r"1 of 1 images .*dev_queries' \(Q00009\)"),
        ("Q00000\n", "has no column 'query_id'"),
        ("", "cannot read .*dev_ground_truth.csv"),
    ],
)
def test_disc21_names_a_wrong_ground_truth(disc: Path, text: str, complaint: str) -> None:
    (disc / "dev_ground_truth.csv").write_text(text)
    with pytest.raises(UserError, match=complaint):
        disc21.load(disc21.Config(root=str(disc)))


def test_disc21_mistakes(disc: Path) -> None:
    with pytest.raises(UserError, match="no folder 'final_queries'"):
        disc21.load(disc21.Config(root=str(disc), queries="final_queries"))
    with pytest.raises(UserError, match="no folder 'train'"):
        disc21.images(disc21.Config(root=str(disc)))
    with pytest.raises(UserError, match=f"data.root='{disc}' has it"):
        disc21.load(disc21.Config(root=str(disc.parent)))


# Google Landmarks v2


@pytest.fixture
def landmarks(tmp_path: Path) -> Path:
    return look_alikes.gldv2(tmp_path / "gldv2")


@pytest.mark.parametrize(
    ("usage", "queries", "relevant"),
    [
        ("private", ["test/0/a/1/0a1q.jpg"], [[0, 2]]),
        ("public", ["test/0/b/2/0b2q.jpg"], [[1]]),
        ("both", ["test/0/a/1/0a1q.jpg", "test/0/b/2/0b2q.jpg"], [[0, 2], [1]]),
    ],
)
def test_landmarks_by_usage(landmarks: Path, usage: str, queries: Any, relevant: Any) -> None:
    task = gldv2.load(gldv2.Config(root=str(landmarks), usage=usage))
    assert list(task.queries.paths) == queries
    assert lists(task.relevant) == relevant
    assert task.gallery.paths[0] == "index/a/b/c/abc0.jpg"
    assert task.metrics == ("mAP@100",)
    assert len(gldv2.images(gldv2.Config(root=str(landmarks)))) == 3


def test_landmarks_mistakes(landmarks: Path) -> None:
    def load(**options: str) -> None:
        gldv2.load(gldv2.Config(root=str(landmarks), **options))

    with pytest.raises(UserError, match="usage='Privat'"):
        load(usage="Privat")
    (landmarks / "index" / "a" / "b" / "d" / "abd1.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 3 images .*\(index/a/b/d/abd1.jpg\)"):
        load()
    (landmarks / "index.csv").write_text("id\nabc0\n")
    with pytest.raises(UserError, match=r"1 of 2 images .*index.csv' \(fed2\)"):
        load()
    (landmarks / "index.csv").write_text("name\nabc0\n")
    with pytest.raises(UserError, match="has no column 'id'"):
        load()
    (landmarks / "index.csv").write_text("id\n../x\n")
    with pytest.raises(UserError, match="leaves its root"):
        gldv2.images(gldv2.Config(root=str(landmarks)))
    (landmarks / "retrieval_solution_v2.1.csv").write_text("id,images,Usage\n0c3q,None,Ignored\n")
    with pytest.raises(UserError, match="no query with Usage 'private'"):
        load()
