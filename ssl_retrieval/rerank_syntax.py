"""Reads one re-ranking step, ``name(key=value, …)``, into a dataclass; every mistake names what fits."""

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import Field, field, fields
from typing import Any

from ssl_retrieval.errors import UserError


def whole(default: int, lowest: int, highest: int) -> Any:
    """Declare a parameter that is a whole number within bounds."""
    return field(default=default, metadata={"read": _Number(int, lowest, highest)})


def number(default: float, lowest: float, highest: float) -> Any:
    """Declare a parameter that is a number within bounds."""
    return field(default=default, metadata={"read": _Number(float, lowest, highest)})


def choice(default: str, *allowed: str) -> Any:
    """Declare a parameter that is one of some words, ``default`` among them."""
    return field(default=default, metadata={"read": _Choice(allowed)})


class _Number:
    def __init__(self, kind: type, lowest: float, highest: float) -> None:
        self.kind, self.lowest, self.highest = kind, lowest, highest
        what = "a whole number" if kind is int else "a number"
        self.words = f"{what} from {lowest:g} to {highest:g}"

    def __call__(self, text: str) -> Any:
        try:
            value = self.kind(text)
        except ValueError:
            return None
        return value if math.isfinite(value) and self.lowest <= value <= self.highest else None


class _Choice:
    def __init__(self, allowed: tuple[str, ...]) -> None:
        self.allowed, self.words = allowed, " or ".join(allowed)

    def __call__(self, text: str) -> str | None:
        return text if text in self.allowed else None


def read(text: str, forms: Mapping[str, type]) -> Any:
    """Make the step that a text describes.

    Args:
        text: ``name`` or ``name(key=value, …)``; what is not given has its default.
        forms: Name -> dataclass whose fields are made by `whole`, `number` and `choice`. A field whose name
            ends with an underscore is written without it.

    Raises:
        UserError: An unknown name or key, a key given twice, or a value out of bounds.
    """
    match = re.fullmatch(r"\s*(\w+)\s*(?:\((.*)\))?\s*", text, re.DOTALL)
    if match is None:
        raise UserError(f"re-ranking step {text!r}: it is written like alpha_qe(n=10, alpha=3)")
    name, inside = match[1], match[2] or ""
    if name not in forms:
        raise UserError(f"unknown re-ranking step {name!r}{_guess(name, forms)} (known: {', '.join(forms)})")
    known: dict[str, Field[Any]] = {one.name.rstrip("_"): one for one in fields(forms[name])}
    values: dict[str, Any] = {}
    for part in inside.split(",") if inside.strip() else []:
        key, sign, value = (piece.strip() for piece in part.partition("="))
        if not (sign and key and value):
            raise UserError(f"re-ranking step {text!r}: {part.strip()!r} is not written as key=value")
        if key not in known:
            keys = ", ".join(known)
            raise UserError(
                f"re-ranking step {text!r}: no parameter {key!r}{_guess(key, known)} (known: {keys})"
            )
        if known[key].name in values:
            raise UserError(f"re-ranking step {text!r}: {key} is given twice")
        reader = known[key].metadata["read"]
        found = reader(value)
        if found is None:
            raise UserError(f"re-ranking step {text!r}: {key} must be {reader.words}")
        values[known[key].name] = found
    return forms[name](**values)


def written(name: str, step: Any) -> str:
    """Write a step with all its parameters."""
    values = ", ".join(f"{one.name.rstrip('_')}={getattr(step, one.name)}" for one in fields(step))
    return f"{name}({values})"


def _guess(word: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(word.lower(), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
