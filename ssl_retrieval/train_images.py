"""Which images a run trains on, and in what form: chosen at the start, kept with the run."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from ssl_retrieval import devices, distributed, image_source, plugins, run_folder
from ssl_retrieval.atomic import atomic_path
from ssl_retrieval.errors import UserError
from ssl_retrieval.images import report_skipped
from ssl_retrieval.packing import Packed, pack
from ssl_retrieval.streaming import Stream
from ssl_retrieval.train_config import PretrainConfig, signal_of
from ssl_retrieval.types import ImageSet, digest_of
from ssl_retrieval.workers import own_cores


def open_images(cfg: PretrainConfig, out: Path) -> tuple[Packed | Stream, str]:
    """Pack the images, open a pack, or open a stream; and say why so.

    They have labels, numbered from 0 without gaps, where the method learns from given ones, and else none.

    Args:
        cfg: The run's config.
        out: The run's folder.

    Raises:
        UserError: Fewer images than a batch needs, images that cannot be read, a pack that is to be
            streamed, or no labels although the method needs some.
    """
    source, reason = _open(cfg, out)
    if len(source.paths) < cfg.batch_size:
        raise UserError(
            f"batch_size={cfg.batch_size} is larger than the {len(source.paths)} readable training images: "
            "lower batch_size or add images"
        )
    distributed.require_same(source.key, "the training images")
    return source, reason


def some_packed(source: Packed | Stream, cfg: PretrainConfig, limit: int, out: Path) -> Packed:
    """Give packed images for the monitor: those there are, or some of a stream's photos.

    Args:
        source: From `open_images`.
        cfg: The run's config.
        limit: Photos of a stream to pack.
        out: The run's folder.
    """
    if isinstance(source, Packed):
        return source
    places = np.linspace(0, len(source.paths) - 1, min(limit, len(source.paths))).round().astype(np.int64)
    return pack(source.images.take(np.unique(places)), _side(cfg), out / "monitor_images.npy", "skip")


def _open(cfg: PretrainConfig, out: Path) -> tuple[Packed | Stream, str]:
    dataset: Any = plugins.find("dataset", cfg.data.name)
    if hasattr(dataset, "open_pack"):
        if cfg.source == "stream":
            raise UserError(
                f"source='stream': data.name={cfg.data.name} holds no photos to stream: use source=auto, or "
                "data.name=folder with the photos"
            )
        if signal_of(cfg).given:
            raise _no_labels(cfg, "a pack holds none: give the photos themselves")
        packed: Packed = dataset.open_pack(cfg.data)
        # Which they are was said when they were packed.
        left_out = f", without {len(packed.skipped)} that could not be read" if packed.skipped else ""
        return packed, f"packed beforehand at {packed.size} px{left_out}"
    images: ImageSet = dataset.images(cfg.data)
    if signal_of(cfg).given:
        images = _with_classes(images, cfg)
    else:
        images = dataclasses.replace(images, labels=None, class_names=())
    chosen, reason = _choice(cfg, images, out)
    if chosen == "stream":
        stream = Stream(images, seed=cfg.seed, num_workers=_num_workers(cfg), on_error=cfg.data.on_error)
        _report(stream, cfg)
        return stream, reason
    file = out / run_folder.IMAGES
    if distributed.rank() == 0:
        packed = pack(images, _side(cfg), file, cfg.data.on_error)
    distributed.barrier()
    if distributed.rank() > 0:
        packed = pack(images, _side(cfg), file, cfg.data.on_error)
    _report(packed, cfg)
    return _labelled(packed, images), reason


def _report(source: Packed | Stream, cfg: PretrainConfig) -> None:
    if distributed.rank() == 0:
        report_skipped(source.skipped, cfg.data.root)


def _labelled(packed: Packed, images: ImageSet) -> Packed:
    """Give the packed images their labels; those that could not be read are gone."""
    if images.labels is None:
        return packed
    label_of = dict(zip(images.paths, images.labels.tolist(), strict=True))
    labels = np.array([label_of[path] for path in packed.paths], np.int64)
    return dataclasses.replace(packed, labels=labels, key=digest_of([packed.key, labels.tolist()]))


def _with_classes(images: ImageSet, cfg: PretrainConfig) -> ImageSet:
    """Insist on labels of two classes or more, and number those that occur from 0."""
    if images.labels is None:
        raise _no_labels(cfg, "sort the images into a folder per class, or list them in a manifest")
    found, labels = np.unique(images.labels, return_inverse=True)
    if len(found) < 2:
        raise _no_labels(cfg, "all images are of one class, and two or more are needed")
    names = tuple(images.class_names[label] for label in found)
    return dataclasses.replace(images, labels=labels.astype(np.int64), class_names=names)


def _no_labels(cfg: PretrainConfig, advice: str) -> UserError:
    return UserError(
        f"method.name={cfg.method.name} learns from labels, which data.name={cfg.data.name} lacks: {advice}"
    )


def _choice(cfg: PretrainConfig, images: ImageSet, out: Path) -> tuple[str, str]:
    """Read the stored choice, or choose and store: a resumed run must see the same pixels."""
    file = out / run_folder.SOURCE
    if distributed.rank() == 0 and run_folder.read_json(file) is None:
        chosen, reason = image_source.choose(
            cfg.source,
            len(images),
            _side(cfg),
            cfg.model.image_size,
            image_source.sample_short_sides(images),
            image_source.free_bytes(out),
        )
        with atomic_path(file) as partial:
            partial.write_text(json.dumps({"source": chosen, "reason": reason}))
    distributed.barrier()
    stored = run_folder.read_json(file)
    assert stored is not None
    return str(stored["source"]), str(stored["reason"])


def _num_workers(cfg: PretrainConfig) -> int:
    if cfg.num_workers < 0 and devices.pick(cfg.device).type == "cpu":
        # The network computes on the other half.
        return max(1, own_cores() // 2)
    return cfg.num_workers


def _side(cfg: PretrainConfig) -> int:
    return cfg.pack_size or cfg.model.image_size
