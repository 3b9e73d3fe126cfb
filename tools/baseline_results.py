"""Write docs/baseline_results.md and docs/ladder.png from finished runs of configs/compare/ladder.yaml.

    python tools/baseline_results.py runs/ladder runs/ladder_cifar10 --memory memory.md

Each folder is the ``out`` of one run. Its ``table.md`` is taken over whole; ``table.csv`` gives the figure,
and the reports the paired differences. ``memory.md`` is what benchmarks/extractor_memory.py printed.
"""

import argparse
import datetime
import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd

from ssl_retrieval.report.files import read_report
from ssl_retrieval.report.markdown import markdown_table
from ssl_retrieval.resampling import of_report
from ssl_retrieval.statistics import bootstrap_mean
from ssl_retrieval.types import Report

mpl.use("Agg")
from matplotlib import pyplot as plt

DOCS = Path(__file__).parent.parent / "docs"
STARTS = ("pixels", "avg")
"""What every rung is held against: the floor, and the network as most people use it."""
COLOURS = {
    "hand-crafted": "#8c6d31",
    "random": "#9e9e9e",
    "off-the-shelf": "#1f77b4",
    "distilled": "#9467bd",
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


def differences(run: Path) -> str:
    """Give how far every rung is above the two starts, query by query, as a Markdown table."""
    of_task: dict[str, dict[str, Report]] = {}
    for file in (run / "reports").glob("*.json"):
        report = read_report(file)
        of_task.setdefault(report.task, {})[report.representation["name"]] = report
    order = pd.read_csv(run / "table.csv")
    names = order["representation"].drop_duplicates()
    tasks = order["task"].drop_duplicates()
    lines = [["representation", *(f"{task}: over {start}" for task in tasks for start in STARTS)]]
    for name in names:
        line = [name]
        for task in tasks:
            mine = of_task[task].get(name)
            for start in STARTS:
                if mine is None or name == start:
                    line.append("–")
                    continue
                differences = mine.per_query["mAP"] - of_task[task][start].per_query["mAP"]
                gain = bootstrap_mean(differences, groups=of_report(mine).groups)
                line.append(f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]")
        lines.append(line)
    return markdown_table(lines)


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="out folders of finished runs")
    parser.add_argument("--memory", type=Path, help="what benchmarks/extractor_memory.py printed")
    args = parser.parse_args()
    runs: list[Path] = args.runs
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
        parts += [
            "mAP above raw pixels and above plain average pooling, paired by query, 95 % bootstrap interval:",
            differences(run),
        ]
    if args.memory:
        table = [line for line in args.memory.read_text("utf-8").splitlines() if line.startswith("|")]
        parts += [
            "## Memory of each extractor",
            "The peak MiB of the tables above is that of one process which keeps all rungs; here every "
            "extractor has a process of its own, which embeds a few hundred photos (imports and network "
            "included; benchmarks/extractor_memory.py).",
            "\n".join(table),
        ]
    (DOCS / "baseline_results.md").write_text("\n\n".join(parts) + "\n", "utf-8")


if __name__ == "__main__":
    main()
