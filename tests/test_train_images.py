"""Runs on packed and on streamed photos: the same way through, and a choice that holds."""

import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from command_line import ONE_THREAD, Command
from PIL import Image
from safetensors.torch import load_file
from short_runs import STEPS, KilledError, go, go_until, rows, same, user_error, write_job, write_many_sizes
from torch import Tensor

from ssl_retrieval import checkpoint, config, image_source, train, train_images
from ssl_retrieval.images import list_images
from ssl_retrieval.packed import open_pack
from ssl_retrieval.packing import PackConfig, pack_folder
from ssl_retrieval.run_log import RunLog
from ssl_retrieval.streaming import Stream


@pytest.fixture(scope="module")
def many_sizes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen photos; read only."""
    return write_many_sizes(tmp_path_factory.mktemp("many-sizes") / "photos")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, many_sizes: Path) -> Path:
    return write_job(tmp_path_factory.mktemp("job"), many_sizes)


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory, job: Path) -> dict[str, Tensor]:
    """The weights after a streamed run that nothing has interrupted."""
    return go(job, tmp_path_factory.mktemp("streamed") / "run", "source=stream")


def stored_source(out: Path) -> str:
    return str(json.loads((out / "source.json").read_text())["source"])


# Streamed


def test_workers_and_a_monitor_change_nothing_in_a_streamed_run(
    job: Path, streamed: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    watched = ["monitor.every_epochs=1", "monitor.max_images=6"]
    assert same(go(job, out, "source=stream", "num_workers=2", *watched), streamed)
    said = capsys.readouterr().err
    assert "training images: streamed from the files (as asked for)" in said
    assert not (out / "images.npy").exists()
    # Six photos, evenly spread, are squares for the monitor, and find themselves.
    packed = open_pack(out / "monitor_images.npy")
    assert packed.pixels.shape == (6, 32, 32, 3)
    assert packed.paths[0] == "0.jpg"
    assert packed.paths[-1] == "15.jpg"
    seen = rows(out / "monitor.jsonl")
    assert [row["step"] for row in seen] == [0, 4, 8]
    assert all(0 < row["self_mAP"] <= 1 for row in seen)
    assert checkpoint.read_card(out / "checkpoint.safetensors").images == 16


def test_a_streamed_run_starts_its_workers_once_and_packs_nothing_that_nobody_watches(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    batches = Stream.batches

    def counted(self: Stream, *arguments: Any) -> Any:
        begun.append(self.num_workers)
        return batches(self, *arguments)

    monkeypatch.setattr(Stream, "batches", counted)
    go(job, tmp_path / "run", "source=stream", "epochs=1")
    assert begun == [0]
    assert not (tmp_path / "run" / "monitor_images.npy").exists()
    # Which number format and layout are fastest is tried out on photos too.
    go(job, tmp_path / "tried", "source=stream", "epochs=1", "memory_format=auto")
    assert len(begun) == 3


def test_parts_of_a_batch_are_streamed_one_after_the_other(job: Path, tmp_path: Path) -> None:
    both = [go(job, tmp_path / f"{n}", "source=stream", "accumulate=2", f"num_workers={n}") for n in (0, 2)]
    assert same(*both)
    assert rows(tmp_path / "0" / "metrics.jsonl")[-1]["step"] == STEPS


def test_broken_photos_are_left_out_of_a_stream_and_named(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_many_sizes(tmp_path / "photos", 18)
    (root / "1.png").write_bytes(b"no picture")
    whole = (root / "4.png").read_bytes()
    (root / "4.png").write_bytes(whole[: len(whole) // 2])
    settings = [f"data.root={root}", "source=stream", "epochs=1", "monitor.every_epochs=1"]
    go(job, tmp_path / "run", *settings)
    said = capsys.readouterr().err
    assert "1 unreadable image left out of" in said
    assert "1.png: not an image" in said
    assert said.count("4.png: truncated") == 1
    assert "the next image takes its place" in said
    # The header of the second one is whole, so that it still counts.
    assert checkpoint.read_card(tmp_path / "run" / "checkpoint.safetensors").images == 17
    assert "1.png': not an image" in user_error(job, tmp_path / "fail", *settings, "data.on_error=fail")
    (root / "1.png").unlink()
    assert "4.png': truncated" in user_error(job, tmp_path / "fail", *settings, "data.on_error=fail")
    assert not (tmp_path / "fail" / "checkpoint.safetensors").exists()
    text = user_error(job, tmp_path / "large", *settings, "batch_size=18")
    assert "batch_size=18 is larger than the 17 readable training images" in text


def test_a_stopped_stream_goes_on_to_the_same_weights_with_other_workers(
    job: Path, streamed: dict[str, Tensor], tmp_path: Path
) -> None:
    for step, workers in ((2, (0, 2)), (5, (2, 0))):
        out = tmp_path / f"{step}"
        go_until(step, job, out, "source=stream", f"num_workers={workers[0]}")
        assert len(rows(out / "metrics.jsonl")) == step + 1
        assert same(go(job, out, "source=stream", f"num_workers={workers[1]}"), streamed)


def test_an_error_in_a_streamed_run_ends_its_workers(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def die(self: RunLog, *arguments: Any) -> None:
        seen.append(len(active_children()))
        raise KilledError

    monkeypatch.setattr(RunLog, "write", die)
    # While the error is held, as a notebook does, so is everything that its frames hold.
    with pytest.raises(KilledError) as held:
        go(job, tmp_path / "run", "source=stream", "num_workers=2")
    assert seen == [2]
    assert held.value is not None
    assert not active_children()


def test_other_photos_are_not_streamed_under_the_old_name(job: Path, tmp_path: Path) -> None:
    root = write_many_sizes(tmp_path / "photos")
    settings = [f"data.root={root}", "source=stream"]
    go_until(2, job, tmp_path / "run", *settings)
    (root / "1.png").write_bytes((root / "2.png").read_bytes())
    assert "other images than those found now" in user_error(job, tmp_path / "run", *settings)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_killed_stream_ends_with_the_same_weights(
    job: Path, streamed: dict[str, Tensor], tmp_path: Path, num_workers: int
) -> None:
    out = tmp_path / "run"
    settings = [f"out={out}", "source=stream", f"num_workers={num_workers}", "save_every_s=0"]
    command = [sys.executable, "-m", "ssl_retrieval", "pretrain", str(job), *settings]
    process = subprocess.Popen(command, env=ONE_THREAD, stderr=subprocess.PIPE)
    deadline, log = time.monotonic() + 120, out / "metrics.jsonl"
    while not log.is_file() or len(log.read_text().splitlines()) < 3:
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    # It alone: its workers must notice, and let go of the run's folder.
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 3 <= len(log.read_text().splitlines()) < STEPS
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "going on at step" in done.stderr
    assert same(load_file(out / "checkpoint.safetensors"), streamed)


# The choice


def test_the_choice_of_the_start_holds_on_resume(
    job: Path, streamed: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr(image_source, "free_bytes", lambda folder: 1000)
    go_until(3, job, out)
    assert stored_source(out) == "stream"
    monkeypatch.setattr(image_source, "free_bytes", lambda folder: 10**12)
    assert same(go(job, out), streamed)
    assert stored_source(out) == "stream"
    # A run that begins now chooses anew.
    packed = go(job, tmp_path / "new")
    assert stored_source(tmp_path / "new") == "packed"
    assert not same(packed, streamed)


def test_the_reason_is_said_at_the_start_and_on_resume(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr(image_source, "free_bytes", lambda folder: 1000)
    go_until(2, job, out)
    go(job, out)
    said = capsys.readouterr().err
    reason = "training images: streamed from the files (16 images at 32 px would take"
    assert said.count(reason) == 2
    assert "photos have 36 px for views of 32 px" in said


@pytest.mark.parametrize(("cores", "given", "expected"), [(7, -1, 3), (1, -1, 1), (7, 5, 5), (7, 0, 0)])
def test_on_a_cpu_half_the_cores_decode_and_half_compute(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, given: int, expected: int
) -> None:
    monkeypatch.setattr(train_images, "own_cores", lambda: cores)
    cfg = config.load(train.PretrainConfig, job, [f"out={tmp_path}", "source=stream", f"num_workers={given}"])
    source, _ = train_images.open_images(cfg, tmp_path)
    assert isinstance(source, Stream)
    assert source.num_workers == expected


# Packed beforehand


def test_a_pack_trains_as_its_photos_do_and_nothing_is_decoded(
    cli: Command,
    job: Path,
    many_sizes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pack = tmp_path / "photos.npy"
    assert cli("data", "pack", many_sizes, pack, "size=32").code == 0
    of_photos = go(job, tmp_path / "photos", "source=packed")

    def no_decoding(*arguments: Any, **options: Any) -> None:
        raise AssertionError("an image file was opened")

    monkeypatch.setattr(Image, "open", no_decoding)
    capsys.readouterr()
    of_pack = go(job, tmp_path / "run", "data.name=packed", f"data.root={pack}", "monitor.every_epochs=1")
    assert "training images: packed (packed beforehand at 32 px)" in capsys.readouterr().err
    assert same(of_pack, of_photos)
    assert not (tmp_path / "run" / "images.npy").exists()
    cards = [checkpoint.read_card(tmp_path / run / "checkpoint.safetensors") for run in ("run", "photos")]
    assert cards[0].data == cards[1].data
    assert cards[0].images == 16


def test_a_run_on_a_pack_goes_on_to_the_same_weights(job: Path, many_sizes: Path, tmp_path: Path) -> None:
    # Larger than the views: crops have pixels to choose from.
    pack = pack_folder(many_sizes, tmp_path / "photos", PackConfig(size=48))
    settings = ["data.name=packed", f"data.root={pack}"]
    go_until(3, job, tmp_path / "run", *settings)
    assert same(go(job, tmp_path / "run", *settings), go(job, tmp_path / "whole", *settings))


def test_a_file_that_is_no_pack_is_named(cli: Command, job: Path, tmp_path: Path) -> None:
    no_pack = tmp_path / "numbers.npy"
    np.save(no_pack, np.zeros((16, 32, 32, 3), np.uint8))
    for root, names in ((tmp_path / "none.npy", "does not exist"), (no_pack, "has no index")):
        text = cli(
            "pretrain", job, f"out={tmp_path / 'run'}", "data.name=packed", f"data.root={root}"
        ).user_error()
        assert str(root) in text
        assert names in text
        assert "ssl-retrieval data pack" in text


def test_a_pack_cannot_be_streamed(job: Path, many_sizes: Path, tmp_path: Path) -> None:
    pack = pack_folder(many_sizes, tmp_path / "photos", PackConfig(size=32))
    text = user_error(job, tmp_path / "run", "data.name=packed", f"data.root={pack}", "source=stream")
    assert "source='stream': data.name=packed holds no photos to stream: use source=auto" in text


# Mistakes


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("source=banana", ["source='banana'", "one of auto, packed, stream"]),
        ("source=steam", ["source='steam'", "did you mean 'stream'?"]),
        ("compile=banana", ["compile='banana'", "one of auto, none, views, all, graphs"]),
        ("compile=view", ["compile='view'", "did you mean 'views'?"]),
        ("num_workers=-3", ["num_workers=-3", "-1", "0 or more"]),
        ("num_workers=two", ["num_workers", "two"]),
    ],
)
def test_a_mistaken_value_is_one_line(
    cli: Command, job: Path, tmp_path: Path, override: str, names: list[str]
) -> None:
    text = cli("pretrain", job, f"out={tmp_path / 'run'}", override).user_error()
    assert all(name in text for name in names), text
    assert not (tmp_path / "run" / "images.npy").exists()


def test_the_photos_of_these_tests_have_many_sizes(many_sizes: Path, job: Path) -> None:
    paths = list_images(many_sizes)
    assert len(paths) == yaml.safe_load(job.read_text())["batch_size"] * STEPS // 2
    assert len({Image.open(many_sizes / path).size for path in paths}) == 8
    assert {Path(path).suffix for path in paths} == {".jpg", ".png"}
