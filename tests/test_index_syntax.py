"""Factory strings and settings."""

import pytest

from ssl_retrieval.errors import UserError
from ssl_retrieval.index_syntax import parse


def test_settings_are_sorted_out() -> None:
    spec = parse("  IVF256_HNSW32,PQ16   rescore=4 nprobe=16 efConstruction=80 ")
    assert spec.factory == "IVF256_HNSW32,PQ16"
    assert spec.build == (("efConstruction", 80),)
    assert spec.search == (("nprobe", 16),)
    assert spec.rescore == 4
    assert spec.built_as == "IVF256_HNSW32,PQ16 efConstruction=80"


@pytest.mark.parametrize(
    "text", ["Flat", "HNSW32 efSearch=64", "HNSW32 efConstruction=40 efSearch=10 rescore=2"]
)
def test_a_name_reads_back_as_the_same_spec(text: str) -> None:
    assert parse(parse(text).name) == parse(text)


def test_the_order_of_settings_does_not_matter() -> None:
    assert parse("IVF8,Flat rescore=2 nprobe=3") == parse("IVF8,Flat nprobe=3 rescore=2")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["factory string", "IVF256,PQ16"]),
        ("nprobe=3", ["factory string"]),
        ("IVF0,Flat", ["at least 1"]),
        ("HNSW1", ["at least 2"]),
        ("IVF8,Flat nprobe", ["'nprobe'", "whole number"]),
        ("IVF8,Flat nprobe=0", ["'nprobe=0'", "from 1"]),
        ("IVF8,Flat nprobe=2.5", ["'nprobe=2.5'"]),
        ("IVF8,Flat nprobe=2 nprobe=3", ["nprobe", "twice"]),
        ("IVF8,Flat nprobes=2", ["'nprobes'", "did you mean nprobe"]),
    ],
)
def test_a_mistake_is_one_line_that_names_it(text: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse(text)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(f"index {text!r}: ")
    assert all(word in message for word in words), message
