"""How an adaptation divides its time: measured once at the start, then kept."""

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path

from ssl_retrieval.adaptation import trial
from ssl_retrieval.adaptation.plan import Pace, Setting, plan, trials_for
from ssl_retrieval.adaptation.probe import Probe
from ssl_retrieval.adaptation.rule import COPIES, colour_matters
from ssl_retrieval.adaptation.trial import Judge
from ssl_retrieval.atomic import atomic_path
from ssl_retrieval.run_folder import read_json

PROBE_SIZES = (100, 150, 200, 300, 500, 700, 1000)
PROBE_SHARE = 0.05
"""Share of the time that judging one candidate may take."""

EMBED_SHARE = 0.3
"""Share of the time that embedding all photos may take; beyond it is left to a command of its own."""

_TRIAL_PROBE = 64
_PAGE_S = 10.0
_SHOWN_PHOTOS = 2_000


@dataclass(frozen=True)
class Schedule:
    """What is done in which time.

    Attributes:
        probe_photos: Photos by which candidates are judged.
        pace: How fast this machine is.
        reserve_s: Seconds that are kept for vectors and page.
        embeds: Whether all photos are embedded.
        settings: What is tried first.
        why: Why these, in a sentence.
    """

    probe_photos: int
    pace: Pace
    reserve_s: float
    embeds: bool
    settings: tuple[Setting, ...]
    why: str

    def save(self, file: Path) -> None:
        """Write it as JSON."""
        with atomic_path(file) as partial:
            partial.write_text(json.dumps(dataclasses.asdict(self), indent=1))

    @classmethod
    def load(cls, file: Path) -> "Schedule | None":
        """Read what `save` wrote; None where there is nothing."""
        stored = read_json(file)
        if stored is None:
            return None
        settings = tuple(Setting(**setting) for setting in stored["settings"])
        return cls(**stored | {"pace": Pace(**stored["pace"]), "settings": settings})


def make(
    base: Setting,
    judge: Judge,
    start: Path,
    work: Path,
    *,
    goal: str,
    deadline: float,
    num_images: int,
    decode_s: float,
) -> Schedule:
    """Measure judging and training on the photos themselves, leave the start's probe, and plan.

    Args:
        base: What all settings share.
        judge: Its photos; how many of them it takes is decided here.
        start: Checkpoint of the start.
        work: Folder; ``work/start`` gets the start's probe.
        goal: What is searched for, see `rule`.
        deadline: Reading of ``time.monotonic`` at which everything is to be done.
        num_images: Images to embed at the end.
        decode_s: Seconds to read one of them.
    """
    count, total_s = len(judge.photos.paths), deadline - time.monotonic()
    began = time.monotonic()
    few = dataclasses.replace(judge, limit=min(_TRIAL_PROBE, count))
    few.take(start)
    photo_s = (time.monotonic() - began) / few.limit
    fitting = [size for size in PROBE_SIZES if size * photo_s <= PROBE_SHARE * total_s]
    limit = max([PROBE_SIZES[0], *fitting])
    began = time.monotonic()
    probe = dataclasses.replace(judge, limit=limit).take(start)
    probe.save(work / "start")
    probe_s = time.monotonic() - began
    base = dataclasses.replace(base, batch_size=min(base.batch_size, count // 2))
    pace = trial.measure_pace(base, work / "pace", judge, probe_s)
    # A probe embeds every photo once as it is and once per alteration.
    forward_s = probe_s / (len(probe) * len(probe.vectors))
    embed_s = num_images * (forward_s + decode_s)
    embeds = embed_s <= EMBED_SHARE * total_s
    reserve_s = _PAGE_S + 2 * min(count, _SHOWN_PHOTOS) * forward_s + (embed_s if embeds else 0)
    trials, why = _what_to_try(probe, goal)
    settings = plan(count, deadline - time.monotonic() - reserve_s, pace, trials, base)
    return Schedule(limit, pace, reserve_s, embeds, tuple(settings), why)


def _what_to_try(start: Probe, goal: str) -> tuple[str, str]:
    """Name the trials that suit the photos and what is searched for, and say why."""
    matters, reason = colour_matters(start)
    if goal == COPIES:
        reason = "training that changes colours is tried first, for altered copies have other ones"
    return trials_for(goal, matters), f"{reason[0].upper()}{reason[1:]}."
