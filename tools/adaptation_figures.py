"""The figures of tools/adaptation_study.py."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd

from ssl_retrieval.adaptation.rule import STEADINESS
from ssl_retrieval.adaptation.study_table import Effect

mpl.use("Agg")
from matplotlib import pyplot as plt

COLOURS = {False: "#1f77b4", True: "#d62728"}
JITTER = {False: "no colour changes", True: "colour changes"}
NUM_SIGNALS = 5
"""Signals drawn besides the rule's own: those whose rank correlation with the change is farthest from 0."""
OWN = "steadiness"
"""The signal of which the rule has a limit."""


def by_task(found: Sequence[Effect]) -> dict[tuple[str, str], list[Effect]]:
    """Sort effects by set and task."""
    tasks: dict[tuple[str, str], list[Effect]] = {}
    for effect in found:
        tasks.setdefault((effect.cell.set, effect.task), []).append(effect)
    return tasks


def draw_grid(found: Sequence[Effect], file: Path) -> None:
    """Draw the change in mAP against the anchor, with and without colour changes: a panel per task."""
    tasks = by_task(found)
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
    within = found.dropna(subset=["within"]).set_index("signal")["within"]
    names = pd.concat([within[within.index == OWN], within[within.index != OWN][:NUM_SIGNALS]])
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
        if signal == OWN:
            panel.axvline(STEADINESS, color="black", linewidth=0.8, linestyle="--", label="limit of the rule")
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
