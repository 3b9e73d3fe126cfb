"""Packed files hold what decoding gives, whoever decodes, whatever comes in between."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import ONE_THREAD, Command
from PIL import Image, ImageOps

from ssl_retrieval import packing
from ssl_retrieval.atomic import atomic_path
from ssl_retrieval.errors import UserError
from ssl_retrieval.images import load_image
from ssl_retrieval.locking import hold
from ssl_retrieval.packed import open_pack
from ssl_retrieval.packing import pack
from ssl_retrieval.types import ImageSet

CORNERS = np.zeros((16, 24, 3), np.uint8)
CORNERS[:8, :12] = (200, 30, 40)
CORNERS[:8, 12:] = (20, 180, 60)
CORNERS[8:, :12] = (30, 50, 210)
CORNERS[8:, 12:] = (240, 220, 20)


def write(path: Path, array: np.ndarray = CORNERS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


@pytest.fixture
def six_images(tmp_path: Path) -> ImageSet:
    """Four good ones of different shapes, an empty and a missing one."""
    root = tmp_path / "six"
    write(root / "0.png")
    write(root / "2.png", np.full((1, 1, 3), 77, np.uint8))
    Image.new("RGB", (20000, 20), (9, 8, 7)).save(root / "3.png")
    (root / "1.png").touch()
    write(root / "5.png", np.full((40, 30, 3), 5, np.uint8))
    return ImageSet(root, tuple(f"{i}.png" for i in range(6)))


def test_pack_keeps_the_readable_in_order(six_images: ImageSet, tmp_path: Path) -> None:
    packed = pack(six_images, 8, tmp_path / "packed.npy", "skip")
    assert packed.paths == ("0.png", "2.png", "3.png", "5.png")
    assert packed.skipped == (("1.png", "empty file (0 bytes)"), ("4.png", "file does not exist"))
    assert packed.pixels.shape == (4, 8, 8, 3)
    assert packed.pixels.dtype == np.uint8
    assert isinstance(packed.pixels, np.memmap)
    assert (packed.pixels[1] == 77).all()
    assert (packed.pixels[2] == np.array([9, 8, 7])).all()
    # 24 x 16 to 8 x 8: the centre is kept, so that the four colours meet in the middle.
    assert packed.pixels[0, 0, 0].tolist() == pytest.approx(CORNERS[0, 0].tolist(), abs=12)
    assert packed.pixels[0, -1, -1].tolist() == pytest.approx(CORNERS[-1, -1].tolist(), abs=12)
    assert len(np.load(tmp_path / "packed.npy")) == 4


def test_pack_equals_resize_then_crop(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 96, dtype=np.uint8)[None, :, None], (64, 96, 3))
    write(tmp_path / "a.png", np.ascontiguousarray(ramp))
    packed = pack(ImageSet(tmp_path, ("a.png",)), 32, tmp_path / "p.npy", "fail")
    by_hand = Image.fromarray(np.ascontiguousarray(ramp)).resize((48, 32), Image.Resampling.BICUBIC)
    expected = np.asarray(by_hand.crop((8, 0, 40, 32))).astype(int)
    assert np.abs(packed.pixels[0].astype(int) - expected)[:, 1:-1].max() <= 1


def test_pack_is_reused_only_while_nothing_changes(
    six_images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "packed.npy"
    decoded: list[Path] = []

    def count(path: Path, at_least: int) -> Image.Image:
        decoded.append(path)
        return load_image(path, at_least)

    monkeypatch.setattr(packing, "load_image", count)
    first = pack(six_images, 8, file, "skip")
    again = pack(six_images, 8, file, "skip")
    assert len(decoded) == 6
    assert again.paths == first.paths
    assert again.skipped == first.skipped
    assert (again.pixels == first.pixels).all()
    write(six_images.root / "1.png")
    assert len(pack(six_images, 8, file, "skip").paths) == 5
    assert pack(six_images, 4, file, "skip").pixels.shape == (5, 4, 4, 3)
    assert len(decoded) == 18


def test_pack_fails_at_the_first_bad_image_when_told_so(six_images: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1\.png': empty file"):
        pack(six_images, 8, tmp_path / "packed.npy", "fail")
    assert not (tmp_path / "packed.npy").exists()
    pack(six_images, 8, tmp_path / "packed.npy", "skip")
    with pytest.raises(UserError, match=r"1\.png': empty file"):
        pack(six_images, 8, tmp_path / "packed.npy", "fail")


def test_pack_refuses_when_nothing_is_readable(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of the 2 images"):
        pack(ImageSet(tmp_path, ("a.png", "b.png")), 8, tmp_path / "packed.npy", "skip")
    assert list(tmp_path.iterdir()) == []


def test_a_pack_is_a_tensor_without_a_copy(six_images: ImageSet, tmp_path: Path) -> None:
    packed = pack(six_images, 8, tmp_path / "packed.npy", "skip")
    tensor = packed.tensor()
    assert tensor.shape == (4, 3, 8, 8)
    assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert tensor.data_ptr() == packed.pixels.__array_interface__["data"][0]
    assert (tensor.permute(0, 2, 3, 1).numpy() == packed.pixels).all()
    assert packed.size == 8


def test_large_jpegs_are_packed_from_a_reduced_decode(tmp_path: Path) -> None:
    shapes = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    shapes.resize((800, 600), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", quality=95)
    packed = pack(ImageSet(tmp_path, ("a.jpg",)), 32, tmp_path / "p.npy", "fail")
    by_hand = load_image(tmp_path / "a.jpg").resize(
        (32, 32), Image.Resampling.BICUBIC, box=(100, 0, 700, 600)
    )
    difference = np.abs(packed.pixels[0].astype(int) - np.asarray(by_hand))
    assert 0 < difference.mean() < 0.5


# Many images, some broken


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred images; five of them, and all of the second group of sixteen, are broken."""
    root = tmp_path_factory.mktemp("many")
    draw = np.random.default_rng(0)
    for i in range(100):
        write(root / f"{i}.png", draw.integers(0, 256, (12, 10, 3), dtype=np.uint8))
        if i in (3, 4, 40, 70, 99) or 16 <= i < 32:
            (root / f"{i}.png").write_bytes(b"broken")
    return root


@pytest.fixture(scope="module")
def whole(many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pack of these that nothing disturbed."""
    file = tmp_path_factory.mktemp("whole") / "p.npy"
    pack(image_set(many), 9, file, "skip")
    return file


def image_set(root: Path, count: int = 100) -> ImageSet:
    return ImageSet(root, tuple(f"{i}.png" for i in range(count)))


def same_bytes(file: Path, other: Path) -> bool:
    suffixes = (".npy", ".json")
    return all(file.with_suffix(s).read_bytes() == other.with_suffix(s).read_bytes() for s in suffixes)


def test_every_row_is_its_image(many: Path, whole: Path) -> None:
    packed = open_pack(whole)
    assert len(packed.paths) == 79
    assert len(packed.skipped) == 21
    for path, row in zip(packed.paths, packed.pixels, strict=True):
        by_hand = ImageOps.fit(load_image(many / path), (9, 9), Image.Resampling.BICUBIC)
        assert (np.asarray(by_hand) == row).all()


def test_processes_write_what_threads_write(
    many: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_THREADS_SUFFICE", 0)
    monkeypatch.setattr(packing, "_WORTH_PROCESSES", 1)
    monkeypatch.setattr(packing, "usable_cores", lambda: 2)
    assert isinstance(packing._executor(100), ProcessPoolExecutor)
    pack(image_set(many), 9, tmp_path / "p.npy", "skip")
    assert same_bytes(tmp_path / "p.npy", whole)


write_squares = packing._write_squares


def die_in_helpers(*arguments: object) -> list[str | None]:
    if multiprocessing.parent_process() is not None:
        os._exit(9)
    return write_squares(*arguments)  # type: ignore[arg-type]


def test_threads_take_over_from_processes_that_die(
    many: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(packing, "_THREADS_SUFFICE", 0)
    monkeypatch.setattr(packing, "_WORTH_PROCESSES", 1)
    monkeypatch.setattr(packing, "usable_cores", lambda: 1)
    monkeypatch.setattr(packing, "_write_squares", die_in_helpers)
    pack(image_set(many), 9, tmp_path / "p.npy", "skip")
    assert same_bytes(tmp_path / "p.npy", whole)
    assert "going on with threads" in capsys.readouterr().err


def test_a_failed_pack_goes_on_once_the_image_is_repaired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "photos"
    for i in range(40):
        write(root / f"{i}.png", np.full((9, 9, 3), i, np.uint8))
    (root / "35.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"35\.png': empty file"):
        pack(image_set(root, 40), 9, tmp_path / "p.npy", "fail")
    write(root / "35.png", np.full((9, 9, 3), 35, np.uint8))
    packed = pack(image_set(root, 40), 9, tmp_path / "p.npy", "fail")
    assert "going on after 32 of 40 images" in capsys.readouterr().err
    assert packed.pixels[:, 4, 4, 0].tolist() == list(range(40))
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "p.npy", "p.json"}


def test_what_was_noted_of_other_images_is_not_taken_up(tmp_path: Path) -> None:
    for name, value in (("a", 1), ("b", 2)):
        for i in range(20):
            write(tmp_path / name / f"{i}.png", np.full((9, 9, 3), value, np.uint8))
        (tmp_path / name / "19.png").write_bytes(b"")
        with pytest.raises(UserError, match="empty file"):
            pack(image_set(tmp_path / name, 20), 9, tmp_path / "p.npy", "fail")
    write(tmp_path / "b" / "19.png", np.full((9, 9, 3), 2, np.uint8))
    assert (pack(image_set(tmp_path / "b", 20), 9, tmp_path / "p.npy", "fail").pixels == 2).all()


def test_killed_before_the_index_is_written(
    many: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_at_index(path: Path) -> AbstractContextManager[Path]:
        if path.suffix == ".json":
            raise KeyboardInterrupt
        return atomic_path(path)

    file = tmp_path / "p.npy"
    with monkeypatch.context() as patch:
        patch.setattr(packing, "atomic_path", stop_at_index)
        with pytest.raises(KeyboardInterrupt):
            pack(image_set(many), 9, file, "skip")
    assert file.exists()
    with pytest.raises(UserError, match="has no index"):
        open_pack(file)
    # What is decoded already is not decoded again.
    monkeypatch.delattr(packing, "_write_squares")
    pack(image_set(many), 9, file, "skip")
    assert same_bytes(file, whole)


# Two processes

SLOWLY = """
import sys, time
from ssl_retrieval import packing
from ssl_retrieval.cli import main
load_image = packing.load_image
def slow(path, at_least):
    time.sleep(0.01)
    return load_image(path, at_least)
packing.load_image, packing._NOTE_EVERY_S, packing._GROUP = slow, 0.0, 4
sys.argv[0] = "ssl-retrieval"
main()
"""


def start_slowly(many: Path, file: Path) -> subprocess.Popen[str]:
    """Start to pack in a process of its own, and wait until some groups are noted."""
    command = [sys.executable, "-c", SLOWLY, "data", "pack", str(many), str(file), "size=9"]
    process = subprocess.Popen(
        command, env=ONE_THREAD, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    note, deadline = file.with_name(f".{file.name}.progress"), time.monotonic() + 60
    while not note.exists() or json.loads(note.read_text())["done"] < 40:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return process


def test_a_killed_pack_goes_on_and_ends_with_the_same_bytes(
    cli: Command, many: Path, whole: Path, tmp_path: Path
) -> None:
    file = tmp_path / "p.npy"
    process = start_slowly(many, file)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not file.exists()
    with pytest.raises(UserError, match="is not finished: run the same"):
        open_pack(file)
    noted = json.loads((tmp_path / ".p.npy.progress").read_text())["done"]
    assert 40 <= noted < 100
    done = cli("data", "pack", many, file, "size=9")
    assert done.code == 0
    assert f"going on after {noted} of 100 images" in done.err
    assert same_bytes(file, whole)
    assert {path.name for path in tmp_path.iterdir()} == {"p.npy", "p.json"}


def test_a_second_process_is_told_that_the_first_is_packing(
    cli: Command, many: Path, whole: Path, tmp_path: Path
) -> None:
    file = tmp_path / "p.npy"
    process = start_slowly(many, file)
    assert "another process is packing into it" in cli("data", "pack", many, file, "size=9").user_error()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.strip() == str(file)
    assert same_bytes(file, whole)


def test_helpers_end_with_a_killed_parent() -> None:
    script = """
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from ssl_retrieval.workers import start_worker
with ProcessPoolExecutor(2, get_context("spawn"), start_worker) as pool:
    pool.submit(abs, 1).result()
    print("ready", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.kill()
    # The pipe ends once the last process that could write to it has ended.
    process.communicate(timeout=20)


def test_a_lock_keeps_others_out_until_it_is_let_go(tmp_path: Path) -> None:
    file = tmp_path / "new" / ".lock"
    with hold(file, "taken"):
        with pytest.raises(UserError, match="taken"), hold(file, "taken"):
            pass
        file.unlink()
    with hold(file, "taken"):
        assert file.exists()
