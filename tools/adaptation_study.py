"""Write docs/adaptation_results.md and its figures from the folder of an `ssl-retrieval study`.

    python tools/adaptation_study.py runs/study

Everything is read from the finished cells; an unfinished study gives the tables of what is there.
"""

import argparse
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd

from ssl_retrieval.adaptation import predictors, selection
from ssl_retrieval.adaptation.cell_files import FinishedCell, read_all
from ssl_retrieval.adaptation.cells import Cell
from ssl_retrieval.adaptation.rule import choose
from ssl_retrieval.adaptation.study_table import Effect, collect, effect_of, effects
from ssl_retrieval.statistics import SIGNIFICANCE, holm

mpl.use("Agg")
from matplotlib import pyplot as plt

DOCS = Path(__file__).parent.parent / "docs"
GRID, SIGNALS, PAGE = "adaptation_grid.png", "adaptation_signals.png", "adaptation_results.md"
COLOURS = {False: "#1f77b4", True: "#d62728"}
JITTER = {False: "no colour changes", True: "colour changes"}
LEVELS = {"instance": "The same object", "category": "The same kind"}
COSTS = {
    "num_photos": "number",
    "steps": "steps",
    "train_s": "training, s",
    "cpu_s": "whole cell, CPU s",
}
RESAMPLES = 500
"""Of the bootstrap behind the intervals of rank correlations."""
NUM_RULES = 12
"""Rules listed: the most useful ones."""
NUM_SIGNALS = 6
"""Signals drawn: those whose rank correlation with the change in mAP is farthest from 0."""


def table(lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """Write a Markdown table; the first ``left`` columns are texts, the others numbers."""
    rule = [":--"] * left + ["--:"] * (len(lines[0]) - left)
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


def change(effect: Effect, p_value: float) -> str:
    """Give a difference with its interval, in bold where it is real."""
    found = effect.difference
    text = f"{found.mean:+.3f}"
    text = f"**{text}**" if p_value < SIGNIFICANCE else text
    return f"{text} [{found.low:+.3f}, {found.high:+.3f}]"


def grids(found: Sequence[Effect]) -> dict[tuple[str, str], list[Effect]]:
    """Sort effects by start and method, in the order in which most is known."""
    parts: dict[tuple[str, str], list[Effect]] = {}
    for effect in found:
        parts.setdefault((effect.cell.start, effect.cell.method), []).append(effect)
    return dict(sorted(parts.items(), key=lambda item: (-sum(e.num_seeds for e in item[1]), item[0])))


def grid_table(found: Sequence[Effect]) -> str:
    """Give a row per task, a column per setting: the change in mAP with its interval."""
    settings = sorted({(e.cell.anchor, e.cell.jitter) for e in found})
    header = ["photos", "task", "mAP of the start"]
    header += [f"{_anchored(anchor)}, {JITTER[jitter]}" for anchor, jitter in settings]
    lines = [header]
    for (name, task), of_task in _by_task(found).items():
        p_values = holm([e.difference.p_value for e in of_task])
        cells = {(e.cell.anchor, e.cell.jitter): change(e, p) for e, p in zip(of_task, p_values, strict=True)}
        start = f"{of_task[0].start:.3f}"
        lines.append([name, task, start, *(cells.get(setting, "–") for setting in settings)])
    return table(lines, left=2)


def seeds_line(found: Sequence[Effect]) -> str:
    """Say how many seeds stand behind a table."""
    counts = sorted({e.num_seeds for e in found})
    if counts == [1]:
        return "One seed each: intervals and tests are about these networks."
    return f"Seeds joined: {' to '.join(map(str, counts))} per setting, in intervals and tests."


def costs(cells: Sequence[FinishedCell]) -> str:
    """Give what a cell took, by set, start and method."""
    rows = [f.cell.to_dict() | {cost: f.info[cost] for cost in COSTS} for f in cells if not f.cell.is_start]
    names = ["set", "start", "method"]
    median = pd.DataFrame(rows).groupby(names, sort=False)[list(COSTS)].median().reset_index()
    lines = [["photos", "start", "method", *COSTS.values()]]
    for row in median.to_dict("records"):
        lines.append([*(row[name] for name in names), *(f"{row[cost]:,.0f}" for cost in COSTS)])
    return table(lines, left=3)


def fixed_rule(cells: Sequence[FinishedCell]) -> dict[tuple[str, str], Cell | None]:
    """Let the rule of the `adapt` command choose for each set and start, among the settings of one seed."""
    chosen: dict[tuple[str, str], Cell | None] = {}
    for start in (f for f in cells if f.cell.is_start):
        runs = [f for f in cells if f.cell.of_start == start.cell and not f.cell.is_start]
        runs = [f for f in runs if f.cell.seed == min(other.cell.seed for other in runs)]
        if runs:
            verdict = choose(start.probe(), {f.cell.name: f.probe() for f in runs})
            names = {f.cell.name: f.cell for f in runs}
            chosen[start.cell.set, start.cell.start] = names.get(verdict.name or "")
    return chosen


def rule_of_others(rows: pd.DataFrame) -> dict[tuple[str, str], Cell | None]:
    """Choose for each set by a signal, its direction and threshold that the other sets alone chose."""
    if rows["set"].nunique() < 2:
        return {}
    runs = selection.runs_of(rows)
    table = selection.leave_one_set_out(rows, _best_signal)
    return {
        (taken["set"], taken["start"]): None if taken["row"] < 0 else _cell(runs.loc[taken["row"]].to_dict())
        for taken in table.to_dict("records")
    }


def _best_signal(runs: pd.DataFrame) -> selection.Score:
    fitted = [selection.single(name)(runs) for name in predictors.signal_names(runs)]
    return max(fitted, key=lambda score: selection.utility(runs, score(runs)))


def _cell(run: Mapping[Any, Any]) -> Cell:
    kinds = {"jitter": bool, "anchor": float, "seed": int}
    return Cell(**{name: kinds.get(name, str)(run[name]) for name in predictors.RUN})


def rule_table(cells: Sequence[FinishedCell], chosen: Mapping[tuple[str, str], Cell | None]) -> str:
    """Give what a rule chose, what that did to each task, and what the best setting would have done."""
    by_cell = {f.cell: f for f in cells}
    lines = [["photos", "start", "taken", "task", "change in mAP", "not below", "best of the grid"]]
    for (name, start), taken in chosen.items():
        before = by_cell[Cell(name, start)]
        runs = [f for f in cells if f.cell.of_start == before.cell and not f.cell.is_start]
        for task in before.scores:
            did = None if taken is None else effect_of(before, [by_cell[taken]], task)
            best = max((effect_of(before, [f], task) for f in runs), key=lambda e: e.difference.mean)
            lines.append(
                [
                    name,
                    start,
                    "the start" if taken is None else _short(taken),
                    task,
                    "±0" if did is None else change(did, did.difference.p_value),
                    "yes" if did is None or did.difference.high >= 0 else "NO",
                    f"{best.difference.mean:+.3f} ({_short(best.cell)})",
                ]
            )
    return table(lines, left=4)


def rules_table(rows: pd.DataFrame) -> str:
    """Give what choosing by each signal is worth on sets that had no part in it."""
    found = selection.compare_rules(rows)
    known = found["rule"].isin(("always the start", "the best run"))
    found = pd.concat([found[known], found[~known].head(NUM_RULES)])
    names = ["delta", "worst", "worst_task", "regret", "taken"]
    lines = [["rule", *names]]
    for row in found.to_dict("records"):
        lines.append([str(row["rule"]), *(_signed(row[name], 3) for name in names)])
    return table(lines)


def signals_table(found: pd.DataFrame) -> str:
    """Give the rank correlation of each signal with the change in mAP."""
    lines = [["signal", "within sets", "95 % interval", "all rows"]]
    for row in found.to_dict("records"):
        interval = f"{_signed(row['low'])} to {_signed(row['high'])}"
        lines.append([str(row["signal"]), _signed(row["within"]), interval, _signed(row["pooled"])])
    return table(lines)


def draw_grid(found: Sequence[Effect], file: Path) -> None:
    """Draw the change in mAP against the anchor, with and without colour changes: a panel per task."""
    tasks = _by_task(found)
    columns = 4
    rows = -(-len(tasks) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(2.9 * columns, 2.3 * rows + 0.6), squeeze=False, layout="constrained"
    )
    anchors = sorted({e.cell.anchor for e in found})
    for panel in panels.flat[len(tasks) :]:
        panel.axis("off")
    for panel, ((name, task), of_task) in zip(panels.flat, tasks.items(), strict=False):
        panel.axhline(0, color="black", linewidth=0.8)
        for jitter, colour in COLOURS.items():
            line = sorted((e for e in of_task if e.cell.jitter == jitter), key=lambda e: e.cell.anchor)
            if not line:
                continue
            x = [anchors.index(e.cell.anchor) + (0.08 if jitter else -0.08) for e in line]
            mean = np.array([e.difference.mean for e in line])
            ends = np.array([[e.difference.low, e.difference.high] for e in line]).T
            panel.errorbar(
                x,
                mean,
                yerr=np.maximum(0, np.abs(ends - mean)),
                color=colour,
                marker="o",
                markersize=4,
                capsize=2,
                label=JITTER[jitter],
            )
        panel.set_xticks(range(len(anchors)), [f"{anchor:g}" for anchor in anchors])
        panel.set_xlim(-0.4, len(anchors) - 0.6)
        panel.set_title(
            f"{name}: {task} (start {of_task[0].start:.3f})\n{of_task[0].level}-level", fontsize=8
        )
        panel.tick_params(labelsize=7)
        panel.grid(axis="y", alpha=0.3)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, fontsize=9)
    figure.supxlabel("weight λ of the anchor to the start (0 = free)", fontsize=9)
    figure.supylabel("change in mAP, 95 % interval", fontsize=9)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def draw_signals(rows: pd.DataFrame, found: pd.DataFrame, file: Path) -> None:
    """Draw the signals that predict best against the change in mAP: a panel per signal, a colour per set."""
    names = found.dropna(subset=["within"]).set_index("signal")["within"][:NUM_SIGNALS]
    figure, panels = plt.subplots(2, 3, figsize=(11, 6.4), squeeze=False, layout="constrained")
    colours = {name: f"C{number}" for number, name in enumerate(rows["set"].unique())}
    for panel in panels.flat[len(names) :]:
        panel.axis("off")
    for panel, (signal, rho) in zip(panels.flat, names.items(), strict=False):
        for name, colour in colours.items():
            for level, marker in (("instance", "o"), ("category", "^")):
                part = rows[(rows["set"] == name) & (rows["level"] == level)]
                if len(part):
                    panel.scatter(
                        part[signal],
                        part["delta_map"],
                        color=colour,
                        marker=marker,
                        s=16,
                        alpha=0.75,
                        label=f"{name}, {level}-level",
                    )
        panel.axhline(0, color="black", linewidth=0.8)
        panel.locator_params(axis="x", nbins=5)
        panel.set_title(f"{signal}: rank correlation {rho:+.2f}", fontsize=9)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.3)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=8)
    figure.supxlabel("signal, seen without labels", fontsize=9)
    figure.supylabel("change in mAP", fontsize=9)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def page(cells: Sequence[FinishedCell], rows: pd.DataFrame, found_signals: pd.DataFrame) -> str:
    """Write the document."""
    trained = [f for f in cells if not f.cell.is_start]
    setting = trained[0].info["setting"]
    parts = [
        "# Adapting to your own photos: whole results",
        f"Made by `python tools/adaptation_study.py` from {len(trained)} trainings of "
        f"`configs/adapt/study.yaml` ({datetime.date.today().isoformat()}, CPU): {setting['image_size']} px, "
        f"batch {setting['batch_size']}, {setting['steps']} steps each. Training saw no label. "
        "What it means: [adaptation.md](adaptation.md).",
        "Each number is the mAP after adapting minus that of the start on the same queries, with its 95 % "
        "interval ([statistics.md](statistics.md)); bold: real at 5 % after Holm's adjustment over the "
        "settings of a task. Larger tasks are cut to a part that is the same for all cells.",
        f"![Change in mAP by task]({GRID})",
    ]
    for (start, method), found in grids(effects(cells)).items():
        parts.append(f"## {method} from {start}\n\n{seeds_line(found)}")
        for level, title in LEVELS.items():
            of_level = [e for e in found if e.level == level]
            if of_level:
                parts += [f"### {title} ({level}-level)", grid_table(of_level)]
    parts += [
        "## What the rule takes, without labels",
        "The rule of `ssl-retrieval adapt`, among all settings of one seed. `not below`: the 95 % interval "
        "of the change does not lie below 0. Its constants were set when sets like these were known.",
        rule_table(cells, fixed_rule(cells)),
        "The same for a rule that never met the set: which signal, which way and from where on was found on "
        "the other sets (leave one set out).",
        rule_table(cells, rule_of_others(rows)) if rows["set"].nunique() > 1 else "It takes two sets.",
        *_rules(rows),
        "## Signals",
        f"![Signals against the change in mAP]({SIGNALS})",
        "Spearman's rank correlation of each signal with the change in mAP, within a task, mean over sets; "
        "interval: bootstrap over sets and runs.",
        signals_table(found_signals),
        "## Cost",
        "Medians over cells; one thread. The whole cell is training, embedding all tasks and the probe.",
        costs(cells),
    ]
    return "\n\n".join(parts) + "\n"


def _rules(rows: pd.DataFrame) -> list[str]:
    if rows["set"].nunique() < 2:
        return []
    return [
        "What choosing by a signal is worth, leave one set out: mean change in mAP over sets and starts, the "
        "worst of them, the worst task, mean distance to the best run, share of sets where it takes a run.",
        rules_table(rows),
    ]


def _by_task(found: Sequence[Effect]) -> dict[tuple[str, str], list[Effect]]:
    tasks: dict[tuple[str, str], list[Effect]] = {}
    for effect in found:
        tasks.setdefault((effect.cell.set, effect.task), []).append(effect)
    return tasks


def _signed(value: float, digits: int = 2) -> str:
    return "–" if np.isnan(value) else f"{value:+.{digits}f}"


def _anchored(anchor: float) -> str:
    return f"λ = {anchor:g}" if anchor else "free"


def _short(cell: Cell) -> str:
    return f"{cell.method}, {JITTER[cell.jitter]}, {_anchored(cell.anchor)}"


def write(study: Path, docs: Path) -> None:
    """Write the document and the figures of a study.

    Args:
        study: The study's folder.
        docs: Where to write.
    """
    rows, cells = collect(study), read_all(study)
    if rows.empty:
        raise SystemExit(f"{study}: no training is finished beside its start: let the study go on")
    first = next(iter(grids(effects(cells)).values()))
    draw_grid(first, docs / GRID)
    found_signals = predictors.rank_correlations(rows, RESAMPLES)
    draw_signals(rows, found_signals, docs / SIGNALS)
    (docs / PAGE).write_text(page(cells, rows, found_signals), "utf-8")


def main() -> None:
    """Write all files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, help="out folder of the study")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where to write")
    args = parser.parse_args()
    write(args.study, args.docs)


if __name__ == "__main__":
    main()
