"""``ssl-retrieval adapt``: what it leaves, when it says no, and that it can be killed."""

import dataclasses
import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import REPOSITORY, Command
from made_up_photos import write_flat_photos, write_photos
from safetensors.torch import load_file
from timm.data.config import resolve_model_data_config

from ssl_retrieval import backbones, checkpoint, train
from ssl_retrieval.adaptation import adapt as adapting
from ssl_retrieval.adaptation import outcome, plan, probe, trial
from ssl_retrieval.adaptation.adapt import adapt
from ssl_retrieval.adaptation.outcome import Outcome
from ssl_retrieval.adaptation.plan import Pace
from ssl_retrieval.adaptation.rule import Comparison, Verdict
from ssl_retrieval.network_input import InputSpec

SIZE = 32


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="module", autouse=True)
def short_plans() -> Iterator[None]:
    """Trainings of two or three steps, and few alterations, on a machine whose speed is known."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "STEPS", (2, 3, 6))
        patch.setattr(plan, "FIRST_STEPS", 2)
        patch.setattr(plan, "GOOD_STEPS", 2)
        patch.setattr(plan, "TRIALS", dict.fromkeys(plan.TRIALS, ((False, 0.0), (True, 3.0))))
        patch.setattr(plan, "LEAST_PHOTOS", 40)
        patch.setattr(adapting, "LEAST_PHOTOS", 40)
        few = {name: dict(list(those.items())[:1]) for name, those in probe.FAMILIES.items()}
        patch.setattr(probe, "FAMILIES", few)
        patch.setattr(trial, "measure_pace", lambda *_: Pace(1.0, 0.01, 1.0))
        yield


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint to begin with."""
    file = tmp_path_factory.mktemp("start") / "start.safetensors"
    spec = InputSpec(SIZE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    card = checkpoint.Card("test_resnet", "standard", spec.to_dict())
    checkpoint.save(backbones.make("test_resnet", seed=3), card, file)
    return file


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty-eight photos, a broken one and a copy."""
    root = write_photos(tmp_path_factory.mktemp("album") / "photos", per_class=12)
    (root / "broken.jpg").write_bytes(b"nothing")
    shutil.copy(root / "bear" / "3.png", root / "copy.png")
    return root


def go(photos: Path, out: Path, start: Path, **changes: Any) -> Outcome:
    given: dict[str, Any] = {"minutes": 60, "start": str(start), "image_size": SIZE}
    return adapt(photos, out, **(given | changes))


def use_the_longest(comparison: Comparison, goal: str) -> Verdict:
    """A rule that says yes to what came last."""
    scores = {name: 0.1 * place for place, name in enumerate(comparison.found)}
    return Verdict(list(comparison.found)[-1], "use it: it came last", scores)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, album: Path, start: Path) -> Outcome:
    """An adaptation whose rule said yes; read only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Comparison, "verdict", use_the_longest)
        return go(album, tmp_path_factory.mktemp("adapt") / "out", start)


def test_what_is_chosen_is_a_trained_network(finished: Outcome, start: Path) -> None:
    names = [one.name for one in finished.tried]
    assert names == [
        "simclr, no colour changes, free",
        "simclr, colour changes, anchor 3",
        "simclr, colour changes, anchor 3, more layers",
        "simclr, colour changes, anchor 3, more layers, longer",
    ]
    assert finished.chosen == names[-1]
    assert [one.steps for one in finished.tried] == [2, 2, 2, 6]
    card = checkpoint.read_card(finished.model)
    assert (card.step, card.images, card.method) == (6, 48, "simclr")
    assert card.extra["adapt"]["chosen"] == names[-1]
    before, after = load_file(start), load_file(finished.model)
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_timm_loads_it(finished: Outcome) -> None:
    values: dict[str, Any] = {}
    exec(finished.code, values)
    model, _, spec = checkpoint.load(finished.model)
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(values["model"](images), model(images))
    config = resolve_model_data_config(values["model"])
    assert (tuple(config["mean"]), config["crop_pct"]) == (spec.mean, 1.0)


def test_the_photos_can_be_searched_at_once(finished: Outcome, album: Path, cli: Command) -> None:
    command = shlex.split(finished.search_command.replace("PICTURE.jpg", str(album / "door" / "5.png")))
    done = cli(*command[1:])
    assert done.code == 0, done.err
    assert done.out.splitlines()[0].endswith(str(album / "door" / "5.png"))
    assert len(np.load(finished.embeddings / "vectors.npy")) == 49, "copies are found too"


def test_the_page_says_it_in_words(finished: Outcome) -> None:
    page = finished.page.read_text("utf-8")
    for text in (
        "<h1>Use the adapted network</h1>",
        "It came last.",
        "What was tried",
        "colour changes, anchor 3, more layers, longer",
        "broken.jpg</code>: not an image",
        "copies or nearly so",
        "Before and after",
        "Drawn at random",
        "data:image/jpeg;base64,",
        "local-dir:",
    ):
        assert text in page, text
    assert "http" not in page.replace("http://www.w3.org", "")


def test_the_verdict_is_read_back(finished: Outcome) -> None:
    stored = json.loads((Path(finished.folder) / "verdict.json").read_text("utf-8"))
    assert stored["chosen"] == finished.chosen
    assert stored["tried"][0]["setting"]["anchor"] == 0
    assert set(stored["tried"][0]["signals"]) >= {"agreement", "rank"}
    assert stored["skipped"] == [["broken.jpg", "not an image"]]
    assert outcome.read(Path(finished.folder)) == finished
    table = finished.table()
    assert table["used"].tolist() == [False, False, False, True]
    assert not (Path(finished.folder) / "work").exists()


def test_the_same_call_again_does_nothing(
    finished: Outcome, album: Path, start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "run", None)
    before = finished.model.stat().st_mtime_ns
    assert go(album, Path(finished.folder), start) == finished
    assert finished.model.stat().st_mtime_ns == before


def test_other_values_or_photos_need_another_folder(
    finished: Outcome, album: Path, photos: Path, start: Path
) -> None:
    with pytest.raises(ValueError, match=r"seed=0, now it is 1: use another out"):
        go(album, Path(finished.folder), start, seed=1)
    with pytest.raises(ValueError, match="photos="):
        go(photos, Path(finished.folder), start)


def test_killed_it_goes_on_to_the_same_network(
    finished: Outcome, album: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []
    run = trial.run

    def count(name: str, *arguments: Any) -> trial.Trial:
        begun.append(name)
        if len(begun) == 2:
            raise KilledError
        return run(name, *arguments)

    trained = []
    pretrain = train.pretrain

    def note(cfg: Any, deadline: float | None = None) -> Path:
        trained.append(cfg.out)
        return pretrain(cfg, deadline)

    monkeypatch.setattr(Comparison, "verdict", use_the_longest)
    monkeypatch.setattr(trial, "run", count)
    monkeypatch.setattr(trial, "pretrain", note)
    with pytest.raises(KilledError):
        go(album, tmp_path / "out", start)
    assert not (tmp_path / "out" / "verdict.json").exists()
    made = go(album, tmp_path / "out", start)
    assert len(trained) == 4, "what was finished is not trained again"
    ours, theirs = load_file(made.model), load_file(finished.model)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    same = ("name", "steps", "score", "signals")
    for one, other in zip(made.tried, finished.tried, strict=True):
        assert [getattr(one, key) for key in same] == [getattr(other, key) for key in same]


def test_a_rule_that_says_no_leaves_the_start(
    album: Path,
    start: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def no(comparison: Comparison, goal: str) -> Verdict:
        return Verdict(None, "keep the start: nothing was better", dict.fromkeys(comparison.found, -0.1))

    monkeypatch.setattr(Comparison, "verdict", no)
    made = go(album, tmp_path / "out", start)
    assert capsys.readouterr().err.count("broken.jpg: not an image") == 2, "for training, and for vectors"
    assert made.chosen is None
    assert len(made.tried) == 2, "what was no gain is not trained longer"
    ours, theirs = load_file(made.model), load_file(start)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    page = made.page.read_text("utf-8")
    assert "<h1>Keep the start</h1>" in page
    assert "Nothing was better." in page
    assert "the best of the networks that were not used" in page


def test_the_goal_decides_what_is_tried_and_how_it_is_judged(
    album: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = []

    def no(comparison: Comparison, goal: str) -> Verdict:
        judged.append(goal)
        return Verdict(None, "keep the start: nothing was better", dict.fromkeys(comparison.found, -0.1))

    monkeypatch.setattr(Comparison, "verdict", no)
    monkeypatch.setattr(plan, "TRIALS", {plan.FOR_COPIES: ((True, 1.0),)})
    made = go(album, tmp_path / "out", start, goal="copies")
    assert judged == ["copies"]
    assert [one.setting["jitter"] for one in made.tried] == [True]
    assert "Training that changes colours is tried first, for altered copies have other ones." in made.notes
    page = made.page.read_text("utf-8")
    assert "the very photo, altered" in page
    assert "by searching altered photos for their originals" in page
    with pytest.raises(ValueError, match="goal='copies', now it is 'similar'"):
        go(album, tmp_path / "out", start)


def test_a_training_that_was_cut_short_is_told(
    album: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trial.run

    def slow(name: str, setting: plan.Setting, folder: Path, judge: trial.Judge, _: float) -> trial.Trial:
        made = run(name, setting, folder, judge, 0.0)
        assert made.steps == 1
        return made

    monkeypatch.setattr(trial, "run", slow)
    monkeypatch.setattr(plan, "TRIALS", dict.fromkeys(plan.TRIALS, ((False, 0.0),)))
    made = go(album, tmp_path / "out", start)
    assert any("after 1 of 2 steps: this machine was slower" in note for note in made.notes)
    assert "slower than at the beginning" in made.page.read_text("utf-8")


def test_no_time_for_anything(
    album: Path, start: Path, tmp_path: Path, cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = go(album, tmp_path / "out", start, minutes=0.001)
    assert made.chosen is None
    assert "too short to try anything" in made.reason
    assert not made.is_embedded
    assert not made.embeddings.exists()
    assert "Embed them, then search" in made.page.read_text("utf-8")
    monkeypatch.chdir(REPOSITORY)
    assert cli(*shlex.split(made.embed_command)[1:]).code == 0
    assert (made.embeddings / "vectors.npy").is_file()


@pytest.mark.parametrize("count", [1, 12])
def test_few_photos_keep_the_start(start: Path, tmp_path: Path, cli: Command, count: int) -> None:
    root = write_flat_photos(tmp_path / "photos", count)
    done = cli("adapt", root, "--out", tmp_path / "out", "--start", start, "--image-size", SIZE)
    assert done.code == 0, done.err
    few = "1 photo is too few" if count == 1 else f"{count} different photos are too few"
    assert f"Keep the start: {few}" in done.out
    assert f"page: {tmp_path / 'out' / 'report.html'}" in done.out
    found = cli(*shlex.split(done.out.splitlines()[-1].replace("PICTURE.jpg", str(root / "0.png")))[1:])
    assert found.code == 0, found.err
    assert len(found.out.splitlines()) == min(10, count)


def test_copies_of_one_photo_are_one_photo(start: Path, tmp_path: Path) -> None:
    root = write_flat_photos(tmp_path / "photos", 1)
    for i in range(1, 60):
        shutil.copy(root / "0.png", root / f"{i}.png")
    made = go(root, tmp_path / "out", start)
    assert made.chosen is None
    assert "1 photo is too few" in made.reason
    assert any("59 are copies" in note for note in made.notes)
    assert made.tried == ()


def test_only_broken_images(start: Path, tmp_path: Path, cli: Command) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(5):
        (tmp_path / "photos" / f"{i}.jpg").write_bytes(bytes([i]) * 40)
    done = cli("adapt", tmp_path / "photos", "--out", tmp_path / "out", "--start", start)
    assert done.code == 2
    assert "none of the 5 images" in done.err
    assert "not an image" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("what", ["missing", "empty", "file"])
def test_no_folder_of_photos(start: Path, tmp_path: Path, cli: Command, what: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("a")
    error = cli("adapt", tmp_path / what, "--out", tmp_path / "out", "--start", start).user_error()
    assert what in error
    assert not (tmp_path / "out").exists(), "a mistake leaves nothing behind"


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--minutes", 0], "--minutes 0"),
        (["--goal", "kinds"], "'kinds': use one of similar, copies"),
        (["--image-size", 8], "--image-size 8"),
        (["--start", "nonet"], "nonet"),
        (["--start", "resnet18", "--weights", "random"], "random"),
    ],
)
def test_wrong_values(photos: Path, tmp_path: Path, cli: Command, options: list[Any], names: str) -> None:
    assert names in cli("adapt", photos, "--out", tmp_path / "out", *options).user_error()


def test_a_folder_of_others_is_left_alone(photos: Path, start: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        go(photos, tmp_path, start)


def test_the_settings_of_a_training_are_kept_with_it(finished: Outcome) -> None:
    settings = [plan.Setting(**one.setting) for one in finished.tried]
    assert settings[1] == dataclasses.replace(settings[3], steps=2, frozen=plan.FROZEN)
    assert settings[2] == dataclasses.replace(settings[3], steps=2)
