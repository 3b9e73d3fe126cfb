"""The rule that decides, without any label, whether adapted features replace those of the start.

What is better depends on what is searched for, and the two do not go together: training that brings photos of
the same thing closer makes altered copies of one photo harder to tell from its neighbours. So the rule is
told which of the two is wanted.

``similar`` (the same object, the same kind). A candidate must pass three tests, for each of them alone was
passed by features that search worse:

- it is not ruined: numbers only, and no large part of the directions lost (RankMe);
- it has not drifted off: pairs of photos that the start is surest of are found far more surely than the
  start itself finds them once photos are altered (`signals.steadiness`);
- when a photo is altered in ways that training never shows, more of its neighbours stay than at the start,
  and photos form clearer groups: each on average, and both together surely.

``copies`` (the very photo, altered). This can be measured on photos without labels, so it is: altered photos
find their original better than at the start. The photos that are asked were trained on, though, and others
will be searched too: of candidates whose gains chance does not tell apart, the steadiest is taken.

All gains are paired tests over photos. In doubt the start is kept.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy import stats

from ssl_retrieval.adaptation.probe import Probe
from ssl_retrieval.adaptation.signals import (
    comparable,
    held_out,
    log_rank,
    of_family,
    signals_before,
    steadiness,
)
from ssl_retrieval.adaptation.views import agreement, found_again, silhouettes
from ssl_retrieval.errors import UserError
from ssl_retrieval.statistics import PairedDifference, paired_test
from ssl_retrieval.types import FloatArray

SIMILAR, COPIES = "similar", "copies"
GOALS = (SIMILAR, COPIES)
"""What is searched for."""

LEAST_PHOTOS = 100
"""Constants are of probes with 200 photos. Half of them give intervals that are wider by 40 %; fewer are not
worth a decision that may make search worse."""

LEAST_RANK = -0.5
"""Log of the ratio of effective ranks; good and bad trainings alike lay above -0.2, collapses far below."""

STEADINESS = 1.07
"""Least `signals.steadiness`, from `rule_fit.fit` over a study: docs/adaptation_results.md."""

COLOUR_DEPENDENCE = 0.0
"""Of `signals.signals_before`: +0.06 and +0.09 where colour changes ruined search, below 0 elsewhere."""

LEVEL = 0.95


@dataclass(frozen=True)
class Evidence:
    """What is seen of a candidate, against the start.

    Attributes:
        rank: Log of the ratio of effective ranks.
        steadiness: See `signals.steadiness`.
        agreement: Change in `views.agreement` under alterations that training never shows.
        clusters: Change in `views.silhouettes`.
        together: Change in the sum of both.
        copies: Change in `views.found_again`, over all alterations.
    """

    rank: float
    steadiness: float
    agreement: PairedDifference
    clusters: PairedDifference
    together: PairedDifference
    copies: PairedDifference

    def score(self, goal: str) -> float:
        """Order candidates that pass: the higher the better, but for `uncertainty`."""
        return self.copies.mean if goal == COPIES else self.together.mean

    def uncertainty(self, goal: str) -> float:
        """Say how much less another candidate may score and still be taken, where it is steadier.

        One standard error, as in the choice of a tree by Breiman et al. (Classification and Regression Trees,
        1984); 0 for ``similar``, whose tests ask for steadiness already.
        """
        if goal != COPIES:
            return 0.0
        return (self.copies.high - self.copies.low) / (2 * stats.norm.ppf((1 + LEVEL) / 2))

    def objection(self, goal: str, least_steadiness: float = STEADINESS) -> str:
        """Say what speaks against it; empty = nothing."""
        if self.rank < LEAST_RANK:
            return f"it has lost {100 * (1 - math.exp(self.rank)):.0f} % of its directions"
        if goal == COPIES:
            if self.copies.low <= 0:
                return f"altered copies are not found better ({_gain(self.copies)})"
            return ""
        if not self.steadiness >= least_steadiness:
            return (
                "it has drifted off: the pairs that were surest before are lost nearly as easily as when "
                f"photos are altered (log odds {self.steadiness:+.2f}, at least {least_steadiness:+.2f})"
            )
        if self.agreement.mean <= 0:
            return f"neighbours do not hold better when photos are altered ({_gain(self.agreement)})"
        if self.clusters.mean <= 0:
            return f"photos do not form clearer groups ({_gain(self.clusters)})"
        if self.together.low <= 0:
            return f"neighbours and groups gain no more than chance may give ({_interval(self.together)})"
        return ""

    def praise(self, goal: str) -> str:
        """Say what speaks for it, and what it costs."""
        if goal == COPIES:
            return f"altered copies of a photo are found better ({_interval(self.copies)})"
        words = (
            f"altered photos keep more of their neighbours ({_gain(self.agreement)}) and photos form clearer "
            f"groups ({_gain(self.clusters)}; both together {_interval(self.together)})"
        )
        if self.copies.high < 0:
            words += (
                "; its price: altered copies of one and the same photo are found worse "
                f"({_interval(self.copies)}; for those, use --goal copies)"
            )
        return words


@dataclass(frozen=True)
class Verdict:
    """What the rule says.

    Attributes:
        name: The candidate to use; None = keep the start.
        reason: Why, in plain words.
        scores: Candidate -> `Evidence.score`, by which candidates that pass are ordered, but for
            `Evidence.uncertainty`; NaN where nothing could be compared.
    """

    name: str | None
    reason: str
    scores: dict[str, float]


@dataclass(eq=False)
class Comparison:
    """Candidates against the start: each is measured once, however often a verdict is asked for.

    Attributes:
        start: Probe of the network as it was.
        found: Candidate -> what is seen of it; None where there are values that are no numbers.
    """

    start: Probe
    found: dict[str, Evidence | None] = field(default_factory=dict, init=False)

    def add(self, name: str, candidate: Probe) -> None:
        """Compare a candidate with the start.

        Args:
            name: What it is called.
            candidate: Probe of the same photos.
        """
        self.found[name] = self._see(candidate) if comparable(self.start, candidate) else None

    def verdict(self, goal: str = SIMILAR) -> Verdict:
        """Choose among the candidates so far, or keep the start where none is clearly better.

        Args:
            goal: ``similar`` or ``copies``.
        """
        reason = self._refusal()
        if reason:
            return Verdict(None, f"keep the start: {reason}", dict.fromkeys(self.found, math.nan))
        return decide(self.found, goal)

    def _refusal(self) -> str:
        """Say why nothing can be compared; empty = something can."""
        if not self.found:
            return "there is no candidate"
        if len(self.start) < LEAST_PHOTOS:
            return (
                f"{_counted(len(self.start))} are too few to tell whether adapting helped "
                f"(at least {LEAST_PHOTOS} are needed)"
            )
        return "" if self.start.is_finite else "its own vectors are not finite, check the network"

    @cached_property
    def _before(self) -> "_Measured":
        return _Measured.of(self.start)

    def _see(self, candidate: Probe) -> Evidence:
        before, after = self._before, _Measured.of(candidate)
        return Evidence(
            after.log_rank - before.log_rank,
            steadiness(self.start, candidate),
            paired_test(after.agreement, before.agreement, level=LEVEL),
            paired_test(after.silhouettes, before.silhouettes, level=LEVEL),
            paired_test(after.together, before.together, level=LEVEL),
            paired_test(after.found_again, before.found_again, level=LEVEL),
        )


def choose(start: Probe, candidates: dict[str, Probe], goal: str = SIMILAR) -> Verdict:
    """Choose among adapted features, or keep the start where none is clearly better.

    Args:
        start: Of the network as it was.
        candidates: Name -> probe of the same photos.
        goal: ``similar`` or ``copies``.
    """
    comparison = Comparison(start)
    for name, candidate in candidates.items():
        comparison.add(name, candidate)
    return comparison.verdict(goal)


def decide(
    found: dict[str, Evidence | None], goal: str = SIMILAR, least_steadiness: float = STEADINESS
) -> Verdict:
    """Choose by what is seen of each candidate.

    Args:
        found: Name -> evidence, as of `Comparison.found`.
        goal: ``similar`` or ``copies``.
        least_steadiness: What must be reached of it.
    """
    check_goal(goal)
    scores = {name: math.nan if one is None else one.score(goal) for name, one in found.items()}
    objections = {
        name: "its vectors are not finite: the training broke down"
        if one is None
        else one.objection(goal, least_steadiness)
        for name, one in found.items()
    }
    passed = {name: one for name, one in found.items() if one is not None and not objections[name]}
    if not passed:
        said = "; ".join(f"{name}: {objection}" for name, objection in objections.items())
        return Verdict(None, f"keep the start: no candidate is surely better ({said})", scores)
    best = max(passed, key=lambda name: (scores[name], passed[name].steadiness))
    least = scores[best] - passed[best].uncertainty(goal)
    taken = max((name for name in passed if scores[name] >= least), key=lambda name: passed[name].steadiness)
    words = f"use {taken}: {passed[taken].praise(goal)}"
    if taken != best:
        words += (
            f"; {best} finds a few more ({_gain(passed[best].copies)}), but no more than chance may, and "
            "moves the photos further"
        )
    return Verdict(taken, words, scores)


def check_goal(goal: str) -> None:
    """Refuse a goal that there is not.

    Raises:
        UserError: Names those that there are.
    """
    if goal not in GOALS:
        raise UserError(f"--goal {goal!r}: use one of {', '.join(GOALS)}")


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
        return True, "colours are kept as they are: too few photos to tell whether they matter"
    if dependence > COLOUR_DEPENDENCE:
        return True, (
            "colours are kept as they are: without its colours a photo loses more of its neighbours than by "
            f"other changes (by {100 * dependence:.0f} of 100 neighbours)"
        )
    return False, (
        "colours may be changed: without its colours a photo keeps as many of its neighbours as after other "
        f"changes, or more (by {-100 * dependence:.0f} of 100 neighbours)"
    )


@dataclass(frozen=True, eq=False)
class _Measured:
    """What is compared, photo by photo: float64 [N] each."""

    agreement: FloatArray
    silhouettes: FloatArray
    found_again: FloatArray
    log_rank: float

    @property
    def together(self) -> FloatArray:
        """What candidates for ``similar`` are ordered by."""
        return self.agreement + self.silhouettes

    @classmethod
    def of(cls, probe: Probe) -> "_Measured":
        again = found_again(probe)
        return cls(
            of_family(agreement(probe), held_out(probe)),
            silhouettes(probe.photos),
            np.mean(list(again.values()), axis=0),
            log_rank(probe),
        )


def _gain(change: PairedDifference) -> str:
    return f"{change.mean:+.3f}"


def _interval(change: PairedDifference) -> str:
    return f"{_gain(change)}, 95 % interval {change.low:+.3f} to {change.high:+.3f}"


def _counted(count: int) -> str:
    return "one photo" if count == 1 else f"{count} different photos"
