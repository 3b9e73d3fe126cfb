"""The rule that decides, without any label, whether adapted features replace those of the start.

A candidate must pass four tests, for each of them alone was passed by features that search worse:

- it is not ruined: numbers only, and no large part of the directions lost (RankMe);
- the pairs of photos that the start is surest of are still found: a training that has drifted off fails;
- when a photo is altered in ways that training never shows, its neighbours change less than at the start.
  Colour changes in training failed here wherever they ruined search by colour;
- photos form clearer groups than at the start. Features that only tell single photos apart fail here,
  although they find copies better.

The last two are paired tests over photos. In doubt the start is kept.
"""

import math
from dataclasses import dataclass

from ssl_retrieval.adaptation.probe import Probe
from ssl_retrieval.adaptation.signals import (
    comparable,
    held_out,
    kept_pairs,
    log_rank,
    of_family,
    signals_before,
)
from ssl_retrieval.adaptation.views import agreement, silhouettes
from ssl_retrieval.statistics import paired_test
from ssl_retrieval.types import FloatArray

LEAST_PHOTOS = 100
"""Constants are of probes with 200 photos. Half of them give intervals that are wider by 40 %; fewer are not
worth a decision that may make search worse."""

LEAST_RANK = -0.5
"""Log of the ratio of effective ranks; good and bad trainings alike lay above -0.12, collapses far below."""

LEAST_KEPT = 0.55
"""Of `signals.kept_pairs`. Networks adapted to photos of another kind had 0.40 where they searched worse;
those that searched better had 0.65 and more."""

LEAST_AGREEMENT = 0.005
"""Gain in `views.agreement`, besides its interval. Where search got clearly better it was 0.011 and more;
where colour changes made it worse, 0.004 and less."""

LEAST_CLUSTERS = 0.013
"""Gain in `views.silhouettes`. Where search got clearly better it was 0.016 to 0.05; where neighbours held
better and search got worse all the same, 0.010 and less."""

COLOUR_DEPENDENCE = 0.0
"""Of `signals.signals_before`: +0.09 where colour changes ruined search, -0.11 to -0.14 elsewhere."""

LEVEL = 0.95


@dataclass(frozen=True)
class Verdict:
    """What the rule says.

    Attributes:
        name: The candidate to use; None = keep the start.
        reason: Why, in plain words.
        scores: Candidate -> gain in agreement plus gain in silhouette, by which candidates that pass are
            ordered; NaN where nothing could be compared.
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
    unknown = dict.fromkeys(candidates, math.nan)
    if not candidates:
        return Verdict(None, "keep the start: there is no candidate", unknown)
    if len(start) < LEAST_PHOTOS:
        words = (
            f"keep the start: {_counted(len(start))} are too few to tell whether adapting helped "
            f"(at least {LEAST_PHOTOS} are needed)"
        )
        return Verdict(None, words, unknown)
    if not start.is_finite:
        return Verdict(None, "keep the start: its own vectors are not finite, check the network", unknown)
    before = _Measured.of(start)
    scores, objections, passed = {}, {}, {}
    for name, candidate in candidates.items():
        scores[name], objection, words = _judge(start, before, candidate)
        if objection:
            objections[name] = objection
        else:
            passed[name] = words
    if not passed:
        said = "; ".join(f"{name}: {objection}" for name, objection in objections.items())
        return Verdict(None, f"keep the start: no candidate is surely better ({said})", scores)
    best = max(passed, key=lambda name: scores[name])
    return Verdict(best, f"use {best}: {passed[best]}", scores)


def colour_matters(start: Probe) -> tuple[bool, str]:
    """Say before any training whether views should keep their colours.

    Where the neighbours of a photo change more by taking its colours away or turning them than by changes of
    shape and sharpness, the start tells photos apart by colour, and a training that shows other colours
    unlearns it.

    Returns:
        Whether colour matters, and why, in plain words.
    """
    dependence = signals_before(start)["start_colour_dependence"]
    if not math.isfinite(dependence):
        return True, "keep colours as they are: too few photos to tell whether they matter"
    if dependence > COLOUR_DEPENDENCE:
        return True, (
            "keep colours as they are: without its colours a photo loses more of its neighbours than by "
            f"other changes (by {100 * dependence:.0f} of 100 neighbours)"
        )
    return False, (
        "colours may be changed: without its colours a photo keeps more of its neighbours than after other "
        f"changes (by {-100 * dependence:.0f} of 100 neighbours)"
    )


@dataclass(frozen=True, eq=False)
class _Measured:
    """What is compared, photo by photo: float64 [N] each."""

    agreement: FloatArray
    silhouettes: FloatArray
    log_rank: float

    @classmethod
    def of(cls, probe: Probe) -> "_Measured":
        names = held_out(probe)
        return cls(of_family(agreement(probe), names), silhouettes(probe.photos), log_rank(probe))


def _judge(start: Probe, before: _Measured, candidate: Probe) -> tuple[float, str, str]:
    """Give the score, the objection (empty = none) and what speaks for a candidate."""
    if not comparable(start, candidate):
        return math.nan, "its vectors are not finite: the training broke down", ""
    after = _Measured.of(candidate)
    firmer = paired_test(after.agreement, before.agreement, level=LEVEL)
    clearer = paired_test(after.silhouettes, before.silhouettes, level=LEVEL)
    score = firmer.mean + clearer.mean
    lost = before.log_rank - after.log_rank
    if -lost < LEAST_RANK:
        return score, f"it has lost {100 * (1 - math.exp(-lost)):.0f} % of its directions", ""
    kept = kept_pairs(start, candidate)
    if kept < LEAST_KEPT:
        return score, f"it no longer finds the pairs that were surest before (mAP {kept:.2f} on them)", ""
    if firmer.low <= 0 or firmer.mean < LEAST_AGREEMENT:
        return score, f"neighbours do not hold better when photos are altered ({_gain(firmer.mean)})", ""
    if clearer.low <= 0 or clearer.mean < LEAST_CLUSTERS:
        return score, f"photos do not form clearer groups ({_gain(clearer.mean)})", ""
    words = (
        f"altered photos keep more of their neighbours ({_gain(firmer.mean)}, 95 % interval "
        f"{firmer.low:+.3f} to {firmer.high:+.3f}) and photos form clearer groups ({_gain(clearer.mean)}, "
        f"{clearer.low:+.3f} to {clearer.high:+.3f})"
    )
    return score, "", words


def _gain(value: float) -> str:
    return f"{value:+.3f}"


def _counted(count: int) -> str:
    return "one photo" if count == 1 else f"{count} different photos"
