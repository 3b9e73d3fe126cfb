"""Near copies as people look at them: side by side on one page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ssl_retrieval.report.page import render


@dataclass(frozen=True)
class ShownPair:
    """Two pictures that may be copies.

    Attributes:
        files: Where they are.
        names: Their ids.
        hamming: Bits of 64 in which their hashes differ; NaN = not known.
        mirrored: Whether one looks like the mirror image of the other.
        cosine: Of their vectors; NaN = not known.
    """

    files: tuple[Path, Path]
    names: tuple[str, str]
    hamming: float
    mirrored: bool
    cosine: float

    @property
    def caption(self) -> str:
        """What was measured, in words."""
        bits = "no hash" if pd.isna(self.hamming) else f"{self.hamming:.0f} bits differ"
        parts = [bits + (", mirrored" if self.mirrored else "")]
        return " · ".join(parts if pd.isna(self.cosine) else [*parts, f"cosine {self.cosine:.3f}"])


@dataclass(frozen=True)
class PairGroup:
    """Pairs that were found in the same way.

    Attributes:
        found_by: ``content``, ``hash``, ``embedding`` or several, joined by ``+``.
        total: How many there are.
        shown: Some of them.
    """

    found_by: str
    total: int
    shown: Sequence[ShownPair]


def write_leakage_page(
    file: Path,
    title: str,
    sentences: Sequence[str],
    summary: pd.DataFrame,
    planted: pd.DataFrame,
    groups: Mapping[str, Sequence[PairGroup]],
) -> None:
    """Write the page.

    Args:
        file: Where it goes.
        title: Its heading.
        sentences: The result in words.
        summary: Counts, one row per pair of lists.
        planted: What became of planted copies (see `planted_copies.found_shares`).
        groups: Name of two lists -> the pairs found.
    """
    render(
        "leakage.html",
        file,
        title=title,
        sentences=sentences,
        summary=summary,
        planted=planted,
        groups=groups,
    )
