"""The time that a job may take, over all the processes that it needed."""

import time
from pathlib import Path

from ssl_retrieval.atomic import atomic_path
from ssl_retrieval.run_folder import read_json


class Clock:
    """Counts down from a budget; what an earlier process spent until its last note counts too."""

    def __init__(self, file: Path, budget_s: float, begun: float) -> None:
        """Go on from what the file says, or begin.

        Args:
            file: Where the time that was spent is noted.
            budget_s: Seconds in all.
            begun: Reading of ``time.monotonic`` from which this process counts.
        """
        self.file, self.budget_s = file, budget_s
        self.before = float((read_json(file) or {"spent_s": 0})["spent_s"])
        self.begun = begun

    @property
    def spent_s(self) -> float:
        """Seconds until now."""
        return self.before + time.monotonic() - self.begun

    @property
    def left_s(self) -> float:
        """Seconds that are left; below 0 when it is late."""
        return self.budget_s - self.spent_s

    def note(self) -> None:
        """Write down what was spent."""
        with atomic_path(self.file) as partial:
            partial.write_text(f'{{"spent_s": {self.spent_s:.1f}}}')
