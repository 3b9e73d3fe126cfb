"""The rule on made-up features of known quality: better, as good, worse, collapsed, broken."""

import dataclasses
from unittest.mock import Mock

import numpy as np
import pytest
from made_up_probes import NAMES, changed, evidence, probe, unit

from ssl_retrieval.adaptation import rule
from ssl_retrieval.adaptation.probe import FAMILIES, IDENTITY, Probe
from ssl_retrieval.adaptation.rule import (
    COPIES,
    LEAST_PHOTOS,
    SIMILAR,
    STEADINESS,
    Comparison,
    Evidence,
    choose,
    colour_matters,
    decide,
)
from ssl_retrieval.adaptation.views import silhouettes
from ssl_retrieval.errors import UserError

START = probe(groups=0.8, alteration=1.2)
BETTER = probe(groups=1.2, alteration=1.2)
TIGHTER = probe(groups=1.2, alteration=1.68)
"""Groups are clearer, but a photo is easily taken for another of its group."""
FIRMER = probe(groups=0.8, alteration=0.96)
"""A photo is itself more firmly, and no nearer to its group."""


def test_clearly_better_features_are_taken() -> None:
    verdict = choose(START, {"better": BETTER})
    assert verdict.name == "better"
    assert verdict.reason.startswith("use better: altered photos keep more of their neighbours")
    assert verdict.scores["better"] > 0.05


def test_the_best_of_several_is_taken() -> None:
    candidates = {"a bit": probe(groups=1.0, alteration=1.2), "much": BETTER, "worse": probe(0.4, 1.2)}
    verdict = choose(START, candidates)
    assert verdict.name == "much"
    assert verdict.scores["worse"] < 0 < verdict.scores["a bit"] < verdict.scores["much"]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("noise", [0.0, 0.05, 0.3])
def test_the_start_with_noise_is_not_better(noise: float, seed: int) -> None:
    verdict = choose(START, {"noise": changed(START, noise, seed)})
    assert verdict.name is None
    assert verdict.reason.startswith("keep the start: ")


def test_worse_features_are_refused() -> None:
    verdict = choose(BETTER, {"worse": START})
    assert verdict.name is None
    assert verdict.scores["worse"] < 0


def test_collapse_is_refused_in_plain_words() -> None:
    few = Probe({name: unit(vectors[:, :2] + 3) for name, vectors in BETTER.vectors.items()}, BETTER.ids)
    constant = Probe({name: unit(np.ones_like(v)) for name, v in BETTER.vectors.items()}, BETTER.ids)
    for ruined in (few, constant):
        verdict = choose(START, {"ruined": ruined})
        assert verdict.name is None
        assert "of its directions" in verdict.reason


def test_features_that_drifted_off_are_refused_although_they_are_tidy() -> None:
    # Clear groups that hold, but not those that the start knew.
    order = np.random.default_rng(5).permutation(len(BETTER))
    shuffled = Probe({name: vectors[order] for name, vectors in BETTER.vectors.items()}, START.ids)
    verdict = choose(START, {"elsewhere": shuffled})
    assert verdict.name is None
    assert "drifted off" in verdict.reason


def test_what_is_better_depends_on_what_is_searched() -> None:
    candidates = {"tighter": TIGHTER, "firmer": FIRMER}
    similar, copies = (choose(START, candidates, goal) for goal in (SIMILAR, COPIES))
    assert (similar.name, copies.name) == ("tighter", "firmer")
    assert "its price: altered copies of one and the same photo are found worse (-0.0" in similar.reason
    assert "price" not in choose(START, {"better": BETTER}).reason
    assert copies.reason.startswith("use firmer: altered copies of a photo are found better (+0.0")
    assert "not found better" in choose(START, {"tighter": TIGHTER}, COPIES).reason
    with pytest.raises(UserError, match="'kinds': use one of similar, copies"):
        choose(START, candidates, "kinds")


def test_each_network_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Mock(side_effect=silhouettes)
    monkeypatch.setattr(rule, "silhouettes", measured)
    comparison = Comparison(START)
    for count, (name, candidate) in enumerate({"worse": probe(0.4, 1.2), "better": BETTER}.items(), start=2):
        comparison.add(name, candidate)
        verdict = comparison.verdict()
        assert measured.call_count == count
    assert verdict == choose(START, {"worse": probe(0.4, 1.2), "better": BETTER})


def test_the_limit_of_steadiness_decides() -> None:
    better = evidence(START, BETTER)
    assert better.steadiness > STEADINESS
    assert decide({"better": better}, SIMILAR, better.steadiness).name == "better"
    refused = decide({"better": better}, SIMILAR, better.steadiness + 1e-6)
    assert refused.name is None
    assert "drifted off" in refused.reason


@pytest.mark.parametrize(
    ("agreement", "clusters", "low", "objection"),
    [
        (0.02, 0.01, 0.001, ""),
        (0.02, 0.01, -0.001, "no more than chance may give (+0.030, 95 % interval -0.001 to +0.061)"),
        (-0.001, 0.05, 0.02, "neighbours do not hold better"),
        (0.05, -0.001, 0.02, "do not form clearer groups"),
    ],
)
def test_neighbours_and_groups_gain_each_and_surely_together(
    agreement: float, clusters: float, low: float, objection: str
) -> None:
    found = evidence(START, BETTER)
    assert found.together.mean == pytest.approx(found.agreement.mean + found.clusters.mean)
    both = agreement + clusters
    seen = dataclasses.replace(
        found,
        agreement=dataclasses.replace(found.agreement, mean=agreement, low=-1.0),
        clusters=dataclasses.replace(found.clusters, mean=clusters),
        together=dataclasses.replace(found.together, mean=both, low=low, high=2 * both - low),
    )
    said = seen.objection(SIMILAR)
    assert objection in said
    assert bool(said) == bool(objection)
    assert seen.score(SIMILAR) == both


@pytest.mark.parametrize(
    ("gain", "steadiness", "taken"), [(0.041, 2, "other"), (0.039, 2, "most"), (0.041, 0, "most")]
)
def test_of_networks_that_find_copies_equally_well_the_steadier_is_taken(
    gain: float, steadiness: float, taken: str
) -> None:
    found = evidence(START, FIRMER)

    def other(gain: float, steadiness: float) -> Evidence:
        # The standard error is 0.01.
        copies = dataclasses.replace(found.copies, mean=gain, low=gain - 0.0196, high=gain + 0.0196)
        return dataclasses.replace(found, copies=copies, steadiness=steadiness)

    both: dict[str, Evidence | None] = {"other": other(gain, steadiness), "most": other(0.05, 1)}
    verdict = decide(both, COPIES)
    assert verdict.name == taken
    assert ("most finds a few more (+0.050)" in verdict.reason) == (taken == "other")
    assert verdict.scores == {"other": gain, "most": 0.05}


def test_numbers_that_are_none_are_refused() -> None:
    vectors = {name: v.copy() for name, v in BETTER.vectors.items()}
    vectors[NAMES[0]][3] = np.nan
    broken = Probe(vectors, BETTER.ids)
    verdict = choose(START, {"broken": broken, "better": BETTER})
    assert verdict.name == "better"
    assert np.isnan(verdict.scores["broken"])
    assert "broke down" in choose(START, {"broken": broken}).reason
    assert "not finite" in choose(broken, {"better": BETTER}).reason


@pytest.mark.parametrize("count", [1, 2, 12, LEAST_PHOTOS - 1])
def test_few_photos_keep_the_start(count: int) -> None:
    rows = np.arange(len(START)) < count
    verdict = choose(START.take(rows), {"better": BETTER.take(rows)})
    assert verdict.name is None
    assert "too few" in verdict.reason
    assert verdict.reason.startswith("keep the start: one photo" if count == 1 else "keep the start: ")


def test_no_candidate_keeps_the_start() -> None:
    assert choose(START, {}).name is None


def test_equal_photos_keep_the_start() -> None:
    same = Probe({name: np.repeat(v[:1], len(v), axis=0) for name, v in START.vectors.items()}, START.ids)
    assert choose(same, {"better": BETTER}).name is None
    assert choose(same, {"same": same}).name is None


def test_the_choice_is_the_same_each_time() -> None:
    assert choose(START, {"better": BETTER}) == choose(START, {"better": BETTER})


def test_probes_of_different_photos_are_no_candidates() -> None:
    with pytest.raises(AssertionError, match="different photos"):
        choose(START, {"other": Probe(BETTER.vectors, tuple(f"{i}.jpg" for i in range(len(BETTER))))})


def test_colour_matters_where_neighbours_go_with_it() -> None:
    rng = np.random.default_rng(0)
    vectors = dict(START.vectors)
    for name in FAMILIES["colour"]:
        vectors[name] = unit(rng.normal(size=START.photos.shape))
    matters, words = colour_matters(Probe(vectors))
    assert matters
    assert words.startswith("colours are kept")
    for name in FAMILIES["colour"]:
        vectors[name] = vectors[IDENTITY]
    matters, words = colour_matters(Probe(vectors))
    assert not matters
    assert words.startswith("colours may be changed")
    assert colour_matters(START.take(np.arange(len(START)) < 2))[0]
