"""The rule that decides, without any label, whether adapted features replace those of the start."""

from dataclasses import dataclass

from ssl_retrieval.adaptation.probe import Probe
from ssl_retrieval.adaptation.signals import comparable, held_out, of_family, signals
from ssl_retrieval.adaptation.views import agreement
from ssl_retrieval.statistics import paired_test

LEAST_PHOTOS = 50
"""Fewer photos have too few neighbours to tell a change from chance."""

LEAST_GAIN = 0.02
"""Of `views.agreement`: smaller gains were seen where search got worse."""

LEAST_RANK = -1.1
"""Log of the ratio of effective ranks: two thirds of the directions lost."""

LEVEL = 0.95


@dataclass(frozen=True)
class Verdict:
    """What the rule says.

    Attributes:
        name: The candidate to use; None = keep the start.
        reason: Why, in plain words.
        scores: Candidate -> what was compared; NaN where it was refused before.
    """

    name: str | None
    reason: str
    scores: dict[str, float]


def choose(start: Probe, candidates: dict[str, Probe]) -> Verdict:
    """Choose among adapted features, or keep the start where none is clearly better.

    Args:
        start: Of the network as it was.
        candidates: Name -> probe of the same photos.
    """
    if len(start) < LEAST_PHOTOS:
        return Verdict(
            None,
            f"keep the start: {len(start)} different photos are too few to tell whether adapting helped "
            f"(at least {LEAST_PHOTOS} are needed)",
            dict.fromkeys(candidates, float("nan")),
        )
    names = held_out(start)
    before = of_family(agreement(start), names)
    scores, best = {}, None
    for name, candidate in candidates.items():
        scores[name] = float("nan")
        if not comparable(start, candidate) or signals(start, candidate)["rank"] < LEAST_RANK:
            continue
        test = paired_test(of_family(agreement(candidate), names), before, level=LEVEL)
        scores[name] = test.mean
        if test.low > 0 and test.mean > LEAST_GAIN and (best is None or test.mean > scores[best]):
            best = name
    if best is None:
        return Verdict(None, "keep the start: no candidate keeps its neighbours more firmly", scores)
    return Verdict(best, f"use it: neighbours hold under alterations ({scores[best]:+.3f})", scores)
