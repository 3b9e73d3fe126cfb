"""Reads one index, ``FACTORY key=value …``, into its parts; every mistake says what fits."""

import difflib
import re
from dataclasses import dataclass

from ssl_retrieval.errors import UserError

BUILD_SETTINGS = ("efConstruction",)
"""Settings that shape the index itself; the others may differ from search to search."""

RESCORE = "rescore"
"""Our own setting: how many times k candidates are scored once more with the stored vectors."""

KNOWN_SETTINGS = (
    "nprobe",
    "efSearch",
    "k_factor_rf",
    "quantizer_efSearch",
    "max_codes",
    *BUILD_SETTINGS,
    RESCORE,
)

Settings = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class IndexSpec:
    """An index and how it is searched.

    Attributes:
        factory: A factory string of faiss, e.g. ``IVF256,PQ16``.
        build: Settings that shape the index (see `BUILD_SETTINGS`), sorted by name.
        search: Settings of each search by faiss's names, sorted by name.
        rescore: So many times k candidates get their exact cosine from the stored vectors; 0 = none do.
    """

    factory: str
    build: Settings = ()
    search: Settings = ()
    rescore: int = 0

    @property
    def built_as(self) -> str:
        """What the file depends on: two specs that share it share the file."""
        return " ".join([self.factory, *_texts(self.build)])

    @property
    def name(self) -> str:
        """How it is written in a config."""
        rescore = ((RESCORE, self.rescore),) if self.rescore else ()
        return " ".join([self.built_as, *_texts(self.search), *_texts(rescore)])


def parse(text: str) -> IndexSpec:
    """Read an index.

    Args:
        text: A factory string, then settings: ``IVF256,PQ16 nprobe=16 rescore=4``.

    Raises:
        UserError: No factory string, an unknown setting, one that is no ``name=N`` with N a whole number from
            1, or one that is given twice. Whether they fit is checked when the index is made.

    >>> parse("HNSW32 efSearch=64 efConstruction=80")
    IndexSpec(factory='HNSW32', build=(('efConstruction', 80),), search=(('efSearch', 64),), rescore=0)
    """
    factory, *words = text.split() or [""]
    if not factory or "=" in factory:
        raise UserError(
            f"index {text!r}: a factory string of faiss comes first, as in 'IVF256,PQ16 nprobe=16'"
        )
    # faiss takes these, and divides by zero later on.
    if re.search(r"[A-Za-z]0+(?!\d)", factory) or re.search(r"(HNSW|NSG)1(?!\d)", factory):
        raise UserError(f"index {text!r}: sizes in a factory string must be at least 1, HNSW's at least 2")
    settings: dict[str, int] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not re.fullmatch(r"[1-9]\d{0,8}", value, re.ASCII):
            raise UserError(
                f"index {text!r}: {word!r} must be a setting with a whole number from 1, as nprobe=16"
            )
        if key not in KNOWN_SETTINGS:
            raise unknown_setting(text, factory, key)
        if key in settings:
            raise UserError(f"index {text!r}: {key} is given twice: leave one out")
        settings[key] = int(value)
    rescore = settings.pop(RESCORE, 0)
    ordered = sorted(settings.items())
    return IndexSpec(
        factory,
        build=tuple(item for item in ordered if item[0] in BUILD_SETTINGS),
        search=tuple(item for item in ordered if item[0] not in BUILD_SETTINGS),
        rescore=rescore,
    )


def unknown_setting(name: str, factory: str, key: str) -> UserError:
    """Put into one line that an index has no such setting."""
    near = difflib.get_close_matches(key, KNOWN_SETTINGS, n=1)
    guess = f"; did you mean {near[0]}?" if near and near[0] != key else ""
    return UserError(
        f"index {name!r}: {factory} has no setting {key!r}{guess} (nprobe belongs to IVF…, efSearch and "
        "efConstruction to HNSW…, k_factor_rf to …,RFlat, rescore to all)"
    )


def _texts(settings: Settings) -> list[str]:
    return [f"{key}={value}" for key, value in settings]
