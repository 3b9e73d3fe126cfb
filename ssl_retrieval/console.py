"""What people read while a command runs; on stderr, so that stdout stays for results."""

import importlib.util
import os

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

# Of several processes (torchrun sets RANK) the first speaks for all; errors are printed by each.
_IS_FIRST = os.environ.get("RANK", "0") == "0"
# Without them a bar in a notebook is a warning for every change.
_HAS_WIDGETS = importlib.util.find_spec("ipywidgets") is not None

console = Console(stderr=True, highlight=False, emoji=False)


def say(text: str) -> None:
    """Print one line, without interpreting square brackets as markup."""
    if _IS_FIRST:
        print_line(text)


def print_line(text: str) -> None:
    """Do as `say`, in every process of a distributed run."""
    console.print(" ".join(text.splitlines()), markup=False, soft_wrap=True)


def progress_bar(*extra: ProgressColumn) -> Progress:
    """Make a progress bar: what, how far, ``extra`` columns, time left; silent unless someone watches."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        *extra,
        TimeRemainingColumn(),
        console=console,
        disable=not (_IS_FIRST and (console.is_terminal or (console.is_jupyter and _HAS_WIDGETS))),
    )
