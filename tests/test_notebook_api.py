"""The few lines of a notebook, on a small folder: frames, figures, and the files that stay."""

from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ssl_retrieval import notebook as sr
from ssl_retrieval.errors import UserError

PIXELS: sr.Model = {"name": "pixels", "size": 4}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of six noisy colours."""
    root = tmp_path_factory.mktemp("made") / "photos"
    for number, name in enumerate(("blue", "green", "red")):
        (root / name).mkdir(parents=True)
        for i in range(6):
            pixels = np.random.default_rng(10 * number + i).integers(0, 90, (16, 16, 3))
            pixels[..., 2 - number] += 150
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def collection(photos: Path) -> sr.Collection:
    """The folder, embedded."""
    return sr.Collection.embed(photos, PIXELS, out=photos.parent / "embedded")


def test_a_picture_finds_itself_first(photos: Path, collection: sr.Collection) -> None:
    hits = collection.search(photos / "red" / "3.png", k=6)
    assert list(hits.columns) == ["score", "filepath"]
    assert hits["filepath"][0] == str(photos.resolve() / "red" / "3.png")
    assert hits["score"][0] == pytest.approx(1)
    assert {Path(file).parent.name for file in hits["filepath"]} == {"red"}
    figure = collection.show(hits)
    assert isinstance(figure, Figure)
    assert len(figure.axes) == 6


def test_a_collection_opens_in_pandas_and_faiss(photos: Path, collection: sr.Collection) -> None:
    again = sr.Collection.open(collection.folder)
    frame = again.to_frame()
    assert list(frame.columns) == ["id", "label", "filepath", "embedding"]
    assert len(frame) == 18
    assert all(Path(file).is_file() for file in frame["filepath"])
    assert set(frame["label"]) == {"blue", "green", "red"}
    index = again.to_faiss()
    assert isinstance(index, faiss.IndexFlatIP)
    query = frame["embedding"][4] / np.linalg.norm(frame["embedding"][4])
    scores, rows = index.search(query[None].astype(np.float32), 1)
    assert rows[0, 0] == 4
    assert scores[0, 0] == pytest.approx(1)
    # The files themselves open without this package.
    raw = np.load(collection.folder / "vectors.npy")
    assert raw.shape == (18, 48)
    assert len(pd.read_parquet(collection.folder / "items.parquet")) == 18


def test_models_are_compared_on_a_folder(photos: Path, tmp_path: Path) -> None:
    models: dict[str, sr.Model] = {"colour": "color_histogram", "pixels": PIXELS}
    result = sr.compare(photos, models, out=tmp_path / "out", metrics=["mAP", "precision@3"])
    frame = sr.table(result)
    assert set(frame["representation"]) == {"colour", "pixels"}
    assert {"mAP", "precision@3"} <= set(frame["metric"])
    assert (frame["low"] <= frame["mean"]).all()
    assert isinstance(sr.chart(result), Figure)
    assert (tmp_path / "out" / "report.html").is_file()


def test_one_report_and_own_vectors_share_a_table(photos: Path, tmp_path: Path) -> None:
    report = sr.evaluate(photos, PIXELS, out=tmp_path / "out", label="pixels")
    assert sr.table(report)["representation"].unique().tolist() == ["pixels"]
    vectors = np.random.default_rng(0).standard_normal((30, 4))
    own = [
        sr.evaluate_vectors(name, vectors + shift, query_labels=[i % 3 for i in range(30)])
        for name, shift in (("one", 0), ("other", 0.5))
    ]
    assert set(sr.table(own)["representation"]) == {"one", "other"}


def test_indexes_are_audited(collection: sr.Collection, tmp_path: Path) -> None:
    frame = sr.indexes(collection, ["Flat", "SQ8"], out=tmp_path, k=3)
    assert frame["recall"].between(0, 1).all()
    assert frame.loc[frame["index"] == "Flat", "recall"].item() == 1


def test_copies_and_answers_behind_the_scores(photos: Path, tmp_path: Path) -> None:
    counts = sr.leakage(photos, model=PIXELS, out=tmp_path / "leakage", num_planted=0)
    assert isinstance(counts, pd.DataFrame)
    models: dict[str, sr.Model] = {"colour": "color_histogram", "pixels": PIXELS}
    answers = sr.analyze(photos, models, out=tmp_path / "analysis", parts=["hubness", "wins"], k=3)
    assert set(answers) == {"hubness", "wins"}
    assert isinstance(answers["hubness"].table, pd.DataFrame)
    assert answers["hubness"].chart.startswith(b"\x89PNG")


def test_mistakes_are_those_of_the_commands(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        sr.Collection.embed(tmp_path / "nowhere", PIXELS, out=tmp_path / "out")
    with pytest.raises(UserError, match="metrisc"):
        sr.evaluate(tmp_path, PIXELS, out=tmp_path / "out", metrisc=["mAP"])
    with pytest.raises(UserError, match="color_histogramm"):
        sr.compare(tmp_path, {"colour": "color_histogramm"}, out=tmp_path / "out")
