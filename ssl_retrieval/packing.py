"""Decode a set of images once, by many hands, into one file that a killed process can go on with."""

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from time import monotonic
from typing import BinaryIO

from PIL import Image, ImageOps

from ssl_retrieval.atomic import atomic_path, require_writable
from ssl_retrieval.console import progress_bar, say
from ssl_retrieval.errors import ImageError, UserError
from ssl_retrieval.images import (
    content_digests,
    list_images,
    load_image,
    none_readable,
    report_skipped,
    unreadable,
)
from ssl_retrieval.locking import hold
from ssl_retrieval.packed import (
    FORMAT,
    VERSION,
    beside,
    header,
    index_file,
    is_foreign,
    open_pack,
    read_json,
    row_bytes,
)
from ssl_retrieval.packed import Packed as Packed
from ssl_retrieval.types import ImageSet
from ssl_retrieval.workers import start_worker, usable_cores

_GROUP = 16
"""Images that a worker decodes at a time."""

_THREADS_SUFFICE = 8
"""Cores up to which threads decode; see `_executor`."""

_WORTH_PROCESSES = 10_000
"""Images from which it pays to start processes: each takes half a second."""

_NOTE_EVERY_S = 2.0
"""Seconds between notes of how far the work has come."""


@dataclass
class PackConfig:
    """How a folder is packed.

    Attributes:
        size: Side of the squares in pixels.
        on_error: What to do with an unreadable image: ``skip`` leaves it out and lists it, ``fail`` stops.
    """

    size: int = 256
    on_error: str = "skip"

    def check(self) -> None:
        """Refuse values that mean nothing."""
        if self.size < 8:
            raise UserError(f"size={self.size}: must be at least 8 pixels")
        if self.on_error not in ("skip", "fail"):
            raise UserError(f"on_error={self.on_error!r}: use one of skip, fail")


def pack_folder(source: Path, target: Path, cfg: PackConfig) -> Path:
    """Pack all images of a folder.

    Args:
        source: The folder.
        target: The file to write; ``.npy`` is added when its name does not end so.
        cfg: See `PackConfig`.

    Returns:
        The file written.

    Raises:
        UserError: A mistake in the config, a folder without readable images, or a target that is a folder,
            something else than a pack, or being packed into by another process.
    """
    cfg.check()
    if target.is_dir():
        raise UserError(
            f"{str(target)!r} is a folder: name a file in it, e.g. {str(target / 'photos.npy')!r}"
        )
    file = target if target.suffix == ".npy" else target.with_name(f"{target.name}.npy")
    require_writable(file.parent)
    images = ImageSet(source, tuple(list_images(source)))
    if is_foreign(file):
        theirs = index_file(file) if index_file(file).exists() else file
        raise UserError(f"{str(theirs)!r} exists and is of no pack: remove it, or give another name")
    packed = pack(images, cfg.size, file, cfg.on_error)
    report_skipped(packed.skipped, str(source))
    say(f"{len(packed.paths)} images of {cfg.size} px, {file.stat().st_size / 1e6:.1f} MB")
    return file


def pack(images: ImageSet, size: int, file: Path, on_error: str) -> Packed:
    """Decode images into one ``.npy`` file of squares, or reuse the file when nothing has changed.

    The short side becomes ``size`` pixels (bicubic, antialiased), the centre is kept. Beside ``file``
    stands a ``.json`` with the ids, the skipped images, and the key: a hash of paths, contents and size.
    Both are whole or absent. Stopped or killed in between, the next call goes on from what is decoded,
    also when images behind that point were repaired, added or taken away; the bytes are the same.

    Args:
        images: What to pack.
        size: Side of the squares in pixels.
        file: The ``.npy`` file to write.
        on_error: ``skip`` leaves unreadable images out, ``fail`` refuses them.

    Returns:
        The images that could be read, in the order of ``images``.

    Raises:
        UserError: An image cannot be read and ``on_error`` is ``fail``, none can be read, or another
            process is packing into the same file.
    """
    assert len(images) > 0
    assert on_error in ("skip", "fail")
    assert file.suffix == ".npy"
    digests = content_digests(images)
    key = _hash(size, images.paths, digests).hexdigest()
    packed = _finished(file, key)
    if packed is None:
        lock = beside(file, "lock")
        refusal = f"{file}: another process is packing into it: wait for its end, or give another name"
        with hold(lock, refusal):
            try:
                # The other process may have finished between our look and the lock.
                packed = _finished(file, key) or _Work(images, digests, size, file, on_error).finish()
            finally:
                lock.unlink(missing_ok=True)
    if packed.skipped and on_error == "fail":
        raise unreadable(images, *packed.skipped[0])
    return packed


class _Work:
    """A pack in the making.

    The workers write each image to the place that its number says. What was decoded is then closed up, in
    order, over the images that could not be read; rows only ever move to places that are done with, so
    that the work can be taken up from the last note at any moment.
    """

    def __init__(
        self, images: ImageSet, digests: Sequence[str], size: int, file: Path, on_error: str
    ) -> None:
        self.images, self.digests, self.size, self.on_error = images, digests, size, on_error
        self.file, self.partial, self.note = file, beside(file, "partial"), beside(file, "progress")
        self.start = len(header(len(images), size))
        self.done, self.skipped = self._take_up()
        self.hash = _hash(size, images.paths[: self.done], digests)

    def finish(self) -> Packed:
        """Decode what is left and put the files in their places."""
        if self.skipped and self.on_error == "fail":
            raise unreadable(self.images, *self.skipped[0])
        if self.done:
            say(f"{self.file}: going on after {self.done} of {len(self.images)} images")
        with self.partial.open("r+b") as out:
            self._decode(out)
            kept = len(self.images) - len(self.skipped)
            out.truncate(self.start + kept * row_bytes(self.size))
            out.seek(0)
            out.write(header(kept, self.size))
            _force(out)
        if not kept:
            self.partial.unlink()
            self.note.unlink(missing_ok=True)
            raise none_readable(self.images, *self.skipped[0])
        left_out = {path for path, _ in self.skipped}
        index = {
            "format": FORMAT,
            "version": VERSION,
            "size": self.size,
            "key": self.hash.hexdigest(),
            "paths": [path for path in self.images.paths if path not in left_out],
            "skipped": self.skipped,
        }
        # Killed between two of these lines, a pack is left without index: `_take_up` knows it by its note.
        index_file(self.file).unlink(missing_ok=True)
        self.partial.replace(self.file)
        with atomic_path(index_file(self.file)) as temporary:
            temporary.write_text(json.dumps(index))
        self.note.unlink(missing_ok=True)
        return open_pack(self.file)

    def _take_up(self) -> tuple[int, list[tuple[str, str]]]:
        """Find what an earlier process left; without it, begin an empty file."""
        noted = read_json(self.note) or {}
        if noted and not self.partial.exists() and not index_file(self.file).exists() and self.file.exists():
            self.file.replace(self.partial)
        try:
            done = int(noted["done"])
            skipped = [(str(path), str(reason)) for path, reason in noted["skipped"]]
            same = noted["hash"] == _hash(self.size, self.images.paths[:done], self.digests).hexdigest()
            least = self.start + (done - len(skipped)) * row_bytes(self.size)
            if same and done <= len(self.images) and self.partial.stat().st_size >= least:
                return done, skipped
        except (KeyError, TypeError, ValueError, OSError):
            pass
        self.note.unlink(missing_ok=True)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.partial.write_bytes(header(len(self.images), self.size))
        return 0, []

    def _decode(self, out: BinaryIO) -> None:
        noted, standing = monotonic(), self._standing()
        with progress_bar() as progress:
            task = progress.add_task("decoding", total=len(self.images), completed=self.done)
            try:
                for reasons in self._groups():
                    self._close_up(out, reasons)
                    standing = self._standing()
                    progress.update(task, completed=self.done)
                    if monotonic() - noted >= _NOTE_EVERY_S:
                        self._write_note(out, *standing)
                        noted = monotonic()
            finally:
                # Of the last whole group: Ctrl-C may come in the middle of closing up.
                self._write_note(out, *standing)

    def _groups(self) -> Iterator[list[str | None]]:
        """Have the rest decoded, and give each group's reasons why not, in order."""
        try:
            yield from self._groups_by(_executor(len(self.images) - self.done))
        except BrokenProcessPool:
            say("a decoding process ended unexpectedly (out of memory?): going on with threads")
            yield from self._groups_by(ThreadPoolExecutor(usable_cores()))

    def _groups_by(self, executor: Executor) -> Iterator[list[str | None]]:
        waiting: deque[Future[list[str | None]]] = deque()
        try:
            for first in range(self.done, len(self.images), _GROUP):
                files = [self.images.file(i) for i in range(first, min(first + _GROUP, len(self.images)))]
                place = self.start + first * row_bytes(self.size)
                waiting.append(executor.submit(_write_squares, files, self.size, self.partial, place))
                # The window bounds how far the fast ones run ahead of one slow image.
                if len(waiting) > 4 * usable_cores():
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            executor.shutdown(cancel_futures=True)

    def _close_up(self, out: BinaryIO, reasons: Sequence[str | None]) -> None:
        length = row_bytes(self.size)
        # Not buffered: what lies ahead in the file is being written by others.
        with self.partial.open("rb", buffering=0) as rows:
            for number, reason in enumerate(reasons, start=self.done):
                path = self.images.paths[number]
                if reason is not None:
                    if self.on_error == "fail":
                        raise unreadable(self.images, path, reason)
                    self.skipped.append((path, reason))
                elif self.skipped:
                    rows.seek(self.start + number * length)
                    out.seek(self.start + (number - len(self.skipped)) * length)
                    out.write(rows.read(length))
                self.hash.update(_entry(path, self.digests[number]))
        self.done += len(reasons)

    def _standing(self) -> tuple[int, int, str]:
        return self.done, len(self.skipped), self.hash.hexdigest()

    def _write_note(self, out: BinaryIO, done: int, num_skipped: int, digest: str) -> None:
        _force(out)
        with atomic_path(self.note) as temporary:
            note = {"done": done, "skipped": self.skipped[:num_skipped], "hash": digest}
            temporary.write_text(json.dumps(note))


def _executor(count: int) -> Executor:
    """Choose who decodes.

    Pillow decodes and scales without the interpreter's lock, but 0.06 to 0.16 ms of Python per image hold it:
    many cores need processes. JPEGs of 192 px on two busy cores: threads 2,100 images/s, processes 1,250.
    """
    cores = usable_cores()
    if cores <= _THREADS_SUFFICE or count < _WORTH_PROCESSES:
        return ThreadPoolExecutor(cores)
    # Forked processes would inherit locks that other threads hold; Windows takes 61 processes at most.
    return ProcessPoolExecutor(min(cores, 61), get_context("spawn"), initializer=start_worker)


def _write_squares(files: Sequence[Path], size: int, out: Path, place: int) -> list[str | None]:
    """Decode files into rows from byte ``place`` on; for each, why it could not be read, or None."""
    reasons: list[str | None] = []
    with out.open("r+b") as rows:
        for number, file in enumerate(files):
            try:
                image = load_image(file, at_least=size)
            except ImageError as error:
                reasons.append(str(error))
                continue
            # `fit` cuts before it scales: a 20000 x 20 image never becomes a giant one.
            square = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
            rows.seek(place + number * row_bytes(size))
            rows.write(square.tobytes())
            reasons.append(None)
    return reasons


def _finished(file: Path, key: str) -> Packed | None:
    try:
        packed = open_pack(file)
    except UserError:
        return None
    return packed if packed.key == key else None


def _hash(size: int, paths: Sequence[str], digests: Sequence[str]) -> hashlib.blake2b:
    """Begin the hash of a pack and take in its first images; ``digests`` may go on beyond them."""
    content = hashlib.blake2b(f"{FORMAT} {VERSION} {size}\n".encode(), digest_size=16)
    for path, digest in zip(paths, digests, strict=False):
        content.update(_entry(path, digest))
    return content


def _entry(path: str, digest: str) -> bytes:
    return json.dumps([path, digest]).encode() + b"\n"


def _force(out: BinaryIO) -> None:
    out.flush()
    os.fsync(out.fileno())
