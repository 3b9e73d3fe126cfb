"""Charts of an analysis, as PNG files."""

import io
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

_DPI = 110


def hubness_chart(occurrences: Mapping[str, NDArray[np.int64]]) -> bytes:
    """Draw how often images are found: all images from the most found to the least, per representation.

    Args:
        occurrences: Label -> int64 [N], N_k.
    """
    figure = Figure(figsize=(7.5, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for label, counts in occurrences.items():
        share = (np.arange(len(counts)) + 1) / len(counts)
        axes.plot(share, np.sort(counts)[::-1], label=label, linewidth=1.6)
    mean = next(iter(occurrences.values())).mean()
    axes.axhline(float(mean), color="#8a8f98", linestyle=":", linewidth=1.2, label="if all did alike")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the gallery, most found first")
    axes.set_ylabel("times among the results")
    axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def precision_chart(curves: Mapping[str, pd.DataFrame]) -> bytes:
    """Draw what a threshold buys: precision of the accepted best matches by threshold and by recall.

    Args:
        curves: Label -> table of `calibration.precision_curve`.
    """
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    by_threshold, by_recall = figure.subplots(1, 2, sharey=True)
    for label, curve in curves.items():
        by_threshold.plot(curve["threshold"], curve["precision"], label=label, linewidth=1.4)
        by_recall.plot(curve["recall"], curve["precision"], label=label, linewidth=1.4)
    by_threshold.set_xlabel("threshold (similarity)")
    by_threshold.set_ylabel("precision of accepted best matches")
    by_recall.set_xlabel("recall: answerable queries answered rightly")
    by_recall.legend(frameon=False, fontsize=8)
    by_threshold.set_ylim(0, 1.03)
    return _png(figure)


def invariance_chart(table: pd.DataFrame) -> bytes:
    """Draw a heat map of the share of altered pictures that find their original first.

    Args:
        table: Columns ``representation``, ``alteration``, ``strength`` and ``hit_rate@1``.
    """
    rows = list(dict.fromkeys(zip(table["alteration"], table["strength"], strict=True)))
    labels = list(dict.fromkeys(table["representation"]))
    cell = {
        (row.alteration, row.strength, row.representation): value
        for row, value in zip(table.itertuples(), table["hit_rate@1"], strict=True)
    }
    values = np.array([[cell[(*row, label)] for label in labels] for row in rows])
    figure = Figure(figsize=(3.4 + 1.05 * len(labels), 1.3 + 0.27 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(labels)), labels, rotation=30, ha="left", fontsize=8)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(rows)), [f"{kind}, {strength}" for kind, strength in rows], fontsize=8)
    for (i, j), value in np.ndenumerate(values):
        axes.text(
            j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color="w" if value < 0.5 else "k"
        )
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DPI)
    return stream.getvalue()
