"""The command line as a function: in this process, or in one of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    def user_error(self) -> str:
        """Insist on the contract for users' mistakes, and give the line without its ``error:``."""
        assert self.code == 2, (self.code, self.err)
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        assert "Traceback" not in self.out + self.err
        return lines[0].removeprefix("error: ")


Command = Callable[..., Outcome]


def run_in_own_process(*arguments: object, cwd: Path | None = None) -> Outcome:
    """Run ``python -m ssl_retrieval`` and wait for its end."""
    command = [sys.executable, "-m", "ssl_retrieval", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=ONE_THREAD, timeout=300, check=False
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
