"""Pickles of numbers come out as they were; pickles that do anything else are refused and never run."""

import builtins
import contextlib
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ssl_retrieval.data import plain_pickle
from ssl_retrieval.errors import UserError

NUMBERS = st.sampled_from(["int64", "uint8", "int32", "float64", "float32", ">i4", "bool"])


def as_numpy(value: Any) -> Any:
    """Put arrays in place of what stands for them."""
    if isinstance(value, plain_pickle.NumberArray):
        return value.values
    if isinstance(value, dict):
        return {key: as_numpy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(as_numpy(item) for item in value)
    return value


def written(folder: Path, content: bytes) -> Path:
    file = folder / "gnd.pkl"
    file.write_bytes(content)
    return file


GROUND_TRUTH = {
    "imlist": ["all_souls_000013", "ünïcode"],
    "gnd": [{"bbx": [1.5, 2, 3, 4], "easy": [0, 2], "hard": (1,), "none": None, "yes": True, "big": 2**70}],
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_come_out_as_they_were(tmp_path: Path, protocol: int) -> None:
    file = written(tmp_path, pickle.dumps(GROUND_TRUTH, protocol))
    assert plain_pickle.read(file) == GROUND_TRUTH


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@given(array=NUMBERS.flatmap(lambda d: arrays.arrays(d, arrays.array_shapes(min_dims=0, min_side=0))))
def test_arrays_come_out_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, protocol: int, array: Any
) -> None:
    file = written(tmp_path_factory.mktemp("array"), pickle.dumps([array, array], protocol))
    for found in as_numpy(plain_pickle.read(file)):
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_columns_and_scalars_come_out_as_they_were(tmp_path: Path, protocol: int) -> None:
    columns = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    value = [columns, columns.T, np.float32(1.5), np.int64(-7), np.bool_(True)]
    found = as_numpy(plain_pickle.read(written(tmp_path, pickle.dumps(value, protocol))))
    np.testing.assert_array_equal(found[0], columns)
    np.testing.assert_array_equal(found[1], columns.T)
    assert found[2:] == [1.5, -7, True]


def test_an_array_of_python_2_comes_out(tmp_path: Path) -> None:
    # Python 2 wrote the bytes of an array as a text (opcode U).
    state = (
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02i2K\x00K\x01\x87R(K\x03U\x01<NNN"
        + 2 * b"J\xff\xff\xff\xff"
        + b"K\x00tb"
    )
    head = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    file = written(tmp_path, head + state + b"\x89U\x04\x01\x00\xff\xfftb.")
    assert plain_pickle.read(file).values.tolist() == [1, -1]


class Call:
    """Pickled, this calls a function while it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_command_is_never_run(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "trace"
    for call in (
        Call(os.system, f"touch {trace}"),
        Call(builtins.eval, f"open({str(trace)!r}, 'w')"),
        Call(builtins.open, str(trace), "w"),
        Call(getattr, Call(__import__, "os"), "system"),
        Call(np.savetxt, str(trace), [1]),
        Call(np.load, str(trace)),
        Call(np.ones, 3),
        Call(bytes, 10**9),
    ):
        for value in (call, {"gnd": [{"easy": call}]}, (np.arange(3), call)):
            with pytest.raises(UserError, match=r"is refused, it calls .*: download the published file"):
                plain_pickle.read(written(tmp_path, pickle.dumps(value, protocol)))
    assert not trace.exists()


@pytest.mark.parametrize(
    "value",
    [
        np.array([None, 1], dtype=object),
        np.array(["text"]),
        np.array([b"text"]),
        np.zeros(2, dtype=[("x", "i4")]),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
        np.ma.masked_array([1, 2], [False, True]),
        {1, 2},
        1 + 2j,
        Path("here"),
        range(3),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_anything_but_numbers_is_refused(tmp_path: Path, protocol: int, value: Any) -> None:
    with pytest.raises(UserError, match="is refused, it"):
        plain_pickle.read(written(tmp_path, pickle.dumps([value], protocol)))


ENCODE = b"c_codecs\nencode\n"
TRICKS = {
    "memo of 32 GiB": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "memo index as text": b"Np99999999999\n.",
    "get of what was never put": b"\x80\x02h\x05.",
    "extension registry": b"\x80\x02\x82\x01.",
    "persistent id": b"Pabc\n.",
    "new object": b"\x80\x02cnumpy\nndarray\n)\x81.",
    "instance": b"(icollections\nOrderedDict\n.",
    "object": b"(cnumpy\ndtype\nU\x02i8o.",
    "change of a function": ENCODE + b"N}X\x08\x00\x00\x00__code__K\x01s\x86b.",
    "attribute of a name by dots": b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__class__\x93.",
    "another codec": ENCODE + b"(X\x01\x00\x00\x00aX\x03\x00\x00\x00hextR.",
    "bytes without end": b"\x80\x04("
    + b"".join(
        [
            ENCODE,
            b"\x94X\xff\x00\x00\x00",
            b"a" * 255,
            b"\x94",
            *[b"h\x00(h\x01X\x06\x00\x00\x00latin1tR"] * 99,
        ]
    )
    + b"l.",
    "announced length": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"a.",
    "call of the array type": b"cnumpy\nndarray\n(K\x09tR.",
    "call of a list": b"](K\x01tR.",
    "array that is no array": b"cnumpy\ndtype\n(]tR.",
    "shape larger than its bytes": pickle.dumps(np.arange(3), 2).replace(b"K\x03\x85", b"K\x77\x85", 1),
    "a name alone": b"cnumpy\nndarray\n.",
    "a name among values": b"](K\x01}K\x02cnumpy\nndarray\n\x85se.",
    "a type of numbers alone": pickle.dumps(np.dtype("<i4"), 2),
    "cut short": pickle.dumps(GROUND_TRUTH)[:-9],
    "empty": b"",
    "text": b"no pickle at all",
    "nested without end": b"\x80\x02" + b"]" * 10 + b"a" * 20 + b".",
}


@pytest.mark.parametrize("trick", TRICKS)
def test_tricks_end_in_one_line(tmp_path: Path, trick: str) -> None:
    with pytest.raises(UserError, match=r"gnd.pkl' is refused, .*: download") as refused:
        plain_pickle.read(written(tmp_path, TRICKS[trick]))
    assert "\n" not in str(refused.value)


@example(b"", 199, 46)  # ends with a name
@given(st.binary(max_size=60), st.integers(0, 200), st.integers(0, 255))
def test_damage_never_gives_anything_but_plain_values_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, tail: bytes, place: int, byte: int
) -> None:
    content = bytearray(pickle.dumps([GROUND_TRUTH, np.arange(3)], 4))
    content[min(place, len(content) - 1)] = byte
    for damaged in (bytes(content), tail, bytes(content[:place]) + tail):
        with contextlib.suppress(UserError):
            assert not callable(plain_pickle.read(written(tmp_path_factory.getbasetemp(), damaged)))


def test_a_missing_and_a_huge_file_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"cannot read .*gnd\.pkl'"):
        plain_pickle.read(tmp_path / "gnd.pkl")
    monkeypatch.setattr(plain_pickle, "MAX_BYTES", 3)
    with pytest.raises(UserError, match="more than 3 bytes"):
        plain_pickle.read(written(tmp_path, pickle.dumps(GROUND_TRUTH)))
