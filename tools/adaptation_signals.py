"""Print how well label-free signals predict the change in mAP, and draw the best of them.

    python tools/adaptation_signals.py runs/study/rows.csv --figure signals.png > signals.md

The rows are a study's: see ssl_retrieval/adaptation/predictors.py.
"""

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd

from ssl_retrieval.adaptation.predictors import DELTA, SET, rank_correlations, read
from ssl_retrieval.adaptation.selection import compare_rules, runs_of

mpl.use("Agg")
from matplotlib import pyplot as plt

PANELS = 6


def markdown(table: pd.DataFrame) -> str:
    """Write a table, numbers with three digits."""
    cells = [
        [f"{v:.3f}" if isinstance(v, float) else str(v) for v in row] for row in table.to_numpy().tolist()
    ]
    lines = [list(table.columns), ["---"] * len(table.columns), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figure(rows: pd.DataFrame, signals: list[str], file: Path) -> None:
    """Draw each run's change in mAP, mean over its tasks, against some signals: a colour per set."""
    runs = runs_of(rows)
    grid, panels = plt.subplots(2, PANELS // 2, figsize=(11, 6.5), sharey=True, layout="constrained")
    for panel, signal in zip(np.ravel(panels), signals, strict=False):
        for name, group in runs.groupby(SET):
            panel.scatter(group[signal], group[DELTA], s=18, label=str(name))
        panel.axhline(0, color="0.6", linewidth=0.8)
        panel.set_xlabel(signal)
    np.ravel(panels)[0].legend(frameon=False)
    grid.supylabel("change in mAP")
    grid.savefig(file, dpi=120)


def main() -> None:
    """Read, compute, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    rows = read(options.rows)
    correlations = rank_correlations(rows)
    print("Spearman's rank correlation with the change in mAP, within sets, 95 % interval:\n")
    print(markdown(correlations))
    if rows[SET].nunique() > 1:
        print("\nRules, each set decided by what was fitted on the others:\n")
        print(markdown(compare_rules(rows).head(20)))
    if options.figure:
        figure(rows, correlations["signal"].head(PANELS).tolist(), options.figure)


if __name__ == "__main__":
    main()
