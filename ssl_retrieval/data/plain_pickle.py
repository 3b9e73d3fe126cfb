"""Plain values from a pickle of someone else, without running anything in it.

Some ground truths are published as pickles (``gnd_roxford5k.pkl``), and a pickle may call any function while
it is read. Here it cannot: opcodes that could are refused before reading starts, and the few names that a
pickle of numbers needs (those that numpy's own arrays and scalars write) lead to stand-ins of this file, not
to numpy. So what comes out is dict, list, tuple, str, bytes, int, float, bool, None and `NumberArray`.
"""

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ssl_retrieval.errors import UserError

MAX_BYTES = 2**28
"""Larger files are refused; the published ones have less than a megabyte."""

_VALUES = (
    "NONE NEWTRUE NEWFALSE INT LONG BININT BININT1 BININT2 LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING "
    "SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 "
    "BYTEARRAY8"
)
_CONTAINERS = (
    "EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS"
)
_MACHINERY = "PROTO FRAME STOP MARK GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE"
_CALLS = "GLOBAL STACK_GLOBAL REDUCE BUILD"
_OPCODES = frozenset(f"{_VALUES} {_CONTAINERS} {_MACHINERY} {_CALLS}".split())


class NumberArray:
    """A numeric array as it stands in a pickle; ``values`` is the array itself."""

    __slots__ = ("_data", "_dtype", "_order", "_shape")

    def __init__(self) -> None:
        """Make the empty array that `__setstate__` fills, as numpy's pickles do."""
        self._set((0,), np.dtype(np.uint8), "C", b"")

    def __setstate__(self, state: Any) -> None:
        """Take numpy's state: version, shape, dtype, Fortran order, bytes."""
        _, shape, dtype, is_fortran, data = state
        self._set(shape, _dtype_of(dtype), "F" if is_fortran else "C", data)

    def _set(self, shape: Any, dtype: np.dtype, order: str, data: Any) -> None:
        if not (isinstance(shape, tuple) and all(isinstance(side, int) and side >= 0 for side in shape)):
            raise _UnfitError("an array's shape is no tuple of whole numbers")
        # Python 2 wrote bytes as texts; they stay so until they are asked for, as copies could be many.
        if not isinstance(data, bytes | bytearray | str):
            raise _UnfitError("an array's content is not given as bytes")
        if len(data) != math.prod(shape) * dtype.itemsize:
            raise _UnfitError("an array's content does not fit its shape")
        self._shape, self._dtype, self._order, self._data = shape, dtype, order, data

    @property
    def values(self) -> NDArray[Any]:
        """The numbers, with the dtype and shape that were written."""
        data = self._data.encode("latin1") if isinstance(self._data, str) else self._data
        flat = np.frombuffer(data, self._dtype)
        return flat.reshape(self._shape, order="F" if self._order == "F" else "C")


def read(file: Path) -> Any:
    """Read a pickle of plain values and numeric arrays.

    Args:
        file: Written by any protocol of Python 2 or 3.

    Returns:
        What was pickled: dict, list, tuple, str, bytes, int, float, bool and None, as deep as they go;
        numpy scalars as Python numbers, numpy arrays as `NumberArray`.

    Raises:
        UserError: The file is missing, damaged, or holds anything else. Nothing in it was executed.
    """
    try:
        data = file.read_bytes() if file.stat().st_size <= MAX_BYTES else None
    except OSError as error:
        raise UserError(f"cannot read {str(file)!r}: {error.strerror or error}") from None
    if data is None:
        raise UserError(f"{str(file)!r} has more than {MAX_BYTES} bytes: give the published ground truth")
    try:
        _check_opcodes(data)
        value = _PlainUnpickler(data).load()
        _check_values(value)
        return value
    except _UnfitError as error:
        reason = str(error)
    except Exception as error:  # a damaged pickle raises nearly any type
        reason = f"it is damaged ({type(error).__name__})"
    raise UserError(f"{str(file)!r} is refused, {reason}: download the published file again")


class _UnfitError(Exception):
    """Something that plain values and numeric arrays do not need."""


def _check_opcodes(data: bytes) -> None:
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name not in _OPCODES:
            raise _UnfitError(f"it holds more than plain values and numeric arrays ({opcode.name})")
        # A memo is as long as its largest index says, so a wild one would fill the memory.
        if "PUT" in opcode.name and int(argument or 0) > len(data):
            raise _UnfitError("it counts more values than it has bytes")


def _check_values(value: Any) -> None:
    # A file may end, or fill a list, with a stand-in that it never calls.
    waiting, seen = [value], set()
    while waiting:
        one = waiting.pop()
        if isinstance(one, _Name | _NumberType):
            raise _UnfitError("it holds a function or a type instead of a value")
        if isinstance(one, dict | list | tuple) and id(one) not in seen:
            seen.add(id(one))
            waiting.extend([*one, *one.values()] if isinstance(one, dict) else one)


class _PlainUnpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        # Each text is turned into bytes once in an honest file, so all of them together are no longer.
        self._bytes_left = len(data)
        self._names: dict[str, object] = {
            "numpy.ndarray": _Name(_not_called),
            "numpy.dtype": _Name(_NumberType),
            "multiarray._reconstruct": _Name(lambda *_: NumberArray()),
            "multiarray.scalar": _Name(_scalar),
            "numeric._frombuffer": _Name(_from_buffer),
            "_codecs.encode": _Name(self._encode),
            "builtins.bytes": _Name(_no_bytes),
        }

    def find_class(self, module: str, name: str) -> Any:
        """Give the stand-in for one of the names that numpy writes."""
        home = re.sub(r"^numpy\.(_)?core\.", "", module).replace("__builtin__", "builtins")
        if f"{home}.{name}" not in self._names:
            raise _UnfitError(f"it calls {module}.{name}, which numbers do not need")
        return self._names[f"{home}.{name}"]

    def _encode(self, text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise _UnfitError(f"it encodes a text as {encoding!r}")
        self._bytes_left -= len(text)
        if self._bytes_left < 0:
            raise _UnfitError("it makes more bytes than it has")
        return text.encode(encoding)


class _Name:
    """A name of a pickle that may be called; unlike a function it has no attributes to overwrite."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> NoReturn:
        raise _UnfitError("it changes a function")


class _NumberType:
    """The dtype of numbers of one kind and size."""

    __slots__ = ("dtype",)

    def __init__(self, code: Any, *_: Any) -> None:
        if not (isinstance(code, str) and re.fullmatch(r"[iu][1248]|f[248]|b1", code)):
            raise _UnfitError("it holds an array of something else than numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        _, byte_order, *parts = state
        if byte_order not in ("<", ">", "=", "|") or any(part is not None for part in parts[:3]):
            raise _UnfitError("it holds an array of something else than numbers")
        self.dtype = self.dtype.newbyteorder(byte_order)


def _dtype_of(value: Any) -> np.dtype:
    if not isinstance(value, _NumberType):
        raise _UnfitError("it holds an array of something else than numbers")
    return value.dtype


def _scalar(dtype: Any, data: Any) -> int | float | bool:
    array = NumberArray()
    array._set((), _dtype_of(dtype), "C", data)
    return array.values.item()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> NumberArray:
    array = NumberArray()
    array._set(shape, _dtype_of(dtype), order, data)
    return array


def _no_bytes(*arguments: Any) -> bytes:
    if arguments:
        raise _UnfitError("it calls bytes")
    return b""


def _not_called(*_: Any) -> NoReturn:
    raise _UnfitError("it calls numpy.ndarray")
