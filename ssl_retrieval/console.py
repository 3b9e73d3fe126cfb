"""What people read while a command runs; on stderr, so that stdout stays for results."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True, highlight=False, emoji=False)


def say(text: str) -> None:
    """Print one line, without interpreting square brackets as markup."""
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
        disable=not (console.is_terminal or console.is_jupyter),
    )
