"""``ssl-retrieval index`` from the command line to its tables."""

import json
from pathlib import Path

import pandas as pd
import pytest
from command_line import Command

from ssl_retrieval import config
from ssl_retrieval.embedding_files import read
from ssl_retrieval.index_files import FOLDER, load, vectors_key
from ssl_retrieval.indexing import IndexConfig

CONFIGS = sorted((Path(__file__).parent.parent / "configs" / "index").glob("*.yaml"))
SPECS = "indexes=[Flat, SQ8, HNSW8 efSearch=9, HNSW8 efSearch=40, RaBitQ rescore=3]"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("job") / "job.yaml"
    file.write_text("model: {name: color_histogram, bins: 4}\ndata: {name: folder}")
    return file


@pytest.fixture
def empty_job(tmp_path: Path) -> Path:
    file = tmp_path / "empty.yaml"
    file.write_text("k: 5")
    return file


@pytest.fixture
def embeddings(cli: Command, job: Path, photos: Path, tmp_path: Path) -> Path:
    done = cli("embed", job, f"data.root={photos}", f"out={tmp_path / 'embeddings'}")
    assert done.code == 0, done.err
    return tmp_path / "embeddings"


def test_embeddings_are_indexed_and_audited(
    cli: Command, empty_job: Path, embeddings: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = cli("index", empty_job, f"embeddings={embeddings}", f"out={out}", SPECS, "memory_budget_mib=1")
    assert done.code == 0, done.err
    table = pd.read_csv(out / "table.csv").set_index("index")
    assert list(table.index) == [
        "exact",
        "Flat",
        "SQ8",
        "HNSW8 efSearch=9",
        "HNSW8 efSearch=40",
        "RaBitQ rescore=3",
    ]
    assert (table.loc[["exact", "Flat"], "recall"] == 1).all()
    assert (table.loc[["exact", "Flat"], "map_difference"].abs() < 1e-9).all()
    assert (table["num_queries"] == 40).all()
    assert table.loc["Flat", "bytes_per_image"] == pytest.approx(4 * 64, rel=0.01)
    assert table["on_front"].any()
    assert done.out.splitlines()[-1].startswith("within 1 MiB for 40 images: ")
    markdown = (out / "table.md").read_text()
    assert "mAP@5" in markdown
    assert "Recommended within 1 MiB" in markdown
    assert (out / "pareto.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "report.html").read_text()
    assert "RaBitQ rescore=3" in page
    assert "data:image/png;base64," in page
    stored = read(embeddings)
    files = sorted((embeddings / FOLDER).glob("*.faiss"))
    assert len(files) == 4
    for file in files:
        found = load(file, vectors_key(stored.key, stored.ids, stored.dim))
        assert found.built.index.ntotal == 40
        assert set(found.audits) <= set(table.index)


def test_unlabelled_embeddings_have_recall_only(
    cli: Command, empty_job: Path, embeddings: Path, tmp_path: Path
) -> None:
    items = pd.read_parquet(embeddings / "items.parquet")
    items["label"] = pd.Series([None] * len(items), dtype="string")
    items.to_parquet(embeddings / "items.parquet")
    done = cli(
        "index", empty_job, f"embeddings={embeddings}", f"out={tmp_path / 'o'}", "indexes=[SQ8]", "queries=7"
    )
    assert done.code == 0, done.err
    table = pd.read_csv(tmp_path / "o" / "table.csv")
    assert table["map_at_k"].isna().all()
    assert (table["num_queries"] == 7).all()


def test_a_task_is_embedded_post_processed_and_indexed(
    cli: Command, job: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    overrides = ["indexes=[Flat]", "steps=[l2]", "k=100", "gallery_size=1000", "bytes_per_image=300"]
    done = cli("index", job, f"data.root={photos}", f"out={out}", *overrides)
    assert done.code == 0, done.err
    table = pd.read_csv(out / "table.csv").set_index("index")
    assert table.loc["exact", "bytes_at_gallery_size"] == 4 * 64 * 1000
    assert (table[["k", "num_images"]] == 40).all(axis=None)
    assert table["map_at_k"].nunique() == 1
    assert "within 0.29 MiB for 1,000 images: " in done.out
    audits = json.loads(next((out / FOLDER).glob("*.json")).read_text())["audits"]
    assert audits["Flat"]["num_queries"] == 40


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["indexes=[Foo]"], "index 'Foo': faiss makes no 'Foo' of 64 dimensions"),
        (["indexes=[Flat nprobe=2]"], "index 'Flat nprobe=2': Flat has no setting 'nprobe'"),
        (['indexes=["IVF64,Flat"]'], "64 centroids cannot be learned from 40 images"),
        (["indexes=[]"], "at least one factory string"),
        (["k=0"], "k=0: must be above 0"),
        (["memory_budget_mib=-1"], "memory_budget_mib=-1"),
        (["memory_budget_mib=1", "bytes_per_image=3"], "give one of them"),
        (["data.name=folder", "data.root=x"], "give either"),
        (["index=[Flat]"], "unknown key 'index'; did you mean 'indexes'"),
    ],
)
def test_a_mistake_is_one_line(
    cli: Command, empty_job: Path, embeddings: Path, tmp_path: Path, overrides: list[str], words: str
) -> None:
    done = cli("index", empty_job, f"embeddings={embeddings}", f"out={tmp_path / 'o'}", *overrides)
    assert done.code == 2, (done.out, done.err)
    last = done.err.splitlines()[-1]
    assert last.startswith("error: ")
    assert words in last
    assert "Traceback" not in done.err


def test_nothing_to_index_is_one_line(cli: Command, empty_job: Path, tmp_path: Path) -> None:
    said = cli("index", empty_job, f"out={tmp_path / 'o'}").user_error()
    assert said.startswith("nothing to index: give embeddings=DIR")


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_config_loads_and_names_its_command(file: Path) -> None:
    overrides = ["out=runs/one"]
    given = {"embeddings": "embeddings=photos", "data": "data.root=photos", "fit": "fit.root=photos"}
    text = file.read_text("utf-8")
    overrides += [setting for key, setting in given.items() if f"\n{key}:" in text]
    cfg = config.load(IndexConfig, file, overrides)
    assert len(cfg.indexes) >= 6
    assert f"# ssl-retrieval index configs/index/{file.name} " in text
