"""Embeddings follow the images' content, survive a kill, and tell what they left out."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import ONE_THREAD, Command, run_in_own_process
from made_up_photos import photo, write_flat_photos, write_photos
from PIL import Image

from ssl_retrieval import backbones, config, embedding_files, images, plugins, workers
from ssl_retrieval import embed as embed_module
from ssl_retrieval.embed import EmbedOptions, embed
from ssl_retrieval.errors import UserError
from ssl_retrieval.representation import Representation
from ssl_retrieval.types import EmbeddingSet, ImageSet

CPU = torch.device("cpu")
PIXELS = {"name": "pixels", "size": 4}
NETWORK = {"name": "resnet10t", "weights": "random", "image_size": 32}


def image_set_of(root: Path, **options: Any) -> ImageSet:
    section = {"name": "folder", "root": str(root), **options}
    cfg = config.plugin_config("dataset", section, "data")
    found: ImageSet = plugins.find("dataset", "folder").images(cfg)
    return found


def run(
    root: Path, out: Path, model: dict[str, Any] = PIXELS, size: int | None = None, **options: Any
) -> EmbeddingSet:
    representation = Representation.make("it", config.plugin_config("extractor", model, "model"), CPU)
    choices = EmbedOptions(**{"num_workers": 0, "batch_size": 3} | options)
    return embed(representation, image_set_of(root), out, options=choices, image_size=size)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos", per_class=3, classes=3)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were decoded, in order."""
    files: list[Path] = []

    def load(path: Path) -> Image.Image:
        files.append(path)
        return original(path)

    original = images.load_image
    monkeypatch.setattr(images, "load_image", load)
    return files


def modified(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


def test_vectors_are_what_the_extractor_gives_for_each_image(root: Path, tmp_path: Path) -> None:
    found = run(root, tmp_path / "out")
    extractor = plugins.find("extractor", "pixels").Extractor(config.plugin_config("extractor", PIXELS, "m"))
    assert len(found.ids) == 9
    for path, vector in zip(found.ids, found.vectors, strict=True):
        expected = extractor.preprocess(images.load_image(root / path))
        np.testing.assert_allclose(vector, expected, atol=1e-6)


def test_the_folder_opens_with_numpy_and_pandas(root: Path, tmp_path: Path) -> None:
    found = run(root, tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "vectors.npy",
        "items.parquet",
        "skipped.csv",
        "key.json",
    }
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "vectors.npy"), found.vectors)
    items = pd.read_parquet(tmp_path / "out" / "items.parquet")
    assert items["id"].tolist() == list(found.ids)
    assert items["label"].tolist() == [path.split("/")[0] for path in found.ids]
    key = json.loads((tmp_path / "out" / "key.json").read_text())
    assert (key["key"], key["dim"], key["images_per_s"] > 0) == (found.key, 48, True)


def test_batch_size_and_workers_do_not_change_vectors(root: Path, tmp_path: Path) -> None:
    first = run(root, tmp_path / "a", NETWORK, batch_size=1)
    second = run(root, tmp_path / "b", NETWORK, batch_size=64, num_workers=1)
    assert first.key == second.key
    np.testing.assert_allclose(first.vectors, second.vectors, rtol=1e-4, atol=1e-5)


def test_when_nothing_has_changed_nothing_is_decoded(root: Path, tmp_path: Path, decoded: list[Path]) -> None:
    first = run(root, tmp_path / "out")
    assert len(decoded) == 9
    before = modified(tmp_path / "out")
    second = run(root, tmp_path / "out")
    assert len(decoded) == 9
    assert second.key == first.key
    np.testing.assert_array_equal(second.vectors, first.vectors)
    after = modified(tmp_path / "out")
    assert {name for name in after if after[name] != before[name]} <= {"items.parquet"}


def brighten(root: Path) -> None:
    photo((255, 255, 255), seed=99).save(root / "bear" / "1.png")


def add(root: Path) -> None:
    photo((1, 2, 3), seed=99).save(root / "bear" / "new.png")


def remove(root: Path) -> None:
    (root / "bear" / "1.png").unlink()


def rename(root: Path) -> None:
    (root / "bear" / "1.png").rename(root / "bear" / "7.png")


def swap(root: Path) -> None:
    one, two = root / "bear" / "1.png", root / "cloud" / "1.png"
    contents = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(contents)


def same_size_same_time(root: Path) -> None:
    file = root / "bear" / "bitmap.bmp"
    times = file.stat()
    contents = bytearray(file.read_bytes())
    contents[-600:] = bytes(255 - byte for byte in contents[-600:])
    file.write_bytes(contents)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("change", [brighten, add, remove, rename, swap, same_size_same_time])
def test_changed_images_rebuild(root: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    photo((50, 60, 70), seed=5).save(root / "bear" / "bitmap.bmp")
    before = run(root, tmp_path / "out")
    change(root)
    after = run(root, tmp_path / "out")
    assert after.key != before.key
    fresh = run(root, tmp_path / "fresh")
    assert after.ids == fresh.ids
    np.testing.assert_array_equal(after.vectors, fresh.vectors)
    if after.ids == before.ids:
        assert not np.array_equal(after.vectors, before.vectors)


@pytest.mark.parametrize(
    "change",
    [
        {"pool": "gem"},
        {"image_size": 40},
        {"crop": 0.5},
        {"seed": 1},
        {"stem": "small"},
        {"name": "resnet18"},
    ],
    ids=str,
)
def test_another_network_pooling_size_or_crop_rebuilds(
    root: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    before = run(root, tmp_path / "out", NETWORK)
    after = run(root, tmp_path / "out", NETWORK | change)
    assert after.key != before.key
    assert after.vectors.shape != before.vectors.shape or not np.allclose(after.vectors, before.vectors)


def test_another_image_size_of_the_protocol_rebuilds(root: Path, tmp_path: Path) -> None:
    before = run(root, tmp_path / "out", {"name": "color_histogram"})
    after = run(root, tmp_path / "out", {"name": "color_histogram"}, size=10)
    assert after.key != before.key
    assert not np.allclose(after.vectors, before.vectors)


def test_other_weights_in_the_same_file_rebuild(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    found = []
    for seed in (0, 1):
        torch.save(backbones.make("resnet10t", seed=seed).state_dict(), file)
        found.append(run(root, tmp_path / "out", NETWORK | {"weights": str(file)}))
    assert found[0].key != found[1].key
    assert not np.allclose(found[0].vectors, found[1].vectors)


def test_only_labels_changed_rewrites_only_items(root: Path, tmp_path: Path, decoded: list[Path]) -> None:
    out = tmp_path / "out"
    before = run(root, out)
    stamps, count = modified(out), len(decoded)
    representation = Representation.make("it", config.plugin_config("extractor", PIXELS, "model"), CPU)
    unlabelled = image_set_of(root, labels="none")
    after = embed(representation, unlabelled, out, options=EmbedOptions(num_workers=0))
    assert after.key == before.key
    assert len(decoded) == count
    assert {name for name, stamp in modified(out).items() if stamp != stamps[name]} == {"items.parquet"}
    assert pd.read_parquet(out / "items.parquet")["label"].isna().all()


def test_moved_images_are_not_embedded_again_but_found_where_they_are(
    root: Path, tmp_path: Path, decoded: list[Path]
) -> None:
    run(root, tmp_path / "out")
    moved = root.rename(tmp_path / "elsewhere")
    run(moved, tmp_path / "out")
    assert len(decoded) == 9
    stored = embedding_files.read(tmp_path / "out")
    assert stored.meta["images"]["root"] == str(moved)


def test_the_images_folder_is_stored_as_an_absolute_path(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(Path("photos"), Path("out"))
    assert embedding_files.read(tmp_path / "out").meta["images"]["root"] == str(root)


@pytest.mark.parametrize("damage", ["vectors.npy", "items.parquet", "skipped.csv"])
def test_damaged_files_are_made_again(root: Path, tmp_path: Path, damage: str) -> None:
    before = run(root, tmp_path / "out")
    (tmp_path / "out" / damage).unlink()
    after = run(root, tmp_path / "out")
    np.testing.assert_array_equal(after.vectors, before.vectors)
    assert (tmp_path / "out" / damage).is_file()


def test_a_folder_of_the_user_called_parts_is_left_alone(root: Path, tmp_path: Path) -> None:
    treasure = tmp_path / "out" / "parts" / "holiday.png"
    treasure.parent.mkdir(parents=True)
    treasure.write_bytes(b"dear")
    run(root, tmp_path / "out")
    assert treasure.read_bytes() == b"dear"


class KilledError(Exception):
    """Stands for a kill."""


def interrupt_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    original = images.load_image
    calls = 0

    def load(path: Path) -> Image.Image:
        nonlocal calls
        calls += 1
        if calls > count:
            raise KilledError
        return original(path)

    monkeypatch.setattr(images, "load_image", load)


def test_an_interrupted_run_goes_on_where_it_was(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "bear" / "0.png").write_bytes(b"")
    whole = run(root, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 7)
        with pytest.raises(KilledError):
            run(root, tmp_path / "out", save_every_s=0)
    assert embedding_files.stored_key(tmp_path / "out") is None
    interrupt_after(monkeypatch, 3)  # six of nine are done: three are enough
    resumed = run(root, tmp_path / "out", save_every_s=0)
    assert resumed.ids == whole.ids
    assert resumed.skipped == whole.skipped == (("bear/0.png", "empty file (0 bytes)"),)
    np.testing.assert_array_equal(resumed.vectors, whole.vectors)
    assert modified(tmp_path / "out").keys() == modified(tmp_path / "whole").keys()


def test_rows_of_another_state_of_the_images_are_not_used(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(patch, 7)
        with pytest.raises(KilledError):
            run(root, tmp_path / "out", save_every_s=0)
    photo((255, 255, 255), seed=99).save(root / "apple" / "0.png")
    resumed = run(root, tmp_path / "out")
    np.testing.assert_array_equal(resumed.vectors, run(root, tmp_path / "fresh").vectors)


def test_a_kill_between_the_last_file_and_tidying_up_leaves_nothing_behind(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(embedding_files, "remove_parts", lambda folder: None)
        run(root, tmp_path / "out", save_every_s=0)
    assert (tmp_path / "out" / embedding_files.PARTS).is_dir()
    run(root, tmp_path / "out")
    assert not (tmp_path / "out" / embedding_files.PARTS).exists()


def test_a_run_killed_while_it_wrote_the_result_is_not_taken_for_finished(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = run(root, tmp_path / "out")
    brighten(root)

    def stop(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(embedding_files, "write_items", stop)
        with pytest.raises(KilledError):
            run(root, tmp_path / "out")
    with pytest.raises(UserError, match=r"key\.json is missing"):
        embedding_files.read(tmp_path / "out")
    assert run(root, tmp_path / "out").key != old.key


@pytest.mark.slow
def test_kill_9_and_the_same_command_again(cli: Command, tmp_path: Path) -> None:
    root = write_flat_photos(tmp_path / "photos", 120)
    (root / "7.png").write_bytes(b"no image")
    (tmp_path / "job.yaml").write_text(
        f"out: ???\ndata: {{name: folder, root: {root}}}\nmodel: {{name: resnet10t, weights: random, "
        "image_size: 32}\nembed: {batch_size: 2, num_workers: 0, save_every_s: 0}"
    )
    out = tmp_path / "out"
    command = ("embed", tmp_path / "job.yaml", f"out={out}")
    process = subprocess.Popen(
        [sys.executable, "-m", "ssl_retrieval", *map(str, command)],
        env=ONE_THREAD,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(list((out / embedding_files.PARTS).glob("*.npz"))) < 5:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "key.json").exists()

    resumed = run_in_own_process(*command)
    assert resumed.code == 0
    whole = cli("embed", tmp_path / "job.yaml", f"out={tmp_path / 'whole'}")
    assert whole.code == 0
    ends = [embedding_files.read(folder) for folder in (out, tmp_path / "whole")]
    assert ends[0].ids == ends[1].ids
    assert len(ends[0].ids) == 119
    assert ends[0].key == ends[1].key
    np.testing.assert_array_equal(ends[0].vectors, ends[1].vectors)
    assert sorted(path.name for path in out.rglob("*")) == [
        "items.parquet",
        "key.json",
        "skipped.csv",
        "vectors.npy",
    ]


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Three pictures that can be read in odd shapes, and three files that cannot."""
    root = tmp_path / "broken"
    root.mkdir()
    photo((200, 30, 30), 1, (200, 150)).save(root / "truncated.jpg")
    whole = (root / "truncated.jpg").read_bytes()
    (root / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "text.png").write_text("I am a text.")
    (root / "zero.png").write_bytes(b"")
    photo((10, 20, 30), 2, (1, 1)).save(root / "one.png")
    photo((10, 20, 30), 3, (20000, 20)).save(root / "wide.png")
    photo((10, 120, 30), 4).convert("CMYK").save(root / "print.jpg")
    return root


REASONS = {"truncated.jpg": "truncated", "text.png": "not an image", "zero.png": "empty file (0 bytes)"}


@pytest.mark.parametrize("model", ["model.name=pixels", "model.name=resnet10t model.weights=random"])
def test_a_folder_with_broken_files(cli: Command, broken: Path, tmp_path: Path, model: str) -> None:
    (tmp_path / "job.yaml").write_text("data: {name: folder}")
    out = tmp_path / "out"
    done = cli("embed", tmp_path / "job.yaml", f"data.root={broken}", f"out={out}", *model.split())
    assert done.code == 0
    assert done.out == f"{out}\n"
    assert f"3 unreadable images left out of {broken}:" in done.err
    for name, reason in REASONS.items():
        (line,) = [line for line in done.err.splitlines() if name in line]
        assert line.startswith(f"  {name}: {reason}")
    assert f"{out}: 3 images, " in done.err.splitlines()[-1]
    skipped = pd.read_csv(out / "skipped.csv")
    assert set(skipped["path"]) == REASONS.keys()
    for path, reason in skipped.itertuples(index=False):
        assert reason.startswith(REASONS[path])
    stored = embedding_files.read(out)
    assert set(stored.ids) == {"one.png", "wide.png", "print.jpg"}
    assert np.isfinite(stored.vectors).all()

    again = cli("embed", tmp_path / "job.yaml", f"data.root={broken}", f"out={out}", *model.split())
    assert "3 unreadable images left out" in again.err
    assert "nothing has changed, kept as they were" in again.err


def test_broken_files_stop_the_run_when_asked(cli: Command, broken: Path, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("data: {name: folder, on_error: fail}\nmodel: {name: pixels}")
    command = ("embed", tmp_path / "job.yaml", f"data.root={broken}", f"out={tmp_path / 'out'}")
    line = cli(*command).user_error()
    assert line.startswith(f"cannot read '{broken}/text.png': not an image")
    assert "data.on_error=skip" in line
    assert not (tmp_path / "out").exists()
    assert cli(*command, "data.on_error=skip").code == 0
    assert cli(*command).user_error() == line  # also when the result is there already


def test_a_file_called_na_is_skipped_under_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    found = EmbeddingSet(
        ids=("a.png",),
        vectors=np.ones((1, 2), np.float32),
        key="k",
        skipped=(("NA", "not an image"),),
        meta={"dim": 2, "config": {}, "weights": "none", "image_size": None, "images": {"root": "/x"}},
    )
    embedding_files.write(found, folder, ImageSet(tmp_path, ("a.png", "NA")))
    read = embedding_files.read(folder)
    assert read.skipped == found.skipped
    assert np.isnan(read.images_per_s)
    assert json.loads((folder / "key.json").read_text())["images_per_s"] is None


def test_a_network_that_gives_nan_is_refused_with_the_image(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        plugins.find("extractor", "pixels").Extractor, "forward", lambda self, batch: batch * float("nan")
    )
    with pytest.raises(UserError, match=r"the embedding of 'apple/0\.png' is not finite"):
        run(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_workers_are_chosen_by_device_extractor_and_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(device: str, family: str, count: int, asked: int = -1) -> int:
        return embed_module._num_workers(asked, torch.device(device), family, count)

    monkeypatch.setattr(workers, "usable_cores", lambda: 6)
    assert chosen("cpu", "hand-crafted", 1000) == chosen("cuda", "off-the-shelf", 1000) == 6
    assert chosen("cpu", "hand-crafted", 10) == chosen("cuda", "off-the-shelf", 10) == 0
    # A network on the CPU takes turns with threads.
    assert chosen("cpu", "off-the-shelf", 1000) == 0
    assert [chosen("cpu", "random", count, asked=3) for count in (10, 0)] == [3, 0]
    monkeypatch.setattr(workers, "usable_cores", lambda: 99)
    assert chosen("cuda", "random", 1000) == 16


def test_copies_of_a_folder_share_their_key(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "copy")
    assert run(root, tmp_path / "a").key == run(tmp_path / "copy", tmp_path / "b").key
