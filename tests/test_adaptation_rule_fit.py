"""The rule's constant: what it admits and refuses, and that a set has no part in its own."""

import dataclasses

import numpy as np
import pytest
from made_up_probes import evidence, probe

from ssl_retrieval.adaptation.cells import Cell
from ssl_retrieval.adaptation.rule import COPIES, SIMILAR
from ssl_retrieval.adaptation.rule_fit import KnownRun, choice, fit, limits_of_others

BETTER = evidence(probe(groups=0.8, alteration=1.2), probe(groups=1.2, alteration=1.2))


def run(
    of: str, steadiness: float, delta: float, seed: int = 0, jitter: bool = False, anchor: float = 0.0
) -> KnownRun:
    cell = Cell(of, "net", "simclr", jitter=jitter, anchor=anchor, seed=seed)
    return KnownRun(cell, dataclasses.replace(BETTER, steadiness=steadiness), True, delta, delta < 0)


def test_the_limit_parts_losses_from_gains() -> None:
    runs = [
        run("a", s, d, seed) for seed, (s, d) in enumerate([(2, 0.1), (1, 0.02), (0.5, -0.01), (0, -0.1)])
    ]
    assert fit(runs) == pytest.approx(0.75)
    assert fit(runs[:2]) < 1, "nothing is lost: all of them pass"
    assert fit(runs[2:]) > 0.5, "nothing is won: none of them passes"
    assert fit([]) == float("inf")
    assert fit([*runs, run("b", 0.9, float("nan"))]) == fit(runs), "a set that is searched for copies alone"


def test_a_small_loss_outweighs_a_gain_twice_its_size() -> None:
    runs = [run("a", 2, 0.1), run("a", 1, -0.01, 1), run("a", 0.5, 0.02, 2)]
    assert fit(runs) == pytest.approx(1.5)
    assert fit([*runs[:2], run("a", 0.5, 0.04, 2)]) < 0.5


def test_a_set_with_many_runs_counts_no_more_than_one_with_few() -> None:
    many = [run("many", 1 + seed / 100, 0.02, seed) for seed in range(50)]
    assert fit([*many, run("one", 1.195, -0.1)]) > 1.195


def test_each_set_is_decided_by_the_others() -> None:
    rng = np.random.default_rng(0)
    runs = [run(of, float(s), float(s - 1), i) for of in "abc" for i, s in enumerate(rng.uniform(0, 2, 8))]
    limits = limits_of_others(runs)
    changed = [dataclasses.replace(one, delta=-one.delta) if one.cell.set == "a" else one for one in runs]
    again = limits_of_others(changed)
    assert limits["a"] == again["a"]
    assert limits["b"] != again["b"]


def test_colour_changes_are_left_out_where_colours_matter_unless_copies_are_searched() -> None:
    runs = [run("a", 2, 0.1), run("a", 2, 0.1, jitter=True, anchor=1)]
    changed = dataclasses.replace(BETTER, together=dataclasses.replace(BETTER.together, mean=1.0))
    changed = dataclasses.replace(changed, copies=dataclasses.replace(BETTER.copies, mean=1.0))
    runs[1] = dataclasses.replace(runs[1], evidence=changed)
    assert choice(runs, SIMILAR) == runs[0].cell
    assert choice(runs, COPIES) == runs[1].cell
    free = [dataclasses.replace(one, keeps_colours=False) for one in runs]
    assert choice(free, SIMILAR) == runs[1].cell
    assert choice([run("a", -1, 0.1)], SIMILAR) is None


@pytest.mark.parametrize(("goal", "is_offered"), [(SIMILAR, False), (COPIES, True)])
def test_free_training_with_colour_changes_is_for_copies_alone(goal: str, is_offered: bool) -> None:
    free = dataclasses.replace(run("a", 2, 0.1, jitter=True), keeps_colours=False)
    assert free.is_offered(goal) == is_offered
    assert (choice([free], goal) is not None) <= is_offered
    assert not run("a", 2, 0.1, anchor=2).is_offered(goal), "no such anchor is tried"
