"""The number format belongs to embeddings: never mixed unseen, and a query follows its collection."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Command
from made_up_photos import write_photos

from ssl_retrieval import config, embedding_files, network_input
from ssl_retrieval.data import folder
from ssl_retrieval.embed import EmbedOptions, embed, embed_image
from ssl_retrieval.find import find
from ssl_retrieval.representation import Representation
from ssl_retrieval.types import EmbeddingSet, VectorArray

NETWORK = {"name": "resnet10t", "weights": "random", "image_size": 32}
HISTOGRAM = {"name": "color_histogram", "bins": 2}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos", per_class=3, classes=3)


def representation_of(model: dict[str, Any], device: str = "cpu") -> Representation:
    return Representation.make("it", config.plugin_config("extractor", model, "model"), torch.device(device))


def run(root: Path, out: Path, precision: str, model: dict[str, Any] = NETWORK) -> EmbeddingSet:
    image_set = folder.images(folder.Config(root=str(root)))
    options = EmbedOptions(batch_size=4, precision=precision)
    return embed(representation_of(model), image_set, out, options=options)


def cosines(a: VectorArray, b: VectorArray) -> VectorArray:
    unit = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (a, b)]
    products: VectorArray = (unit[0] * unit[1]).sum(axis=1)
    return products


def test_another_precision_rebuilds(root: Path, tmp_path: Path) -> None:
    full = run(root, tmp_path / "out", "fp32")
    half = run(root, tmp_path / "out", "bf16")
    assert half.key != full.key
    assert half.meta["precision"] == "bf16"
    assert half.vectors.dtype == np.float32
    assert not np.array_equal(half.vectors, full.vectors)
    assert cosines(half.vectors, full.vectors).min() > 0.999


def test_automatic_is_full_precision_on_the_cpu(root: Path, tmp_path: Path) -> None:
    chosen = run(root, tmp_path / "a", "auto")
    assert chosen.meta["precision"] == "fp32"
    assert chosen.key == run(root, tmp_path / "b", "fp32").key


def test_the_precision_means_nothing_without_a_network(root: Path, tmp_path: Path) -> None:
    full, half = (run(root, tmp_path / name, name, HISTOGRAM) for name in ("fp32", "bf16"))
    assert full.key == half.key
    np.testing.assert_array_equal(full.vectors, half.vectors)


def test_pixels_made_another_way_rebuild(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = run(root, tmp_path / "out", "fp32")
    monkeypatch.setattr(network_input, "VERSION", network_input.VERSION + 1)
    assert run(root, tmp_path / "out", "fp32").key != before.key


def test_a_query_is_embedded_as_precisely_as_its_collection(root: Path, tmp_path: Path) -> None:
    half = run(root, tmp_path / "out", "bf16")
    file = root / half.ids[4]
    single = {
        precision: embed_image(representation_of(NETWORK), file, None, precision)
        for precision in ("fp32", "bf16")
    }
    distance = {p: np.abs(vector - half.vectors[4]).max() for p, vector in single.items()}
    assert distance["bf16"] < distance["fp32"] / 2
    hit = find(tmp_path / "out", file, k=1, device="cpu")[0]
    assert hit.file == file
    assert hit.score == pytest.approx(cosines(single["bf16"], half.vectors[4:5])[0], abs=1e-6)


def test_collections_of_older_versions_are_searched_in_full_precision(root: Path, tmp_path: Path) -> None:
    full = run(root, tmp_path / "out", "fp32")
    del full.meta["precision"]
    embedding_files.write_key(full, tmp_path / "out")
    assert "precision" not in embedding_files.read(tmp_path / "out").meta
    hit = find(tmp_path / "out", root / full.ids[4], k=1, device="cpu")[0]
    assert hit.score == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("embed.precision=fp8", "embed.precision='fp8': one of fp32, bf16, auto"),
        ("embed.num_workers=-2", "embed.num_workers=-2: must be 0 or more, or -1 = automatic"),
    ],
)
def test_options_that_mean_nothing(
    cli: Command, root: Path, tmp_path: Path, option: str, message: str
) -> None:
    (tmp_path / "job.yaml").write_text(f"data: {{name: folder, root: {root}}}\nmodel: {{name: pixels}}")
    done = cli("embed", tmp_path / "job.yaml", f"out={tmp_path / 'out'}", option)
    assert message in done.user_error()
    assert not (tmp_path / "out").exists()


def test_the_summary_tells_how_much_of_the_time_the_network_had(
    cli: Command, root: Path, tmp_path: Path
) -> None:
    for model, name in ((NETWORK, "network"), (HISTOGRAM, "histogram")):
        (tmp_path / "job.yaml").write_text(
            f"data: {{name: folder, root: {root}}}\nmodel: {json.dumps(model)}"
        )
        last = cli("embed", tmp_path / "job.yaml", f"out={tmp_path / name}").err.splitlines()[-1]
        assert ("% of the time in the network" in last) == (name == "network")
    assert 0 < embedding_files.read(tmp_path / "network").meta["network_share"] < 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_gpu_gives_the_rows_of_the_cpu_in_their_order(root: Path, tmp_path: Path, num_workers: int) -> None:
    image_set = folder.images(folder.Config(root=str(root)))
    (root / image_set.paths[2]).write_bytes(b"")
    rows = []
    for device in ("cpu", "cuda"):
        options = EmbedOptions(batch_size=2, num_workers=num_workers, precision="fp32")
        rows.append(embed(representation_of(NETWORK, device), image_set, tmp_path / device, options=options))
    assert rows[0].ids == rows[1].ids
    assert len(rows[0].ids) == 8
    assert cosines(rows[0].vectors, rows[1].vectors).min() > 0.999
