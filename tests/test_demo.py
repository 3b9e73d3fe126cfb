"""The demo keeps its promises: one table, and learning that can be told from chance."""

from pathlib import Path

import pandas as pd
import pytest

from ssl_retrieval import config
from ssl_retrieval.compare import Comparison
from ssl_retrieval.demo.run import HERE, TRAINED, run_demo
from ssl_retrieval.train import PretrainConfig


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    out = tmp_path_factory.mktemp("demo")
    return run_demo(out), out


@pytest.mark.slow
@pytest.mark.parametrize("level", ["instance", "category"])
def test_training_beats_its_own_random_start(demo: tuple[Comparison, Path], level: str) -> None:
    comparison, _ = demo
    task = next(task for task in comparison.tasks if task.task == f"emoji-{level}")
    assert task.level == level
    trained, start = task.entry("SimCLR from scratch"), task.entry("its random start")
    assert trained is not None
    assert start is not None
    assert trained.score.low > start.score.high


@pytest.mark.slow
def test_files(demo: tuple[Comparison, Path]) -> None:
    comparison, out = demo
    assert len(comparison.representations) >= 5
    table = pd.read_csv(out / "table.csv")
    assert set(table["level"]) == {"instance", "category"}
    assert set(table["representation"]) == set(comparison.representations)
    assert len(list((out / "reports").glob("*.json"))) == 3 * len(comparison.representations)
    page = (out / "report.html").read_text()
    assert page.count("data:image/jpeg;base64") > 100
    assert "emoji-moved" in (out / "table.md").read_text()


def test_start_and_training_share_network_and_seed() -> None:
    cfg = config.load(PretrainConfig, HERE / f"{TRAINED[0]}.yaml", ["out=unused"])
    text = (HERE / "compare.yaml").read_text()
    start = next(line for line in text.splitlines() if "its random start" in line)
    assert cfg.seed == 0
    assert f"name: {cfg.model.name}, weights: random, image_size: {cfg.model.image_size}" in start
