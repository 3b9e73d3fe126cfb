"""Every yaml of ``configs/compare`` and ``configs/evaluate`` loads, and names the command that runs it."""

import re
from pathlib import Path
from typing import Any

import pytest

from ssl_retrieval import config
from ssl_retrieval.evaluate import EvaluateConfig
from ssl_retrieval.grid import CompareConfig

FOLDER = Path(__file__).parent.parent / "configs"
SCHEMAS: dict[str, Any] = {"compare": CompareConfig, "evaluate": EvaluateConfig}
FILES = [file for command in SCHEMAS for file in sorted((FOLDER / command).glob("*.yaml"))]


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_the_command_in_a_config_runs_that_config(file: Path) -> None:
    command = file.parent.name
    text = file.read_text("utf-8").replace(" \\\n#", "")
    found = re.search(rf"^# ssl-retrieval {command} configs/{command}/{file.name} (.*)$", text, re.MULTILINE)
    assert found
    overrides = found[1].split()
    assert {"data.root", "out"} <= {override.partition("=")[0] for override in overrides}
    loaded: Any = config.load(SCHEMAS[command], file, overrides)
    assert loaded.out.startswith("runs/")
