"""Write docs/baseline_results.md and docs/ladder.png from finished runs of configs/compare/ladder.yaml.

    python tools/baseline_results.py runs/ladder_grocery runs/ladder_ukbench runs/ladder_cifar10

Each folder is the ``out`` of one run. Its ``table.md`` is taken over whole; ``table.csv`` gives the figure.
"""

import argparse
import datetime
import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd

mpl.use("Agg")
from matplotlib import pyplot as plt

DOCS = Path(__file__).parent.parent / "docs"
COLOURS = {
    "hand-crafted": "#8c6d31",
    "random": "#9e9e9e",
    "off-the-shelf": "#1f77b4",
    "fine-tuned": "#d62728",
    "self-supervised": "#2ca02c",
}


def command(run: Path) -> str:
    """Give back the overrides of a run, as its reports have them."""
    reports = [json.loads(file.read_text("utf-8")) for file in sorted((run / "reports").glob("*.json"))]
    datasets = {report["task"]: report["config"]["data"] for report in reports}
    said = [
        f"- `{task}`: " + ", ".join(f"{k}={_shown(v)}" for k, v in data.items())
        for task, data in datasets.items()
    ]
    fit = reports[0]["config"].get("fit")
    return "\n".join([*said, *([f"- fitted on `{fit['name']}`"] if fit else [])])


def _shown(value: object) -> object:
    return "…" if isinstance(value, str) and "/" in value else value


def figure(runs: list[Path], file: Path) -> None:
    """Draw mAP with its interval: a row per rung, a panel per task."""
    rows = pd.concat([pd.read_csv(run / "table.csv") for run in runs])
    rows = rows[rows["metric"] == "mAP"]
    tasks = rows["task"].drop_duplicates().tolist()
    names = rows["representation"].drop_duplicates().tolist()
    place = {name: len(names) - i for i, name in enumerate(names)}
    size = (2.6 * len(tasks) + 2.2, 0.22 * len(names) + 1.2)
    drawn, panels = plt.subplots(
        1, len(tasks), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for task, panel in zip(tasks, panels[0], strict=True):
        of_task = rows[rows["task"] == task]
        y = of_task["representation"].map(place)
        error = np.abs(of_task[["low", "high"]].to_numpy().T - of_task["mean"].to_numpy())
        colours = of_task["family"].map(COLOURS)
        panel.barh(y, of_task["mean"], color=colours, alpha=0.85, height=0.7)
        panel.errorbar(of_task["mean"], y, xerr=error, fmt="none", ecolor="black", elinewidth=0.8)
        panel.scatter(
            of_task["high"] + 0.03 * of_task["high"].max(),
            y,
            marker="*",
            s=np.where(of_task["in_best_group"].astype(bool), 28, 0),
            color="black",
        )
        panel.set_title(f"{task}\n{of_task['level'].iloc[0]}-level", fontsize=9)
        panel.set_xlim(0, 1.15 * of_task["high"].max())
        panel.tick_params(labelsize=8)
        panel.grid(axis="x", alpha=0.3)
    panels[0][0].set_yticks(list(place.values()), list(place), fontsize=8)
    panels[0][0].set_ylim(0.3, len(names) + 0.7)
    drawn.supxlabel("mAP, 95 % bootstrap interval; ★ best or not distinguishable from it", fontsize=9)
    drawn.savefig(file, dpi=110)


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="out folders of finished runs")
    runs: list[Path] = parser.parse_args().runs
    figure(runs, DOCS / "ladder.png")
    parts = [
        "# The ladder: whole results",
        "Made by `python tools/baseline_results.py` from runs of `configs/compare/ladder.yaml` "
        f"({datetime.date.today().isoformat()}, two CPU cores); what they mean: "
        "[baselines.md](baselines.md).",
        "![mAP of every rung](ladder.png)",
    ]
    for run in runs:
        parts += [f"## {run.name}", command(run), (run / "table.md").read_text("utf-8").strip()]
    (DOCS / "baseline_results.md").write_text("\n\n".join(parts) + "\n", "utf-8")


if __name__ == "__main__":
    main()
