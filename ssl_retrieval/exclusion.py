"""Images that are left out of a task by a written list, and how its numbers say so."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pandas as pd

from ssl_retrieval.atomic import atomic_path
from ssl_retrieval.console import say
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import Task, digest_of

COLUMNS = ["task", "role", "id"]
ROLES = ("query", "gallery")


def write_list(rows: Iterable[tuple[str, str, str]], file: Path) -> None:
    """Write a list for `apply`.

    Args:
        rows: Name of the task, ``query`` or ``gallery``, and the image's id.
        file: A CSV file, columns ``task``, ``role``, ``id``.
    """
    with atomic_path(file) as partial:
        pd.DataFrame(list(rows), columns=COLUMNS).to_csv(partial, index=False)


def read_list(file: Path) -> pd.DataFrame:
    """Read a list: text columns ``task``, ``role`` and ``id``.

    Raises:
        UserError: The file is missing or is no such list.
    """
    if not file.is_file():
        raise UserError(f"protocol.exclude={str(file)!r}: no such file; `ssl-retrieval leakage` writes one")
    try:
        # A file called "NA" is no missing value.
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"protocol.exclude={str(file)!r}: no CSV file: {' '.join(str(error).split())}"
        ) from error
    if list(table.columns) != COLUMNS:
        raise UserError(
            f"protocol.exclude={str(file)!r}: its columns are {', '.join(map(str, table.columns))}; "
            f"{', '.join(COLUMNS)} are needed"
        )
    wrong = table.loc[~table["role"].isin(ROLES), "role"]
    if len(wrong):
        raise UserError(
            f"protocol.exclude={str(file)!r}: role {wrong.iloc[0]!r}: use one of {', '.join(ROLES)}"
        )
    return table


def apply(task: Task, file: Path) -> Task:
    """Leave the listed images out of a task.

    The protocol names what was left out, so that the numbers never pass for those of the whole task. A task
    that the list does not name stays as it is.

    Args:
        task: The whole task.
        file: The list.

    Raises:
        UserError: The list is wrong, names images that the task does not have, or leaves nothing.
    """
    listed = read_list(file)
    mine = listed[listed["task"] == task.name]
    if mine.empty:
        say(f"{file} lists no image of task {task.name!r}: nothing is left out there")
        return task
    gone = {role: set(mine.loc[mine["role"] == role, "id"]) for role in ROLES}
    known = {"query": set(task.queries.paths), "gallery": set(task.gallery.paths)}
    for role in ROLES:
        strange = gone[role] - known[role]
        if strange:
            raise UserError(
                f"protocol.exclude={str(file)!r}: {min(strange)!r} is no {role} of task {task.name!r}: "
                "make the list anew, with this data.root"
            )
    counts = f"{len(gone['query'])} queries and {len(gone['gallery'])} gallery images"
    if any(gone[role] >= known[role] for role in ROLES):
        raise UserError(
            f"protocol.exclude={str(file)!r} leaves out {counts} of task {task.name!r}, so nothing is left: "
            "use stricter thresholds for what counts as a copy"
        )
    kept = task.restrict(known["query"] - gone["query"], known["gallery"] - gone["gallery"])
    names = digest_of([sorted(gone[role]) for role in ROLES])
    return replace(
        kept,
        protocol=replace(kept.protocol, excluded=f"{counts} ({names})"),
        description=f"{task.description} {counts} are left out by a list.".strip(),
    )
