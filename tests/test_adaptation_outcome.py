"""The file of a verdict, and the commands that it gives."""

import math
import shlex
from pathlib import Path
from typing import Any

import pytest

from ssl_retrieval.adaptation import outcome
from ssl_retrieval.adaptation.clock import Clock
from ssl_retrieval.adaptation.outcome import Outcome, Tried
from ssl_retrieval.adaptation.plan import Setting
from ssl_retrieval.adaptation.trial import Trial
from ssl_retrieval.errors import UserError


def make(folder: Path, **changes: Any) -> Outcome:
    trial = Trial("one", Setting(), folder / "one", steps=9, train_s=3.0, total_s=4.5)
    given = {
        "folder": str(folder),
        "photos": "/photos/it's mine",
        "goal": "similar",
        "chosen": None,
        "reason": "keep the start: nothing was better",
        "start": "resnet18",
        "weights": "pretrained",
        "tried": (Tried.of(trial, math.nan, {"rank": math.nan, "agreement": 0.25}),),
        "notes": ("12 image files.",),
        "skipped": (("a.jpg", "empty"),),
        "is_embedded": False,
        "image_size": 64,
        "seed": 0,
        "minutes": 1.0,
        "seconds": 59.0,
        "versions": {"torch": "2"},
    }
    return Outcome(**(given | changes))


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert outcome.read(tmp_path) is None
    made = make(tmp_path)
    made.write()
    assert outcome.read(tmp_path) == made


def test_what_is_no_number_is_none(tmp_path: Path) -> None:
    (tried,) = make(tmp_path).tried
    assert tried.score is None
    assert tried.signals == {"rank": None, "agreement": 0.25}
    assert (tried.steps, tried.steps_meant) == (9, 54)
    assert math.isnan(make(tmp_path).table()["score"][0])


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "verdict.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        outcome.read(tmp_path)


def test_commands_survive_spaces_and_quotes(tmp_path: Path) -> None:
    made = make(tmp_path / "my photos (adapted)")
    words = shlex.split(made.search_command)
    assert words[words.index("--embeddings") + 1] == str(made.embeddings)
    assert "data.root=/photos/it's mine" in shlex.split(made.embed_command)


def test_headlines(tmp_path: Path) -> None:
    assert make(tmp_path).headline == "Keep the start"
    assert make(tmp_path, chosen="one").headline == "Use the adapted network"


def test_a_clock_goes_on_where_an_earlier_process_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    clock = Clock(tmp_path / "clock.json", 60, begun=95.0)
    assert (clock.spent_s, clock.left_s) == (5, 55)
    now[0] = 110.0
    clock.note()
    now[0] = 500.0
    later = Clock(tmp_path / "clock.json", 60, begun=500.0)
    assert later.left_s == 45
