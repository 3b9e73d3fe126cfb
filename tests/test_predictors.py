"""Rank correlations of signals with the change in mAP, against scipy and hand-made studies."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ssl_retrieval.adaptation.predictors import rank_correlations, read, signal_names, spearman
from ssl_retrieval.errors import UserError


def study(sets: int = 4, runs: int = 8, seed: int = 0) -> pd.DataFrame:
    """Two tasks per set; ``good`` orders the runs, ``opposite`` reverses them, ``noise`` knows nothing."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(sets):
        for run in range(runs):
            delta = rng.normal()
            # Sets differ in where the signal lies, which only a look within sets forgives.
            good, noise = delta + 100 * number, rng.normal()
            for task in ("a", "b"):
                rows.append(
                    {
                        "set": f"s{number}",
                        "start": "lite0",
                        "method": "simclr",
                        "jitter": bool(run % 2),
                        "anchor": float(run // 2),
                        "seed": 0,
                        "task": task,
                        "delta_map": delta + 0.01 * rng.normal(),
                        "good": good,
                        "opposite": -good,
                        "noise": noise,
                        "flat": 1.0,
                    }
                )
    return pd.DataFrame(rows)


@pytest.mark.parametrize("seed", range(5))
def test_spearman_is_scipys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.integers(5, size=20).astype(float), rng.normal(size=20)
    assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)


def test_spearman_of_too_little_is_unknown() -> None:
    assert np.isnan(spearman(np.arange(3.0), np.arange(3.0)))
    assert np.isnan(spearman(np.ones(9), np.arange(9.0)))


def test_within_sets_is_the_mean_of_scipys_over_sets_and_tasks() -> None:
    rows = study()
    table = rank_correlations(rows, num_resamples=20).set_index("signal").to_dict("index")
    by_hand = [
        np.mean([stats.spearmanr(t["noise"], t["delta_map"]).statistic for _, t in of_set.groupby("task")])
        for _, of_set in rows.groupby("set")
    ]
    assert table["noise"]["within"] == pytest.approx(np.mean(by_hand))
    assert table["good"]["within"] > 0.95
    assert table["opposite"]["within"] == pytest.approx(-table["good"]["within"])
    assert table["good"]["pooled"] < 0.6
    assert np.isnan(table["flat"]["within"])
    assert table["good"]["num_sets"] == 4
    assert table["good"]["num_runs"] == 32


def test_the_interval_holds_the_value_and_knows_noise() -> None:
    table = rank_correlations(study(sets=6, runs=12), num_resamples=200).set_index("signal").to_dict("index")
    assert table["good"]["low"] > 0.8
    assert table["noise"]["low"] < 0 < table["noise"]["high"]
    assert table["noise"]["low"] <= table["noise"]["within"] <= table["noise"]["high"]


def test_the_same_seed_gives_the_same_table() -> None:
    rows = study()
    pd.testing.assert_frame_equal(
        rank_correlations(rows, num_resamples=30, seed=3), rank_correlations(rows, num_resamples=30, seed=3)
    )


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_study_is_read_back(tmp_path: Path, suffix: str) -> None:
    rows = study()
    file = tmp_path / f"rows.{suffix}"
    rows.to_csv(file, index=False) if suffix == "csv" else rows.to_parquet(file)
    found = read(file)
    assert signal_names(found) == ["good", "opposite", "noise", "flat"]
    pd.testing.assert_frame_equal(found, rows)


def test_rows_of_the_start_are_left_out(tmp_path: Path) -> None:
    rows = study()
    rows.loc[0, "delta_map"] = np.nan
    rows.to_csv(tmp_path / "rows.csv", index=False)
    assert len(read(tmp_path / "rows.csv")) == len(rows) - 1


def test_bad_files_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path / "rows.csv")
    with pytest.raises(UserError, match=r"csv or \.parquet"):
        read(tmp_path / "rows.txt")
    study().drop(columns=["task", "seed"]).to_csv(tmp_path / "rows.csv")
    with pytest.raises(UserError, match="lacks the columns seed, task"):
        read(tmp_path / "rows.csv")
    study().drop(columns=["good", "opposite", "noise", "flat"]).to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(UserError, match="no column of a signal"):
        read(tmp_path / "rows.csv")
    study().assign(delta_map=np.nan).to_csv(tmp_path / "rows.csv", index=False)
    with pytest.raises(UserError, match="no row"):
        read(tmp_path / "rows.csv")
    (tmp_path / "rows.parquet").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "rows.parquet")
