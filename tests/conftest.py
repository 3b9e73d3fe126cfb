"""What several test files share."""

import sys
from pathlib import Path

import pytest
import torch
from command_line import Command, Outcome
from made_up_photos import write_photos

from ssl_retrieval.cli import main

# Two threads wait for each other at every layer of these tiny networks, and for minutes in all when
# something else wants a core.
torch.set_num_threads(1)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process: much faster, same code from ``main`` on."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["ssl-retrieval", *map(str, arguments)])
        code: object = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        assert isinstance(code, int)
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)

    return run


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures in four classes; read only."""
    return write_photos(tmp_path_factory.mktemp("made-up") / "photos", per_class=10)
