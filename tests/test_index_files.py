"""Indexes on disk: what comes back, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from ssl_retrieval.errors import UserError
from ssl_retrieval.index import build, search
from ssl_retrieval.index_files import add_audit, index_file, is_current, load, save, sidecar, vectors_key
from ssl_retrieval.index_syntax import parse
from ssl_retrieval.postprocess import l2_normalize
from ssl_retrieval.types import VectorArray

OF = vectors_key("some key", ("a.png", "b.png"), 8)


@pytest.fixture(scope="module")
def vectors() -> VectorArray:
    return l2_normalize(np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32))


@pytest.fixture
def file(tmp_path: Path, vectors: VectorArray) -> Path:
    built = build(parse("HNSW8 efConstruction=20"), vectors)
    path = index_file(tmp_path / "indexes", built.spec.built_as)
    save(built, path, OF)
    return path


def test_what_was_saved_comes_back(file: Path, vectors: VectorArray) -> None:
    stored = load(file, OF)
    built = build(parse("HNSW8 efConstruction=20"), vectors)
    spec = parse("HNSW8 efConstruction=20 efSearch=50")
    found = search(stored.built, spec, vectors[:20], 5)
    assert (found.indices == search(built, spec, vectors[:20], 5).indices).all()
    assert stored.built.num_bytes == file.stat().st_size == built.num_bytes
    assert stored.built.fixed_bytes == built.fixed_bytes
    assert stored.audits == {}


def test_nothing_unfinished_is_left(file: Path) -> None:
    assert sorted(path.name for path in file.parent.iterdir()) == sorted([file.name, sidecar(file).name])


def test_audits_are_kept_beside_it(file: Path) -> None:
    add_audit(file, "HNSW8 efSearch=5", {"recall": 0.5})
    add_audit(file, "HNSW8 efSearch=9", {"recall": 0.9})
    add_audit(file, "HNSW8 efSearch=9", {"recall": 0.8})
    assert load(file, OF).audits == {"HNSW8 efSearch=5": {"recall": 0.5}, "HNSW8 efSearch=9": {"recall": 0.8}}


def test_every_factory_string_has_its_own_file(tmp_path: Path) -> None:
    texts = ["IVF16,PQ8", "IVF16_PQ8", "IVF16,PQ8x4", "HNSW8", "HNSW8 efConstruction=20", "../../x"]
    files = {index_file(tmp_path, text) for text in texts}
    assert len(files) == len(texts)
    assert {path.parent for path in files} == {tmp_path}


@pytest.mark.parametrize(
    ("key", "ids", "dim"),
    [
        ("other", ("a.png", "b.png"), 8),
        ("some key", ("b.png", "a.png"), 8),
        ("some key", ("a.png", "b.png"), 9),
    ],
)
def test_an_index_of_other_vectors_is_refused(file: Path, key: str, ids: tuple[str, ...], dim: int) -> None:
    other = vectors_key(key, ids, dim)
    assert is_current(file, OF)
    assert not is_current(file, other)
    with pytest.raises(UserError, match=r"is of other embeddings.*--index 'HNSW8 efConstruction=20'"):
        load(file, other)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("damage", [flip, cut_short])
def test_a_damaged_index_never_reaches_faiss(
    file: Path, damage: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    import faiss

    assert callable(damage)
    damage(file)
    monkeypatch.setattr(faiss, "read_index", lambda name: pytest.fail("was read"))
    with pytest.raises(UserError, match="the index file is damaged"):
        load(file, OF)


def test_a_file_that_faiss_cannot_read_is_one_line(file: Path) -> None:
    file.write_bytes(b"nothing of the kind")
    content = json.loads(sidecar(file).read_text())
    import hashlib

    content["digest"] = hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
    sidecar(file).write_text(json.dumps(content))
    with pytest.raises(UserError, match="cannot read") as caught:
        load(file, OF)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "missing or damaged"),
        ("{", "missing or damaged"),
        ("[]", "missing or damaged"),
        ("{}", "another version"),
        ('{"schema": 7}', "another version"),
    ],
)
def test_a_wrong_json_is_one_line(file: Path, text: str | None, words: str) -> None:
    if text is None:
        sidecar(file).unlink()
    else:
        sidecar(file).write_text(text)
    assert not is_current(file, OF)
    with pytest.raises(UserError, match=words):
        load(file, OF)


def test_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no index file"):
        load(tmp_path / "a.faiss", OF)
