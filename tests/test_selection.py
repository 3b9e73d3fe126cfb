"""Choices by a signal, each set decided by a rule that was fitted on the others."""

import numpy as np
import pandas as pd
import pytest
from test_predictors import study

from ssl_retrieval.adaptation.selection import (
    LOSS_WEIGHT,
    chosen,
    combined,
    compare_rules,
    leave_one_set_out,
    runs_of,
    single,
    utility,
)


def aligned(seed: int = 0) -> pd.DataFrame:
    """As `study`, but with signals that mean the same on all sets."""
    rows = study(seed=seed)
    rng = np.random.default_rng(seed + 100)
    runs = rows.groupby(["set", "jitter", "anchor"], sort=True)["delta_map"].transform("mean").to_numpy()
    hidden = np.repeat(rng.normal(size=len(rows) // 2), 2)
    # Only the sum of the two halves knows what happened.
    return rows.assign(good=runs, opposite=-runs, half=runs / 2 + hidden, other_half=runs / 2 - hidden)


def test_a_run_is_the_mean_over_its_tasks() -> None:
    rows = study(sets=1, runs=1)
    runs = runs_of(rows)
    assert len(runs) == 1
    assert runs["delta_map"][0] == pytest.approx(rows["delta_map"].mean())
    assert runs["good"][0] == rows["good"][0]


def test_the_highest_score_is_taken_and_the_start_kept_below_zero() -> None:
    runs = runs_of(aligned())
    scores = np.full(len(runs), -1.0)
    of_first = np.flatnonzero(runs["set"] == "s0")
    scores[of_first[3]] = 0.5
    scores[of_first[4]] = np.nan
    table = chosen(runs, scores).set_index("set").to_dict("index")
    assert table["s0"]["row"] == of_first[3]
    assert table["s0"]["delta"] == runs["delta_map"][of_first[3]]
    assert all(table[name]["row"] == -1 and table[name]["delta"] == 0 for name in ("s1", "s2", "s3"))
    assert all(of_set["best"] >= of_set["delta"] for of_set in table.values())


def test_a_loss_weighs_more_than_a_gain() -> None:
    runs = runs_of(aligned()).iloc[:1].assign(delta_map=-0.1)
    assert utility(runs, np.ones(1)) == pytest.approx(-0.1 * LOSS_WEIGHT)
    assert utility(runs, -np.ones(1)) == 0


@pytest.mark.parametrize("name", ["good", "opposite"])
def test_a_signal_that_knows_takes_the_best_whichever_way_it_points(name: str) -> None:
    table = leave_one_set_out(aligned(), single(name))
    assert (table["regret"] < 1e-9).all()
    assert (table["delta"] > 0).all()


def test_the_set_that_is_decided_has_no_part_in_the_rule() -> None:
    rows = aligned()
    # On the last set the signal lies; a rule that had seen it would not have followed.
    rows.loc[rows["set"] == "s3", "good"] *= -1
    table = leave_one_set_out(rows, single("good")).set_index("set").to_dict("index")
    assert table["s3"]["delta"] < 0
    assert table["s3"]["worst_task"] <= table["s3"]["delta"]


def test_two_halves_of_the_truth_are_better_together() -> None:
    rows = aligned()
    alone = leave_one_set_out(rows, single("half"))["regret"].mean()
    together = leave_one_set_out(rows, combined(["half", "other_half"]))["regret"].mean()
    assert together < 0.05
    assert together < alone
    table = compare_rules(rows.drop(columns=["good", "opposite", "flat"]))
    best = table[~table["rule"].isin(["the best run", "always the start"])].iloc[0]
    assert {"half", "other_half"} <= set(best["rule"].split(" + "))


def test_combinations_that_do_not_beat_the_best_signal_are_not_listed() -> None:
    table = compare_rules(aligned().drop(columns=["noise", "opposite"]).assign(start_of_set=1.0))
    assert not table["rule"].isin(["flat", "start_of_set"]).any()
    assert not table["rule"].str.contains(r"\+", regex=True).any()
    assert table["rule"].iloc[0] in ("good", "opposite", "the best run")


def test_a_start_without_any_good_signal_is_kept() -> None:
    rows = aligned().assign(delta_map=lambda table: -table["delta_map"].abs())
    table = leave_one_set_out(rows, single("noise"))
    assert (table["row"] == -1).all()
    assert (table["delta"] == 0).all()


def test_a_broken_run_is_never_taken() -> None:
    rows = aligned()
    rows.loc[rows["set"] == "s0", ["good", "half", "other_half"]] = np.nan
    for fit in (single("good"), combined(["half", "other_half"])):
        assert leave_one_set_out(rows, fit).set_index("set")["row"].to_dict()["s0"] == -1
