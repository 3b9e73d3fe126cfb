"""Queries cut to their boxes: from the table to the vector."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up_photos import photo
from PIL import Image

from ssl_retrieval import decoding, images
from ssl_retrieval.data import manifest
from ssl_retrieval.embed import EmbedOptions, embed
from ssl_retrieval.errors import UserError
from ssl_retrieval.evaluate import score
from ssl_retrieval.extractors import pixels
from ssl_retrieval.representation import Representation
from ssl_retrieval.types import ImageSet

HEADER = "path,instance,role,left,top,right,bottom\n"
TASK = HEADER + "q.png,1,both,10,20,30,60\na.png,1,gallery,,,,\nb.png,2,both,,,,\nc.png,2,gallery,,,,\n"
SMALL = pixels.Config(size=4)
EDGES = st.floats(-1000, 1000)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    for number, name in enumerate("qabc"):
        photo((40 * number, 90, 160), seed=number, size=(80, 100)).save(tmp_path / f"{name}.png")
    file = tmp_path / "photos.csv"
    file.write_text(TASK, encoding="utf-8")
    return file


def representation() -> Representation:
    return Representation.make("pixels", SMALL, torch.device("cpu"))


@given(EDGES, EDGES, EDGES, EDGES)
def test_a_box_leaves_a_part_of_the_image(left: float, top: float, right: float, bottom: float) -> None:
    image = Image.new("RGB", (50, 40))
    kept = images.cut(image, (left, top, right, bottom))
    assert 1 <= kept.width <= 50
    assert 1 <= kept.height <= 40


def test_a_box_is_cut_as_pillow_cuts_it() -> None:
    image = photo((10, 200, 30), 1, size=(50, 40))
    kept = images.cut(image, (3.4, 4.6, 20, 30))
    assert np.array_equal(np.asarray(kept), np.asarray(image.crop((3, 5, 20, 30))))
    assert images.cut(image, None) is image


def test_queries_are_cut_and_the_gallery_is_not(table: Path) -> None:
    task = manifest.load(manifest.Config(file=str(table)))
    assert task.protocol.query_crop == "box"
    assert [task.queries.box(i) for i in range(2)] == [(10, 20, 30, 60), None]
    assert task.gallery.boxes is None
    assert task.queries.take(np.array([1], np.int64)).box(0) is None


def test_a_box_can_be_left_unused(table: Path) -> None:
    task = manifest.load(manifest.Config(file=str(table), query_crop="none"))
    assert task.protocol.query_crop == "none"
    assert task.queries.boxes is None


def test_the_vector_is_that_of_the_cut_image(table: Path, tmp_path: Path) -> None:
    task = manifest.load(manifest.Config(file=str(table)))
    found = embed(representation(), task.queries, tmp_path / "e", options=EmbedOptions())
    with Image.open(table.parent / "q.png") as image:
        expected = pixels.Extractor(SMALL).preprocess(image.crop((10, 20, 30, 60)))
    assert np.array_equal(found.vectors[0], expected.numpy())


def test_a_box_is_scaled_with_its_image(table: Path) -> None:
    task = manifest.load(manifest.Config(file=str(table)))
    size = decoding.Decoded(task.queries, np.array([0]), lambda image: torch.tensor(image.size), 40)[0][1]
    assert isinstance(size, torch.Tensor)
    assert size.tolist() == [10, 20]


def test_another_box_is_another_key(table: Path, tmp_path: Path) -> None:
    whole = ImageSet(table.parent, ("q.png",))
    keys = set()
    for edge in (None, 20, 30):
        boxes = None if edge is None else np.array([[0, 0, edge, 40]], np.float32)
        cut = ImageSet(whole.root, whole.paths, boxes=boxes)
        keys.add(embed(representation(), cut, tmp_path / "e", options=EmbedOptions()).key)
    assert len(keys) == 3


def test_the_same_photo_is_embedded_whole_and_cut(table: Path, tmp_path: Path) -> None:
    task = manifest.load(manifest.Config(file=str(table)))
    report = score(representation(), task, cache=tmp_path / "cache").report
    assert report.protocol["query_crop"] == "box"
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_the_protocol_tells_the_two_apart(table: Path) -> None:
    crops = ("box", "none")
    cut, whole = (manifest.load(manifest.Config(file=str(table), query_crop=crop)) for crop in crops)
    assert cut.protocol.to_dict()["hash"] != whole.protocol.to_dict()["hash"]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("q.png,1,both,30,20,10,60", "left below right"),
        ("q.png,1,both,10,20,30,", "needs four numbers"),
        ("q.png,1,both,10,20,wide,60", "right=wide"),
    ],
)
def test_a_wrong_box_is_named(table: Path, row: str, complaint: str) -> None:
    table.write_text(f"{HEADER}{row}\na.png,1,gallery,,,,\n", encoding="utf-8")
    with pytest.raises(UserError, match=complaint):
        manifest.load(manifest.Config(file=str(table)))


def test_a_crop_without_boxes_is_refused(table: Path) -> None:
    table.write_text("path,instance\nq.png,1\na.png,1\n", encoding="utf-8")
    with pytest.raises(UserError, match="has a box"):
        manifest.load(manifest.Config(file=str(table), query_crop="box"))
