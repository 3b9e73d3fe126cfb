"""Searching in embeddings whose extractor has learned a vocabulary and scores in its own way."""

from pathlib import Path

import numpy as np
import pytest
from command_line import Command
from local_pictures import write_scenes
from PIL import Image

from ssl_retrieval.find import find


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("words") / "scenes", 12)


@pytest.mark.parametrize("model", ["bow, words: 32", "asmk, words: 32", "vlad, words: 4"])
def test_a_part_of_a_picture_finds_the_whole(cli: Command, scenes: Path, model: str, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(f"data: {{name: folder}}\nmodel: {{name: {model}}}")
    done = cli("embed", job, f"data.root={scenes}", f"out={tmp_path / 'out'}")
    assert done.code == 0, done.err
    assert "learns from 12 images" in done.err
    with Image.open(scenes / "005.png") as whole:
        whole.crop((20, 20, 140, 140)).save(tmp_path / "part.png")
    hits = find(tmp_path / "out", tmp_path / "part.png", k=12)
    assert hits[0].file == scenes / "005.png"
    assert np.isfinite([hit.score for hit in hits]).all()
    again = cli("embed", job, f"data.root={scenes}", f"out={tmp_path / 'out'}")
    assert "learns" not in again.err, "it was recalled"
