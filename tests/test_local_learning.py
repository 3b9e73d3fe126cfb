"""Vocabularies: learned once, kept in a file, keyed by the images; then used in worker processes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from local_pictures import scene, write_scenes
from PIL import Image
from test_local_features import NAMES, SMALL

from ssl_retrieval import config, learning
from ssl_retrieval.embed import EmbedConfig, EmbedOptions, embed, run_embed
from ssl_retrieval.errors import UserError
from ssl_retrieval.find import find
from ssl_retrieval.representation import Representation
from ssl_retrieval.types import ImageSet


def representation(name: str, **options: Any) -> Representation:
    cfg = config.plugin_config("extractor", {"name": name} | SMALL[name] | options, "model")
    return Representation.make(name, cfg, torch.device("cpu"))


def images_in(root: Path) -> ImageSet:
    return ImageSet(root, tuple(sorted(file.name for file in root.iterdir())))


def teach(name: str, photos: ImageSet, file: Path, **options: Any) -> Representation:
    made = representation(name, **options)
    learning.teach(made, photos, file, image_size=None, on_error="fail")
    return made


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return images_in(write_scenes(tmp_path_factory.mktemp("photos") / "scenes", 5))


@pytest.mark.parametrize("name", NAMES)
def test_what_was_learned_comes_back_from_its_file(name: str, photos: ImageSet, tmp_path: Path) -> None:
    file = tmp_path / "learned.safetensors"
    first = teach(name, photos, file)
    written = file.stat().st_mtime_ns
    again = teach(name, photos, file)
    recalled = representation(name)
    learning.recall(recalled, file)
    assert file.stat().st_mtime_ns == written
    picture = scene(77)
    expected = first.extractor.preprocess(picture)
    assert expected.any()
    for other in (again, recalled):
        assert other.identity() == first.identity()
        assert torch.equal(other.extractor.preprocess(picture), expected)


@pytest.mark.parametrize("name", NAMES)
def test_other_images_or_options_are_learned_anew(name: str, photos: ImageSet, tmp_path: Path) -> None:
    root = write_scenes(tmp_path / "scenes", 5)
    file = tmp_path / "learned.safetensors"
    digests = [teach(name, images_in(root), file).extractor.weights_digest]
    scene(50).save(root / "000.png")
    digests.append(teach(name, images_in(root), file).extractor.weights_digest)
    digests.append(teach(name, images_in(root), file, max_keypoints=20).extractor.weights_digest)
    assert len(set(digests)) == 3


@pytest.mark.parametrize("name", NAMES)
def test_worker_processes_give_what_threads_give(name: str, photos: ImageSet, tmp_path: Path) -> None:
    # Learning has woken the threads of faiss, scikit-learn and torch, which a fork does not take along.
    made = teach(name, photos, tmp_path / "learned.safetensors")
    found = [
        embed(made, photos, tmp_path / str(num), options=EmbedOptions(num_workers=num)).vectors
        for num in (0, 2)
    ]
    np.testing.assert_allclose(found[0], found[1], atol=2e-3 if name == "vlad" else 1e-6)


def test_a_folder_is_embedded_and_searched(photos: ImageSet, tmp_path: Path) -> None:
    out = tmp_path / "out"
    section = {"name": "asmk", "words": 60}
    run_embed(
        EmbedConfig(
            out=str(out),
            device="cpu",
            data=config.plugin_config("dataset", {"name": "folder", "root": str(photos.root)}, "data"),
            model=config.plugin_config("extractor", section, "model"),
        )
    )
    query = tmp_path / "query.png"
    scene(3).crop((20, 20, 150, 150)).save(query)
    hits = find(out, query, k=5, device="cpu")
    assert hits[0].file.name == "003.png"
    assert 0 <= hits[1].score < hits[0].score < 1
    assert find(out, photos.file(1), k=1, device="cpu")[0].score == pytest.approx(1)


@pytest.mark.parametrize("name", NAMES)
def test_blank_images_teach_nothing(name: str, tmp_path: Path) -> None:
    root = tmp_path / "blank"
    root.mkdir()
    Image.new("RGB", (40, 40), "grey").save(root / "grey.png")
    with pytest.raises(UserError, match="none of the 1 images to learn from has a SIFT keypoint"):
        teach(name, images_in(root), tmp_path / "learned.safetensors")
    assert not (tmp_path / "learned.safetensors").exists()
