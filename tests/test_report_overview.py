"""The picture of a whole comparison: what stands in it, and that it can be written."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_report import NASTY, make_report

from ssl_retrieval.compare import Comparison, compare
from ssl_retrieval.report.overview import draw_overview, save_overview

MODELS = [("pixels", "hand-crafted", 0.2), (NASTY, "off-the-shelf", 0.5), ("$x_2$", "self-supervised", 0.7)]


@pytest.fixture
def comparison() -> Comparison:
    """The last model was evaluated on one of the tasks only."""
    return compare(
        [
            make_report(name, family, mean, task, level, seed)
            for task, level, count in (("toys", "instance", 3), ("kinds", "category", 2))
            for seed, (name, family, mean) in enumerate(MODELS[:count])
        ]
    )


def test_every_score_has_its_bar_and_a_missing_one_leaves_a_gap(comparison: Comparison) -> None:
    figure = draw_overview(comparison)
    assert [panel.get_title().split("\n")[0] for panel in figure.axes] == ["toys", "kinds"]
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [name for name, _, _ in MODELS]
    for panel, task in zip(figure.axes, comparison.tasks, strict=True):
        bars: Any = panel.patches
        drawn = {round(bar.get_y() + bar.get_height() / 2): bar.get_width() for bar in bars}
        expected = {labels.index(entry.name): entry.score.mean for entry in task.entries}
        assert drawn == pytest.approx(expected)
    assert len(figure.axes[1].patches) == 2


def test_the_best_has_a_star(comparison: Comparison) -> None:
    texts = [text.get_text() for text in draw_overview(comparison).axes[0].texts]
    assert [text.endswith("★") for text in texts] == [False, False, True]


def test_it_is_written_as_a_png(comparison: Comparison, tmp_path: Path) -> None:
    save_overview(comparison, tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as picture:
        assert picture.format == "PNG"
        assert np.asarray(picture.convert("L")).std() > 10
    assert [file.name for file in tmp_path.iterdir()] == ["chart.png"]
