"""Comparisons of small pictures, and how their tests read what they leave."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_up_photos import COLOURS, photo

from ssl_retrieval import config
from ssl_retrieval.errors import UserError
from ssl_retrieval.evaluate import EvaluateConfig
from ssl_retrieval.grid import CompareConfig, run_grid
from ssl_retrieval.report.files import read_report
from ssl_retrieval.types import Report

HISTOGRAM = {"name": "color_histogram", "bins": 4}
TINY_PIXELS = {"name": "pixels", "size": 4}


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``val/<class>`` with three pictures and ``train/<class>`` with six; read only."""
    root = tmp_path_factory.mktemp("split") / "toys"
    for number, (name, colour) in enumerate(COLOURS.items()):
        for i in range(9):
            folder = root / ("val" if i < 3 else "train") / name
            folder.mkdir(parents=True, exist_ok=True)
            photo(colour, seed=500 + 100 * number + i).save(folder / f"{i}.png")
    return root


def grid(out: Path, root: Path, **keys: Any) -> CompareConfig:
    """Make the config that a yaml with these keys gives."""
    split_keys = {"queries": "val", "gallery": "train"} if (root / "val").is_dir() else {}
    tree: dict[str, Any] = {
        "out": str(out),
        "data": {"name": "folder", "root": str(root), **split_keys},
        "models": {"histogram": HISTOGRAM, "pixels": TINY_PIXELS},
        "num_gallery_queries": 1,
    }
    return config.build(CompareConfig, tree | keys)


def report_of(out: Path, name: str, task: str = "toys") -> Report:
    return read_report(out / "reports" / f"{task}--{name}.json")


def mean_of(report: Report, metric: str = "mAP") -> float:
    return float(np.nanmean(report.per_query[metric]))


def mistake(cfg: CompareConfig) -> str:
    with pytest.raises(UserError) as caught:
        run_grid(cfg)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def markdown_table(out: Path) -> pd.DataFrame:
    lines = [line for line in (out / "table.md").read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return pd.DataFrame(cells[2:], columns=cells[0]).set_index("representation")


def below_table(out: Path) -> str:
    return (out / "table.md").read_text().rpartition("|\n")[2]


def evaluation(out: Path, root: Path, **keys: Any) -> EvaluateConfig:
    split_keys = {"queries": "val", "gallery": "train"} if (root / "val").is_dir() else {}
    tree = {"out": str(out), "data": {"name": "folder", "root": str(root), **split_keys}, "model": HISTOGRAM}
    return config.build(EvaluateConfig, tree | keys)
