"""The cells of a study: one setting on one set of photos each, in the order in which they are done."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from ssl_retrieval.adaptation.study_config import RoundConfig, StudyConfig


@dataclass(frozen=True)
class Cell:
    """What is trained and scored once.

    Attributes:
        set: The set of photos.
        start: The network at the beginning.
        method: What trains it; empty = nothing: the start itself is scored.
        jitter: Whether views have the usual colour augmentation.
        anchor: Weight λ of the similarity anchor.
        seed: Of order and augmentation.
    """

    set: str
    start: str
    method: str = ""
    jitter: bool = False
    anchor: float = 0.0
    seed: int = 0

    @property
    def is_start(self) -> bool:
        """Whether nothing is trained."""
        return not self.method

    @property
    def of_start(self) -> "Cell":
        """The cell that this one is compared with."""
        return Cell(self.set, self.start)

    def with_seed(self, seed: int) -> "Cell":
        """Give the same setting with another seed."""
        return replace(self, seed=seed)

    @property
    def name(self) -> str:
        """Name folders and lines of output.

        >>> Cell("photos", "lite0", "simclr", jitter=True, anchor=3, seed=1).name
        'photos--lite0--simclr--jitter--anchor-3--seed-1'
        >>> Cell("photos", "lite0").name
        'photos--lite0'
        """
        parts = [self.set, self.start]
        if not self.is_start:
            colour = "jitter" if self.jitter else "no-jitter"
            parts += [self.method, colour, f"anchor-{self.anchor:g}", f"seed-{self.seed}"]
        return "--".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Give plain values."""
        return asdict(self)


def cells_of(cfg: StudyConfig, sets: Sequence[str], starts: Sequence[str]) -> list[Cell]:
    """List what a study does, in order, each cell once.

    Within a round the sets take turns, so that after any time all sets are equally far; each start is scored
    before what is trained from it.

    Args:
        cfg: The study.
        sets: The sets that are there.
        starts: The starts that are there.
    """
    done: dict[Cell, None] = {}
    for part in cfg.rounds or [RoundConfig()]:
        for cell in _of_round(cfg, part, sets, starts):
            done.setdefault(cell.of_start)
            done.setdefault(cell)
    return list(done)


def _of_round(
    cfg: StudyConfig, part: RoundConfig, sets: Sequence[str], starts: Sequence[str]
) -> Iterator[Cell]:
    wanted_sets = [name for name in part.sets or sets if name in sets]
    wanted_starts = [name for name in part.starts or starts if name in starts]
    grid = product(
        part.seeds or cfg.seeds,
        part.methods or cfg.methods,
        wanted_starts,
        part.anchors or cfg.anchors,
        part.jitter or cfg.jitter,
        wanted_sets,
    )
    for seed, method, start, anchor, jitter, name in grid:
        yield Cell(name, start, method, jitter, float(anchor), seed)
