"""What the rule sees of a study's trainings and what they did, as a table.

With it the rule is fitted and judged again without the study, whose probes are large and take hours:
docs/adaptation_evidence.csv.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from ssl_retrieval.adaptation.cells import Cell
from ssl_retrieval.adaptation.rule import Evidence
from ssl_retrieval.adaptation.rule_fit import KnownRun
from ssl_retrieval.atomic import atomic_path
from ssl_retrieval.statistics import PairedDifference

_DIGITS = "%.6g"


def write(runs: Sequence[KnownRun], path: Path) -> None:
    """Write a row per training; columns are the fields of `KnownRun`, those within fields after a dot.

    Args:
        runs: From `rule_fit.known_runs`.
        path: A CSV file, written whole or not at all.
    """
    table = pd.json_normalize([asdict(run) for run in runs])
    # Where there is no evidence, its columns are empty.
    table = table.drop(columns="evidence", errors="ignore")
    with atomic_path(path) as partial:
        table.to_csv(partial, index=False, float_format=_DIGITS)


def read(path: Path) -> list[KnownRun]:
    """Read what `write` wrote; numbers have six digits.

    Args:
        path: The file.
    """
    table = pd.read_csv(path)
    return [_run(_nested(row)) for row in table.to_dict("records")]


def _nested(row: dict[Any, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in row.items():
        *parents, last = str(name).split(".")
        inner = values
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return values


def _run(values: dict[str, Any]) -> KnownRun:
    seen: dict[str, Any] = values.pop("evidence")
    evidence = None
    if not math.isnan(seen["rank"]):
        changes: dict[str, Any] = {
            name: PairedDifference(**value) if isinstance(value, dict) else value
            for name, value in seen.items()
        }
        evidence = Evidence(**changes)
    return KnownRun(cell=Cell(**values.pop("cell")), evidence=evidence, **values)
