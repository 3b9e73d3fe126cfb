"""What a finished cell leaves: a folder that is whole or absent."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssl_retrieval.adaptation.cells import Cell
from ssl_retrieval.adaptation.probe import Probe
from ssl_retrieval.adaptation.scoring import METRICS, TaskScores
from ssl_retrieval.atomic import atomic_folder
from ssl_retrieval.errors import UserError

CELL = "cell.json"
SCORES = "scores.npz"
PROBE = "probe"
_SCHEMA = 1


@dataclass(frozen=True, eq=False)
class FinishedCell:
    """A cell with its scores.

    Attributes:
        cell: Which.
        scores: Task -> scores.
        info: ``setting``, ``key``, ``train_s``, ``score_s``, ``probe_s``.
        folder: Where it is kept.
    """

    cell: Cell
    scores: dict[str, TaskScores]
    info: dict[str, Any]
    folder: Path

    def probe(self) -> Probe:
        """Read the vectors of the set's photos, plain and altered."""
        return Probe.load(self.folder / PROBE)


def write(
    folder: Path, cell: Cell, scores: dict[str, TaskScores], probe: Probe, info: dict[str, Any]
) -> None:
    """Write a cell's folder in one step; one that is there stays.

    Args:
        folder: Where.
        cell: Which.
        scores: Task -> scores.
        probe: Vectors of the set's photos.
        info: Plain values, see `FinishedCell`.
    """
    arrays: dict[str, Any] = {}
    for task, found in scores.items():
        arrays[f"{task}/groups"] = found.groups
        for metric, values in found.per_query.items():
            arrays[f"{task}/{metric}"] = values
    levels = {task: found.level for task, found in scores.items()}
    with atomic_folder(folder) as partial:
        np.savez_compressed(partial / SCORES, **arrays)
        probe.save(partial / PROBE)
        text = json.dumps({"schema": _SCHEMA, "cell": cell.to_dict(), "levels": levels} | info, indent=1)
        (partial / CELL).write_text(text, "utf-8")


def read(folder: Path) -> FinishedCell:
    """Read what `write` wrote.

    Raises:
        UserError: A file is missing, damaged, or of another version.
    """
    try:
        info = json.loads((folder / CELL).read_text("utf-8"))
        if info.pop("schema") != _SCHEMA:
            raise UserError(f"{folder}: written by another version: use another out")
        levels = info.pop("levels")
        with np.load(folder / SCORES, allow_pickle=False) as stored:
            scores = {
                task: TaskScores(
                    level,
                    {metric: stored[f"{task}/{metric}"] for metric in METRICS},
                    stored[f"{task}/groups"],
                )
                for task, level in levels.items()
            }
        return FinishedCell(Cell(**info.pop("cell")), scores, info, folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: damaged ({error}): remove the folder and run the study again") from error


def read_all(study: Path) -> list[FinishedCell]:
    """Read all finished cells of a study, by name.

    Args:
        study: The study's folder.

    Raises:
        UserError: There is none, one is damaged, or there are two of the same name: the data or the
            training changed in between.
    """
    folders = [file.parent for file in sorted((study / "cells").glob(f"*/{CELL}"))]
    if not folders:
        raise UserError(f"no finished cell in {str(study)!r}: give the out of an `ssl-retrieval study`")
    cells = [read(folder) for folder in folders]
    seen: dict[Cell, Path] = {}
    for found in cells:
        other = seen.setdefault(found.cell, found.folder)
        if other != found.folder:
            raise UserError(
                f"{other} and {found.folder.name} are the same cell of different data or settings: remove "
                "those of one, or use an out for each"
            )
    return cells
