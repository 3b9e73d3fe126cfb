"""One picture against an embedded collection."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import Command, Outcome
from hypothesis import given
from hypothesis import strategies as st
from made_up_photos import photo

from ssl_retrieval.embedding_files import read
from ssl_retrieval.find import find, nearest
from ssl_retrieval.images import load_image
from ssl_retrieval.postprocess import l2_normalize


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("job") / "job.yaml"
    file.write_text("data: {name: folder}\nmodel: {name: color_histogram, bins: 4}")
    return file


@pytest.fixture
def embeddings(cli: Command, job: Path, photos: Path, tmp_path: Path) -> Path:
    done = cli("embed", job, f"data.root={photos}", f"out={tmp_path / 'out'}")
    assert done.code == 0, done.err
    return tmp_path / "out"


def test_a_picture_finds_itself_first(embeddings: Path, photos: Path) -> None:
    for name in ("apple/0.png", "door/9.png"):
        hits = find(embeddings, photos / name, k=5)
        assert hits[0].file == photos / name
        assert hits[0].score == pytest.approx(1, abs=1e-5)
        assert len(hits) == 5


def test_the_order_is_that_of_the_cosine(embeddings: Path, photos: Path) -> None:
    stored = read(embeddings)
    vectors = l2_normalize(stored.vectors)
    cosines = vectors @ vectors[stored.ids.index("bear/3.png")]
    hits = find(embeddings, photos / "bear" / "3.png", k=40)
    assert [hit.file.relative_to(photos).as_posix() for hit in hits] == [
        stored.ids[i] for i in np.argsort(-cosines, kind="stable")
    ]
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(cosines)[::-1], atol=1e-5)


def test_a_new_picture_finds_its_kind(embeddings: Path, photos: Path, tmp_path: Path) -> None:
    photo((200, 40, 40), seed=77, size=(90, 50)).save(tmp_path / "red.webp")
    hits = find(embeddings, tmp_path / "red.webp", k=10)
    assert {hit.file.parent.name for hit in hits} == {"apple"}


@given(seed=st.integers(0, 1000), k=st.integers(1, 12), rows=st.integers(1, 15))
def test_blocks_find_what_a_stable_sort_of_all_cosines_finds(seed: int, k: int, rows: int) -> None:
    draw = np.random.default_rng(seed)
    # Along the axes and of any length: cosines are exact, and many tie.
    axes = np.array([[1, 0], [-1, 0], [0, 1], [0, -1], [0, 0]])
    gallery = (draw.choice(axes, 12) * draw.choice([1, 2, 3], (12, 1))).astype(np.float32)
    queries = l2_normalize(draw.integers(-1, 2, (3, 2)).astype(np.float32))
    found = nearest(queries, gallery, k, rows)
    scores = queries @ l2_normalize(gallery).T
    np.testing.assert_array_equal(found.indices, np.argsort(-scores, axis=1, kind="stable")[:, :k])


def test_more_than_there_are_gives_all(embeddings: Path, photos: Path) -> None:
    hits = find(embeddings, photos / "bear" / "3.png", k=1000)
    assert len({hit.file for hit in hits}) == 40


def test_stdout_is_score_tab_path(cli: Command, embeddings: Path, photos: Path) -> None:
    done = cli("search", "--embeddings", embeddings, "--query", photos / "cloud" / "2.png", "--k", 3)
    assert (done.code, done.err) == (0, "")
    rows = [line.split("\t") for line in done.out.splitlines()]
    assert rows[0] == ["1.0000", str(photos / "cloud" / "2.png")]
    assert len(rows) == 3
    scores = [float(score) for score, _ in rows]
    assert scores == sorted(scores, reverse=True)
    assert all(Path(path).is_file() for _, path in rows)


def test_the_page_shows_the_pictures(cli: Command, embeddings: Path, photos: Path, tmp_path: Path) -> None:
    page = tmp_path / "new" / "hits.html"
    query = photos / "cloud" / "2.png"
    done = cli("search", "--embeddings", embeddings, "--query", query, "--k", 3, "--html", page)
    assert (done.code, done.err) == (0, f"written: {page}\n")
    text = page.read_text(encoding="utf-8")
    assert text.count("<img") == 4
    assert "Images similar to 2.png" in text
    assert 'src="data:image' in text
    assert "http://" not in text.replace("http://www.w3.org", "")


def test_paths_lead_to_the_images_from_anywhere(
    cli: Command, job: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    assert cli("embed", job, "data.root=photos", f"out={tmp_path / 'out'}").code == 0
    monkeypatch.chdir(tmp_path)
    done = cli("search", "--embeddings", "out", "--query", photos / "bear" / "1.png", "--k", 1)
    assert done.out == f"1.0000\t{photos / 'bear' / '1.png'}\n"


def test_the_query_is_reduced_as_the_collection_was(
    cli: Command, job: Path, photos: Path, tmp_path: Path
) -> None:
    assert cli("embed", job, f"data.root={photos}", f"out={tmp_path / 'out'}", "image_size=8").code == 0
    query = photos / "bear" / "1.png"
    assert min(load_image(query).size) > 8
    hits = find(tmp_path / "out", query, k=1)
    assert hits[0].score == pytest.approx(1, abs=1e-5)


def test_an_index_that_misses_nothing_finds_what_exact_search_finds(embeddings: Path, photos: Path) -> None:
    exact = find(embeddings, photos / "bear/3.png", k=5)
    for index in ("Flat", "HNSW8 efSearch=40", "SQ8 rescore=8"):
        hits = find(embeddings, photos / "bear/3.png", k=5, index=index)
        assert [hit.file for hit in hits] == [hit.file for hit in exact]
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in exact], abs=1e-5)


def search_with(cli: Command, embeddings: Path, photos: Path, index: object) -> Outcome:
    query = photos / "bear/3.png"
    return cli("search", "--embeddings", embeddings, "--query", query, "--k", 3, "--index", index)


def test_the_command_says_that_it_is_approximate_and_how_good(
    cli: Command, embeddings: Path, photos: Path, tmp_path: Path
) -> None:
    done = search_with(cli, embeddings, photos, "HNSW8 efSearch=40")
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 3
    assert "building HNSW8 of 40 images" in done.err
    assert "approximate search by HNSW8 efSearch=40: its recall is not known" in done.err
    job = tmp_path / "index.yaml"
    job.write_text("indexes: [HNSW8 efSearch=40]\nk: 4")
    assert cli("index", job, f"embeddings={embeddings}", f"out={tmp_path / 'o'}").code == 0
    done = search_with(cli, embeddings, photos, "HNSW8 efSearch=40")
    assert "building" not in done.err
    assert "by HNSW8 efSearch=40: recall@4 1.000 against exact search, over 40 queries" in done.err
    file = next((embeddings / "indexes").glob("*.faiss"))
    done = search_with(cli, embeddings, photos, file)
    assert done.code == 0
    assert "approximate search by HNSW8: its recall is not known" in done.err


def test_an_index_of_older_embeddings_is_refused_as_a_file_and_built_again_by_name(
    cli: Command, embeddings: Path, photos: Path
) -> None:
    assert search_with(cli, embeddings, photos, "SQ8").code == 0
    key = json.loads((embeddings / "key.json").read_text())
    (embeddings / "key.json").write_text(json.dumps({**key, "key": "another"}))
    file = next((embeddings / "indexes").glob("*.faiss"))
    assert "is of other embeddings" in search_with(cli, embeddings, photos, file).user_error()
    assert "building SQ8" in search_with(cli, embeddings, photos, "SQ8").err


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("Foo", "faiss makes no 'Foo' of 64 dimensions"),
        ("nowhere.faiss", "no index file 'nowhere.faiss'"),
        ("Flat efSearch=3", "Flat has no setting 'efSearch'"),
    ],
)
def test_a_wrong_index_is_one_line(
    cli: Command, embeddings: Path, photos: Path, index: str, words: str
) -> None:
    done = search_with(cli, embeddings, photos, index)
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith("error: ")
    assert words in done.err
    assert "Traceback" not in done.err


def test_a_damaged_index_is_one_line(cli: Command, embeddings: Path, photos: Path) -> None:
    assert search_with(cli, embeddings, photos, "SQ8").code == 0
    file = next((embeddings / "indexes").glob("*.faiss"))
    file.write_bytes(file.read_bytes()[:-1])
    assert "the index file is damaged" in search_with(cli, embeddings, photos, "SQ8").user_error()
