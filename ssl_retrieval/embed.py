"""Extractor × images -> EmbeddingSet: cached by content, resumable, unreadable images listed."""

import dataclasses
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssl_retrieval import config, devices, images, memory, plugins
from ssl_retrieval.atomic import atomic_path, require_writable
from ssl_retrieval.config import plugin
from ssl_retrieval.console import progress_bar, say
from ssl_retrieval.embedding_files import (
    PARTS,
    SCHEMA,
    read,
    remove_parts,
    stored_key,
    write,
    write_items,
    write_key,
)
from ssl_retrieval.errors import ImageError, UserError
from ssl_retrieval.types import EmbeddingSet, ImageSet, IntArray, VectorArray, digest_of


@dataclass
class EmbedOptions:
    """How embedding runs; none of it changes the vectors beyond rounding.

    Attributes:
        batch_size: Images per forward pass.
        num_workers: Processes that decode; -1 = chosen by machine and extractor.
        save_every_s: Seconds between partial results on disk, from which a killed run goes on.
    """

    batch_size: int = 64
    num_workers: int = -1
    save_every_s: float = 20.0

    def check(self) -> None:
        """Refuse values that mean nothing."""
        if self.batch_size < 1:
            raise UserError(f"embed.batch_size={self.batch_size}: must be at least 1")


@dataclass
class EmbedConfig:
    """The keys of ``ssl-retrieval embed``.

    Attributes:
        out: Folder of the EmbeddingSet.
        seed: For a common form of all configs; embedding draws nothing at random.
        device: ``auto``, ``cpu``, ``cuda``, ….
        data: Dataset section: its images.
        model: Extractor section.
        embed: See `EmbedOptions`.
        image_size: Short side in pixels to which images are reduced first; None = as stored.
    """

    out: str = "???"
    seed: int = 0
    device: str = "auto"
    data: Any = plugin("dataset")
    model: Any = plugin("extractor")
    embed: EmbedOptions = field(default_factory=EmbedOptions)
    image_size: int | None = None


@dataclass(frozen=True)
class Representation:
    """An extractor ready to run, and its identity.

    Attributes:
        label: Name in tables.
        config: The config it was made from.
        extractor: The module.
        device: Where it runs.
    """

    label: str
    config: Any
    extractor: Any
    device: torch.device

    @classmethod
    def make(cls, label: str, cfg: Any, device: torch.device) -> "Representation":
        """Build the extractor that a config names.

        Raises:
            UserError: The label is no file name, or the extractor refuses its config.
        """
        check_label(label)
        extractor = plugins.find("extractor", cfg.name).Extractor(cfg).to(device).eval()
        extractor.to(memory_format=torch.channels_last)
        memory.keep_freed(device)
        return cls(label, cfg, extractor, device)

    def identity(self) -> dict[str, Any]:
        """Give everything that decides about its vectors, as plain values."""
        spec = getattr(self.extractor, "preprocess_spec", None)
        return {
            "config": config.to_dict(self.config),
            "family": self.extractor.family,
            "dim": self.extractor.dim,
            "weights": self.extractor.weights_digest,
            "input": None if spec is None else spec.to_dict(),
        }


def check_label(label: str) -> None:
    """Refuse the label of a representation that cannot be part of a file's name.

    Raises:
        UserError: It holds a slash.
    """
    if "/" in label or "\\" in label:
        raise UserError(f"representation {label!r}: a label names files, so it must not hold a slash")


def run_embed(cfg: EmbedConfig) -> Path:
    """Embed the images that a config names into ``out``.

    Raises:
        UserError: A mistake in the config or the data.
    """
    config.require_sections(cfg, "data", "model")
    if cfg.image_size is not None and cfg.image_size < 1:
        raise UserError(f"image_size={cfg.image_size}: must be at least 1, or null for images as stored")
    folder = Path(cfg.out).expanduser()
    before = stored_key(folder)
    image_set = plugins.find("dataset", cfg.data.name).images(cfg.data)
    embeddings = embed(
        Representation.make(cfg.model.name, cfg.model, devices.pick(cfg.device)),
        image_set,
        folder,
        options=cfg.embed,
        image_size=cfg.image_size,
        on_error=cfg.data.on_error,
    )
    images.report_skipped(embeddings.skipped, str(image_set.root))
    how = "nothing has changed, kept as they were"
    if embeddings.key != before:
        how = f"{embeddings.images_per_s:.0f} images/s"
    say(f"{folder}: {len(embeddings.ids)} images, {embeddings.dim} dimensions; {how}")
    return folder


def embed(
    representation: Representation,
    image_set: ImageSet,
    folder: Path,
    *,
    options: EmbedOptions,
    image_size: int | None = None,
    on_error: str = "skip",
) -> EmbeddingSet:
    """Embed every readable image, or read the result when nothing has changed since.

    Args:
        representation: What embeds.
        image_set: The images.
        folder: Where the EmbeddingSet stands (see `write`); parts of an interrupted run are used.
        options: See `EmbedOptions`.
        image_size: Short side in pixels to which images are reduced first (`Protocol.image_size`).
        on_error: ``skip`` or ``fail``.

    Raises:
        UserError: An unreadable image with ``on_error="fail"``, or no readable image at all.
    """
    options.check()
    require_writable(folder)
    identity = representation.identity()
    identity["image_size"] = image_size
    digests = images.content_digests(image_set)
    contents = digest_of([list(image_set.paths), digests])
    meta = {
        "schema": SCHEMA,
        **identity,
        "images": {"root": str(image_set.root.resolve()), "digest": contents},
    }
    key = digest_of({"identity": identity, "images": contents})
    stored = _stored(folder, key, meta)
    if stored is not None:
        if on_error == "fail" and stored.skipped:
            path, reason = stored.skipped[0]
            raise UserError(_unreadable(image_set, path, reason))
        write_items(stored, folder, image_set)
        return stored
    parts = _Parts(folder / PARTS, key, len(image_set), representation.extractor.dim)
    rows = _rows(representation, image_set, parts.missing(), options, image_size)
    with progress_bar() as bar:
        task = bar.add_task(f"embed {representation.label}", total=len(image_set))
        bar.update(task, completed=parts.num_done)
        for numbers, vectors, reasons in rows:
            if on_error == "fail" and reasons:
                number, reason = next(iter(reasons.items()))
                raise UserError(_unreadable(image_set, image_set.paths[number], reason))
            parts.add(numbers, vectors, reasons)
            if parts.seconds_unsaved() > options.save_every_s:
                parts.save()
            bar.update(task, completed=parts.num_done)
    result = parts.collect(image_set, key, meta)
    write(result, folder, image_set)
    return result


def _stored(folder: Path, key: str, meta: dict[str, Any]) -> EmbeddingSet | None:
    if stored_key(folder) != key:
        return None
    try:
        stored = read(folder)
    except UserError:
        say(f"{folder}: the stored files are damaged; embedding again")
        return None
    remove_parts(folder)
    if stored.meta["images"] != meta["images"]:
        stored = dataclasses.replace(stored, meta=stored.meta | {"images": meta["images"]})
        write_key(stored, folder)
    return stored


def embed_image(representation: Representation, file: Path, image_size: int | None) -> VectorArray:
    """Embed one image file: float32 [1, D].

    Raises:
        UserError: The file is no readable image.
    """
    try:
        image = images.shrink(images.load_image(file), image_size)
    except ImageError as error:
        raise UserError(f"{file}: cannot be read as an image: {error}") from error
    with torch.inference_mode():
        batch = representation.extractor.preprocess(image)[None].to(representation.device)
        vectors: VectorArray = representation.extractor(batch).float().cpu().numpy()
    return vectors


class _Decoded(Dataset):
    """Decodes and preprocesses in the workers: item -> (number, tensor, or the reason why not)."""

    def __init__(
        self, extractor: Any, image_set: ImageSet, numbers: IntArray, image_size: int | None
    ) -> None:
        self.preprocess, self.image_set, self.numbers = extractor.preprocess, image_set, numbers
        self.image_size = image_size

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> tuple[int, Tensor | str]:
        number = int(self.numbers[place])
        try:
            image = images.load_image(self.image_set.file(number))
            return number, self.preprocess(images.shrink(image, self.image_size))
        except ImageError as error:
            return number, str(error)


def _collate(items: list[tuple[int, Tensor | str]]) -> tuple[list[int], Tensor | None, dict[int, str]]:
    good = [(number, item) for number, item in items if isinstance(item, Tensor)]
    reasons = {number: item for number, item in items if isinstance(item, str)}
    batch = torch.stack([item for _, item in good]) if good else None
    return [number for number, _ in good], batch, reasons


def _rows(
    representation: Representation,
    image_set: ImageSet,
    numbers: IntArray,
    options: EmbedOptions,
    image_size: int | None,
) -> Iterator[tuple[list[int], VectorArray, dict[int, str]]]:
    if len(numbers) == 0:
        return
    extractor, device = representation.extractor, representation.device
    loader = DataLoader(
        _Decoded(extractor, image_set, numbers, image_size),
        batch_size=options.batch_size,
        num_workers=_num_workers(options, device, extractor.family, len(numbers)),
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
    )
    with torch.inference_mode():
        for good, batch, reasons in loader:
            vectors = np.empty((0, extractor.dim), np.float32)
            if batch is not None:
                # Convolutions run up to four times faster on this layout, on CPUs too.
                layout = torch.channels_last if batch.ndim == 4 else torch.contiguous_format
                batch = batch.to(device, non_blocking=True, memory_format=layout)
                vectors = extractor(batch).float().cpu().numpy()
            yield good, vectors, reasons


def _num_workers(options: EmbedOptions, device: torch.device, family: str, count: int) -> int:
    if options.num_workers >= 0:
        return options.num_workers
    if count < 200:
        return 0
    cores = os.cpu_count() or 1
    # On the CPU the forward pass wants the cores too; hand-crafted features live in the workers alone.
    return min(16, cores) if device.type == "cuda" or family == "hand-crafted" else max(1, cores // 2)


class _Parts:
    """The rows finished so far, in memory and as files that a later run can take up."""

    def __init__(self, folder: Path, key: str, count: int, dim: int) -> None:
        self.folder, self.count = folder, count
        self.vectors = np.zeros((count, dim), np.float32)
        self.done = np.zeros(count, dtype=bool)
        self.reasons: dict[int, str] = {}
        self.unsaved: list[int] = []
        self.saved_at = self.begin = time.monotonic()
        marker = folder / "key.txt"
        if marker.is_file() and marker.read_text() == key:
            self._load()
        else:
            shutil.rmtree(folder, ignore_errors=True)
        self.marker, self.key = marker, key
        self.num_before = self.num_done

    @property
    def num_done(self) -> int:
        return int(self.done.sum())

    def missing(self) -> IntArray:
        return np.flatnonzero(~self.done).astype(np.int64)

    def add(self, numbers: list[int], vectors: VectorArray, reasons: dict[int, str]) -> None:
        self.vectors[numbers] = vectors
        self.reasons |= reasons
        touched = [*numbers, *reasons]
        self.done[touched] = True
        self.unsaved += touched

    def seconds_unsaved(self) -> float:
        return time.monotonic() - self.saved_at

    def save(self) -> None:
        if not self.marker.is_file():
            with atomic_path(self.marker) as partial:
                partial.write_text(self.key)
        numbers = np.array(self.unsaved, np.int64)
        reasons = np.array([self.reasons.get(int(n), "") for n in numbers], dtype=np.str_)
        with atomic_path(self.folder / f"{int(numbers[0]):09d}.npz") as partial, partial.open("wb") as stream:
            np.savez(stream, numbers=numbers, vectors=self.vectors[numbers], reasons=reasons)
        self.unsaved, self.saved_at = [], time.monotonic()

    def collect(self, image_set: ImageSet, key: str, meta: dict[str, Any]) -> EmbeddingSet:
        good = np.array([n for n in range(self.count) if n not in self.reasons], np.int64)
        if len(good) == 0:
            number, reason = next(iter(sorted(self.reasons.items())))
            raise UserError(
                f"none of the {self.count} images in {str(image_set.root)!r} can be read: check the files; "
                f"the first, {image_set.paths[number]!r}: {reason}"
            )
        seconds = max(time.monotonic() - self.begin, 1e-9)
        num_new = self.count - self.num_before
        return EmbeddingSet(
            ids=tuple(image_set.paths[n] for n in good),
            vectors=self.vectors[good],
            key=key,
            skipped=tuple((image_set.paths[n], r) for n, r in sorted(self.reasons.items())),
            images_per_s=num_new / seconds if num_new else float("nan"),
            meta=meta,
        )

    def _load(self) -> None:
        for file in sorted(self.folder.glob("*.npz")):
            with np.load(file, allow_pickle=False) as part:
                numbers, reasons = part["numbers"], part["reasons"]
                self.vectors[numbers] = part["vectors"]
            self.done[numbers] = True
            self.reasons |= {int(n): str(r) for n, r in zip(numbers, reasons, strict=True) if r}


def _unreadable(image_set: ImageSet, path: str, reason: str) -> str:
    return (
        f"cannot read {str(image_set.root / path)!r}: {reason}; repair or remove it, or set "
        "data.on_error=skip to leave such files out"
    )
