"""Extractor × images -> EmbeddingSet: cached by content, resumable, unreadable images listed."""

import dataclasses
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_retrieval import config, decoding, devices, images, learning, memory, plugins, workers
from ssl_retrieval.atomic import require_writable
from ssl_retrieval.config import plugin
from ssl_retrieval.console import progress_bar, say
from ssl_retrieval.decoding import Batch
from ssl_retrieval.embedding_files import (
    LEARNED,
    PARTS,
    SCHEMA,
    read,
    remove_parts,
    stored_key,
    write,
    write_items,
    write_key,
)
from ssl_retrieval.embedding_parts import Parts
from ssl_retrieval.errors import ImageError, UserError
from ssl_retrieval.fitting import images_of_section
from ssl_retrieval.precision import Runtime
from ssl_retrieval.representation import Representation
from ssl_retrieval.types import EmbeddingSet, ImageSet, VectorArray, digest_of

PRECISIONS = ("fp32", "bf16", "auto")


@dataclass
class EmbedOptions:
    """How embedding runs; only ``precision`` changes the vectors beyond rounding.

    Attributes:
        batch_size: Images per forward pass.
        num_workers: Processes that decode beside the network; 0 = threads that take turns with it; -1 =
            chosen by device, extractor and number of images.
        save_every_s: Seconds between partial results on disk, from which a killed run goes on.
        precision: ``fp32``; ``bf16``, which is faster and cost up to 0.002 mAP where that was measured; or
            ``auto`` = bf16 on GPUs that compute in it, else fp32. What was used is part of the key: vectors
            of another precision are never reused.
    """

    batch_size: int = 64
    num_workers: int = -1
    save_every_s: float = 20.0
    precision: str = "fp32"

    def check(self) -> None:
        """Refuse values that mean nothing."""
        if self.batch_size < 1:
            raise UserError(f"embed.batch_size={self.batch_size}: must be at least 1")
        if self.num_workers < -1:
            raise UserError(f"embed.num_workers={self.num_workers}: must be 0 or more, or -1 = automatic")
        if self.precision not in PRECISIONS:
            raise UserError(f"embed.precision={self.precision!r}: one of {', '.join(PRECISIONS)}")


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
        fit: Dataset section: the images from which an extractor learns that must learn first (a vocabulary,
            say); by default those that are embedded.
    """

    out: str = "???"
    seed: int = 0
    device: str = "auto"
    data: Any = plugin("dataset")
    model: Any = plugin("extractor")
    embed: EmbedOptions = field(default_factory=EmbedOptions)
    image_size: int | None = None
    fit: Any = plugin("dataset")


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
    require_writable(folder)
    representation = Representation.make(cfg.model.name, cfg.model, devices.pick(cfg.device))
    if learning.learns(representation):
        source = image_set if cfg.fit is None else images_of_section(cfg.fit)
        learning.teach(
            representation,
            source,
            folder / LEARNED,
            image_size=cfg.image_size,
            on_error=(cfg.fit or cfg.data).on_error,
        )
    embeddings = embed(
        representation,
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
        share = embeddings.meta.get("network_share")
        how += "" if share is None else f", {share:.0%} of the time in the network"
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
    may_be_empty: bool = False,
) -> EmbeddingSet:
    """Embed every readable image, or read the result when nothing has changed since.

    Args:
        representation: What embeds.
        image_set: The images.
        folder: Where the EmbeddingSet stands (see `write`); parts of an interrupted run are used.
        options: See `EmbedOptions`.
        image_size: Short side in pixels to which images are reduced first (`Protocol.image_size`).
        on_error: ``skip`` or ``fail``.
        may_be_empty: Whether none of the images may be readable.

    Raises:
        UserError: An unreadable image with ``on_error="fail"``, or no readable image at all.
    """
    options.check()
    require_writable(folder)
    runtime = representation.runtime(options.precision)
    identity = identity_of(representation, options, image_size)
    contents = images.contents(image_set)
    meta = {
        "schema": SCHEMA,
        **identity,
        "images": {"root": str(image_set.root.resolve()), "digest": contents},
    }
    key = _key(identity, contents)
    stored = _stored(folder, key, meta)
    if stored is not None:
        if on_error == "fail" and stored.skipped:
            path, reason = stored.skipped[0]
            raise UserError(_unreadable(image_set, path, reason))
        write_items(stored, folder, image_set)
        return stored
    memory.reset_peak()
    parts = Parts(folder / PARTS, key, len(image_set), representation.extractor.dim)
    decoded = decoding.Decoded(image_set, parts.missing(), representation.extractor.preprocess, image_size)
    batches = _Waited(_batches(representation, decoded, options))
    with progress_bar() as bar:
        task = bar.add_task(f"embed {representation.label}", total=len(image_set))
        bar.update(task, completed=parts.num_done)
        for batch, vectors in _embedded(representation, runtime, batches):
            if on_error == "fail" and batch.reasons:
                number, reason = next(iter(batch.reasons.items()))
                raise UserError(_unreadable(image_set, image_set.paths[number], reason))
            parts.add(batch.numbers, vectors, batch.reasons)
            if parts.seconds_unsaved() > options.save_every_s:
                parts.save()
            bar.update(task, completed=parts.num_done)
    if representation.extractor.family != "hand-crafted" and len(decoded) > 0:
        meta["network_share"] = round(1 - batches.seconds / parts.seconds(), 3)
    meta["peak_rss_mib"] = memory.peak_rss_mib()
    result = parts.collect(image_set, key, meta, may_be_empty)
    write(result, folder, image_set)
    return result


def identity_of(
    representation: Representation, options: EmbedOptions, image_size: int | None
) -> dict[str, Any]:
    """Give everything that decides about the vector of an image, as plain values (see `embed`)."""
    precision = representation.runtime(options.precision).precision
    return representation.identity() | {"image_size": image_size, "precision": precision}


def key_of(
    representation: Representation, image_set: ImageSet, options: EmbedOptions, image_size: int | None
) -> str:
    """Give the key that `embed` gives, without embedding."""
    return _key(identity_of(representation, options, image_size), images.contents(image_set))


def _key(identity: dict[str, Any], contents: str) -> str:
    return digest_of({"identity": identity, "images": contents})


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


def embed_image(
    representation: Representation, file: Path, image_size: int | None, precision: str = "fp32"
) -> VectorArray:
    """Embed one image file: float32 [1, D].

    Args:
        representation: What embeds.
        file: The image.
        image_size: Short side in pixels to which it is reduced first; None = as stored.
        precision: Of the collection that it is compared to: ``precision`` in its ``key.json``.

    Raises:
        UserError: The file is no readable image.
    """
    try:
        image = images.shrink(images.load_image(file), image_size)
    except ImageError as error:
        raise UserError(f"{file}: cannot be read as an image: {error}") from error
    inputs = representation.extractor.preprocess(image)[None]
    vectors: VectorArray = representation.embed_batch(inputs, representation.runtime(precision)).cpu().numpy()
    return vectors


class _Waited:
    """Gives batches on and adds up how long they were waited for, in ``seconds``."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self.batches, self.seconds = batches, 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        start = time.monotonic()
        try:
            return next(self.batches)
        finally:
            self.seconds += time.monotonic() - start


def _batches(
    representation: Representation, decoded: decoding.Decoded, options: EmbedOptions
) -> Iterator[Batch]:
    family, device = representation.extractor.family, representation.device
    num_workers = _num_workers(options.num_workers, device, family, len(decoded))
    if num_workers == 0:
        return decoding.by_turns(decoded, options.batch_size)
    return decoding.ahead(decoded, options.batch_size, num_workers, pin=device.type == "cuda")


def _embedded(
    representation: Representation, runtime: Runtime, batches: Iterable[Batch]
) -> Iterator[tuple[Batch, VectorArray]]:
    """Embed batches; a GPU gets its next one before the last one's vectors are waited for."""
    queued = 1 if representation.device.type == "cuda" else 0
    running: deque[tuple[Batch, _Copied | None]] = deque()
    for batch in batches:
        copied = None
        if batch.inputs is not None:
            copied = _Copied(representation.embed_batch(batch.inputs, runtime))
        running.append((batch, copied))
        if len(running) > queued:
            yield _finished(*running.popleft(), representation.extractor.dim)
    for entry in running:
        yield _finished(*entry, representation.extractor.dim)


class _Copied:
    """Vectors on their way from a device."""

    def __init__(self, vectors: Tensor) -> None:
        on_gpu = vectors.device.type == "cuda"
        self.vectors = vectors.to("cpu", non_blocking=on_gpu)
        self.arrived = torch.cuda.Event() if on_gpu else None
        if self.arrived is not None:
            self.arrived.record()

    def wait(self) -> VectorArray:
        if self.arrived is not None:
            self.arrived.synchronize()
        vectors: VectorArray = self.vectors.numpy()
        return vectors


def _finished(batch: Batch, copied: _Copied | None, dim: int) -> tuple[Batch, VectorArray]:
    return batch, np.empty((0, dim), np.float32) if copied is None else copied.wait()


def _num_workers(asked: int, device: torch.device, family: str, count: int) -> int:
    if asked >= 0:
        return asked if count else 0
    # Hand-crafted features are all made where images are decoded, and hold the interpreter's lock.
    on_cores = device.type == "cpu" and family != "hand-crafted"
    return 0 if on_cores or count < 200 else min(16, workers.usable_cores())


def _unreadable(image_set: ImageSet, path: str, reason: str) -> str:
    return (
        f"cannot read {str(image_set.root / path)!r}: {reason}; repair or remove it, or set "
        "data.on_error=skip to leave such files out"
    )
