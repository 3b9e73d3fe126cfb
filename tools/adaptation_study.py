"""Write docs/adaptation_results.md, its figures and adaptation_evidence.csv from an `ssl-retrieval study`.

    python tools/adaptation_study.py runs/study
    python tools/adaptation_study.py runs/held-out --held-out

The second is for sets on which nothing was fitted: docs/adaptation_held_out.md has the changes, and what
the product's rule takes. Everything is read from the finished cells; an unfinished study gives the tables
of what is there.
"""

import argparse
import datetime
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from adaptation_figures import JITTER, by_task, draw_grid, draw_signals

from ssl_retrieval.adaptation import evidence_table, predictors, selection
from ssl_retrieval.adaptation.cell_files import FinishedCell, read_all
from ssl_retrieval.adaptation.cells import Cell
from ssl_retrieval.adaptation.plan import Setting
from ssl_retrieval.adaptation.rule import GOALS, SIMILAR, STEADINESS
from ssl_retrieval.adaptation.rule_fit import (
    KnownRun,
    choice,
    fit,
    goal_of,
    known_runs,
    limits_of_others,
)
from ssl_retrieval.adaptation.study_table import Effect, collect, effect_of, effects, paired
from ssl_retrieval.report.markdown import markdown_table
from ssl_retrieval.statistics import SIGNIFICANCE, PairedDifference, holm

DOCS = Path(__file__).parent.parent / "docs"
GRID, SIGNALS, PAGE = "adaptation_grid.png", "adaptation_signals.png", "adaptation_results.md"
HELD_OUT_PAGE = "adaptation_held_out.md"
EVIDENCE = "adaptation_evidence.csv"
"""What the rule sees of each training: with it, the rule is fitted again without the study."""
LEVELS = {"instance": "The same object", "category": "The same kind"}
COSTS = {
    "num_photos": "number",
    "steps": "steps",
    "train_s": "training, s",
    "cpu_s": "whole cell, CPU s",
}
CHANGES = (
    "Each number is the mAP after adapting minus that of the start on the same queries, with its 95 % "
    "interval ([statistics.md](statistics.md)); bold: real at 5 % after Holm's adjustment over the "
    "settings of a task. Larger tasks are cut to a part that is the same for all cells."
)
READING = (
    "Tasks with copies are decided with `--goal copies`, the others with `--goal similar`. `not below`: the "
    "95 % interval does not lie below 0. The best of the grid is known from labels alone, and flattered by "
    "being the best."
)
RESAMPLES = 500
"""Of the bootstrap behind the intervals of rank correlations."""
NUM_RULES = 12
"""Rules listed: the most useful ones."""


def change(effect: Effect, p_value: float) -> str:
    """Give a difference with its interval, in bold where it is real."""
    mean, _, interval = _interval(effect.difference).partition(" ")
    return f"{f'**{mean}**' if p_value < SIGNIFICANCE else mean} {interval}"


def grids(found: Sequence[Effect]) -> dict[tuple[str, str], list[Effect]]:
    """Sort effects by start and method: the method of `adapt` first, then what is known best."""
    parts: dict[tuple[str, str], list[Effect]] = {}
    for effect in found:
        parts.setdefault((effect.cell.start, effect.cell.method), []).append(effect)

    def order(item: tuple[tuple[str, str], list[Effect]]) -> tuple[bool, int, str]:
        (start, method), found = item
        return method != Setting().method, -sum(e.num_seeds for e in found), start

    return dict(sorted(parts.items(), key=order))


def grid_table(found: Sequence[Effect]) -> str:
    """Give a row per task, a column per setting: the change in mAP with its interval."""
    settings = sorted({(e.cell.anchor, e.cell.jitter) for e in found})
    header = ["photos", "task", "mAP of the start"]
    header += [f"{_anchored(anchor)}, {JITTER[jitter]}" for anchor, jitter in settings]
    lines = [header]
    for (name, task), of_task in by_task(found).items():
        p_values = holm([e.difference.p_value for e in of_task])
        cells = {(e.cell.anchor, e.cell.jitter): change(e, p) for e, p in zip(of_task, p_values, strict=True)}
        start = f"{of_task[0].start:.3f}"
        lines.append([name, task, start, *(cells.get(setting, "–") for setting in settings)])
    return markdown_table(lines, num_texts=2)


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
    return markdown_table(lines, num_texts=3)


@dataclass(frozen=True)
class Taken:
    """What the rule took for one set, start and method, with one goal, seed by seed; None = the start."""

    before: FinishedCell
    method: str
    goal: str
    cells: dict[int, Cell | None]


def rule(cells: Sequence[FinishedCell], runs: Sequence[KnownRun], limits: Mapping[str, float]) -> list[Taken]:
    """Let the rule choose among the settings of each set, start, method and seed."""
    found = []
    for before in (f for f in cells if f.cell.is_start):
        of_start = [run for run in runs if run.cell.of_start == before.cell]
        for method in dict.fromkeys(run.cell.method for run in of_start):
            seeds: dict[int, list[KnownRun]] = {}
            for run in of_start:
                if run.cell.method == method:
                    seeds.setdefault(run.cell.seed, []).append(run)
            # A seed of which the study has only begun is not a choice yet.
            most = max(map(len, seeds.values()))
            whole = {seed: group for seed, group in sorted(seeds.items()) if len(group) == most}
            for goal in GOALS:
                taken = {seed: choice(group, goal, limits[before.cell.set]) for seed, group in whole.items()}
                found.append(Taken(before, method, goal, taken))
    return found


def rule_table(cells: Sequence[FinishedCell], taken: Sequence[Taken]) -> str:
    """Give what the rule took, what that did to each task, and what the best setting would have done."""
    by_cell = {f.cell: f for f in cells}
    rows, outcomes = [], []
    for one in taken:
        settings: dict[Cell, list[FinishedCell]] = {}
        for f in cells:
            if (f.cell.of_start, f.cell.method) == (one.before.cell, one.method) and f.cell.seed in one.cells:
                settings.setdefault(f.cell.with_seed(0), []).append(f)
        for task in one.before.scores:
            if goal_of(task) != one.goal:
                continue
            used = [by_cell[cell or one.before.cell] for cell in one.cells.values()]
            did = effect_of(one.before, used, task).difference if any(one.cells.values()) else None
            grid = [effect_of(one.before, group, task) for group in settings.values()]
            adjusted = holm([e.difference.p_value for e in grid])
            best, p_value = max(zip(grid, adjusted, strict=True), key=lambda pair: pair[0].difference.mean)
            outcomes.append((did, best.difference, p_value))
            rows.append(
                [
                    one.before.cell.set,
                    task,
                    one.before.cell.start,
                    one.method,
                    _settings(one.cells.values()),
                    "±0" if did is None else _interval(did),
                    "–" if did is None else "NO" if did.high < 0 else "yes",
                    f"{_interval(best.difference)}, {_setting(best.cell)}",
                ]
            )
    rows.sort(key=lambda row: (goal_of(row[1]), row[:2]))
    header = ["photos", "task", "start", "method", "taken", "change in mAP", "not below", "best of the grid"]
    return f"{_counted(outcomes)}\n\n{markdown_table([header, *rows], num_texts=5)}"


def _counted(outcomes: Sequence[tuple[PairedDifference | None, PairedDifference, float]]) -> str:
    """Count where the rule won; per row what it did (None = the start), what the best did, its adjusted p."""
    above = [did is not None and did.low > 0 for did, _, _ in outcomes]
    below = sum(did is not None and did.high < 0 for did, _, _ in outcomes)
    alone = [best.low > 0 for _, best, _ in outcomes]
    of_all = [best.mean > 0 and p_value < SIGNIFICANCE for _, best, p_value in outcomes]
    return (
        f"{len(outcomes)} rows: {sum(above)} clearly above the start (the interval lies above 0), {below} "
        f"clearly below, {len(outcomes) - sum(above) - below} neither. In {sum(alone)} rows the best of the "
        f"grid is clearly above; in {_both(alone, above)} of them what is taken is so too. But it is the "
        f"best of several: after Holm's adjustment over the settings it is clearly above in {sum(of_all)} "
        f"rows, and what is taken in {_both(of_all, above)} of them."
    )


def _both(some: Sequence[bool], others: Sequence[bool]) -> int:
    return sum(one and other for one, other in zip(some, others, strict=True))


def rules_table(rows: pd.DataFrame) -> str:
    """Give what choosing by each signal is worth on sets that had no part in it."""
    found = selection.compare_rules(rows)
    known = found["rule"].isin(("always the start", "the best run"))
    found = pd.concat([found[known], found[~known].head(NUM_RULES)])
    names = ["delta", "worst", "worst_task", "regret", "taken"]
    lines = [["rule", *names]]
    for row in found.to_dict("records"):
        lines.append([str(row["rule"]), *(_signed(row[name], 3) for name in names)])
    return markdown_table(lines)


def signals_table(found: Mapping[str, pd.DataFrame]) -> str:
    """Give the rank correlation of each signal with the change in mAP, by goal."""
    lines = [["signal", *(f"{part} ({goal})" for goal in found for part in ("within sets", "95 % interval"))]]
    for signal in next(iter(found.values()))["signal"]:
        line = [str(signal)]
        for of_goal in found.values():
            (row,) = of_goal[of_goal["signal"] == signal].to_dict("records")
            line += [_signed(row["within"]), f"{_signed(row['low'])} to {_signed(row['high'])}"]
        lines.append(line)
    return markdown_table(lines)


def page(
    cells: Sequence[FinishedCell],
    runs: Sequence[KnownRun],
    rows: pd.DataFrame,
    found_signals: Mapping[str, pd.DataFrame],
) -> str:
    """Write the document."""
    parts = [
        "# Adapting to your own photos: whole results",
        f"{_made(cells, 'study')} What it means: [adaptation.md](adaptation.md).",
        CHANGES,
        f"![Change in mAP by task]({GRID})",
        *_grid_parts(cells),
        "## What the rule takes, without labels",
        _rule_section(cells, runs),
        "## Signals",
        f"![Signals against the change in mAP]({SIGNALS})",
        "Spearman's rank correlation of each signal with the change in mAP, within a task, mean over sets; "
        "interval: bootstrap over sets and runs. The figure is of tasks that search for what is similar.",
        signals_table(found_signals),
        *_rules(rows[rows["task"].map(goal_of) == SIMILAR]),
        "## Cost",
        "Medians over cells; one thread. The whole cell is training, embedding all tasks and the probe.",
        costs(cells),
    ]
    return "\n\n".join(parts) + "\n"


def held_out_page(cells: Sequence[FinishedCell]) -> str:
    """Write the document of sets on which nothing was fitted."""
    runs = known_runs(cells)
    limits = {run.cell.set: STEADINESS for run in runs}
    parts = [
        "# The rule of `adapt` on pictures that it had never met",
        f"{_made(cells, 'held_out')} `tools/held_out_sets.py` makes the sets. What it means: "
        "[adaptation.md](adaptation.md).",
        CHANGES,
        *_grid_parts(cells),
        "## What the rule takes, without labels",
        "The rule of `ssl-retrieval adapt` as it is chooses among those settings of λ and colour changes "
        f"that `adapt` would try on the photos (least steadiness {STEADINESS:.2f}). {READING}",
        rule_table(cells, rule(cells, runs, limits)),
    ]
    return "\n\n".join(parts) + "\n"


def _made(cells: Sequence[FinishedCell], config: str) -> str:
    trained = [f for f in cells if not f.cell.is_start]
    setting = trained[0].info["setting"]
    return (
        f"Made by `python tools/adaptation_study.py` from {len(trained)} trainings of "
        f"`configs/adapt/{config}.yaml` ({datetime.date.today().isoformat()}, CPU): {setting['image_size']} "
        f"px, batch {setting['batch_size']}, {setting['steps']} steps each. Training saw no label."
    )


def _grid_parts(cells: Sequence[FinishedCell]) -> list[str]:
    parts = []
    for (start, method), found in grids(effects(cells)).items():
        parts.append(f"## {method} from {start}\n\n{seeds_line(found)}")
        for level, title in LEVELS.items():
            of_level = [e for e in found if e.level == level]
            if of_level:
                parts += [f"### {title} ({level}-level)", grid_table(of_level)]
    return parts


def _rule_section(cells: Sequence[FinishedCell], runs: Sequence[KnownRun]) -> str:
    if len({run.cell.set for run in runs}) < 2:
        return "It takes two sets."
    limits = limits_of_others(runs)
    said = ", ".join(f"{name} {limit:.2f}" for name, limit in limits.items())
    return (
        "The rule of `ssl-retrieval adapt` chooses, for each start, method and seed, among those settings "
        "of λ and colour changes that `adapt` would try on the photos; seeds are joined in the interval. "
        "Leave one set out: its constant, the least steadiness, was "
        f"found for each set on the others alone ({said}; on all of them {fit(runs):.2f}, the product has "
        f"{STEADINESS:.2f}). What it saw of each training: [{EVIDENCE}]({EVIDENCE}). {READING}\n\n"
        f"{rule_table(cells, rule(cells, runs, limits))}"
    )


def _rules(rows: pd.DataFrame) -> list[str]:
    if rows["set"].nunique() < 2:
        return []
    return [
        "What choosing by a signal is worth, leave one set out: mean change in mAP over sets and starts, the "
        "worst of them, the worst task, mean distance to the best run, share of sets where it takes a run.",
        rules_table(rows),
    ]


def _signed(value: float, digits: int = 2) -> str:
    return "–" if np.isnan(value) else f"{value:+.{digits}f}"


def _anchored(anchor: float) -> str:
    return f"λ = {anchor:g}" if anchor else "free"


def _setting(cell: Cell) -> str:
    return f"{_anchored(cell.anchor)}, {JITTER[cell.jitter]}"


def _settings(taken: Iterable[Cell | None]) -> str:
    counts = Counter("the start" if cell is None else _setting(cell) for cell in taken)
    if len(counts) == 1:
        return next(iter(counts))
    return "; ".join(f"{name} ({count})" for name, count in counts.items())


def _interval(change: PairedDifference) -> str:
    return f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"


def write(study: Path, docs: Path, is_held_out: bool = False) -> None:
    """Write the document and the figures of a study.

    Args:
        study: The study's folder.
        docs: Where to write.
        is_held_out: Nothing was fitted on its sets, and nothing shall be.
    """
    cells = read_all(study)
    if not any(paired(cells)):
        raise SystemExit(f"{study}: no training is finished beside its start: let the study go on")
    if is_held_out:
        (docs / HELD_OUT_PAGE).write_text(held_out_page(cells), "utf-8")
        return
    rows = collect(study)
    first = next(iter(grids(effects(cells)).values()))
    draw_grid(first, docs / GRID)
    by_goal = dict(list(rows.groupby(rows["task"].map(goal_of))))
    found_signals = {
        goal: predictors.rank_correlations(by_goal[goal], RESAMPLES) for goal in GOALS if goal in by_goal
    }
    draw_signals(by_goal[SIMILAR], found_signals[SIMILAR], docs / SIGNALS)
    runs = known_runs(cells)
    evidence_table.write(runs, docs / EVIDENCE)
    (docs / PAGE).write_text(page(cells, runs, rows, found_signals), "utf-8")


def main() -> None:
    """Write all files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, help="out folder of the study")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where to write")
    parser.add_argument("--held-out", action="store_true", help="nothing was fitted on its sets")
    args = parser.parse_args()
    write(args.study, args.docs, args.held_out)


if __name__ == "__main__":
    main()
