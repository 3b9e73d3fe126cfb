"""Which images a run trains on, and in what form: chosen at the start, kept with the run."""

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
from ssl_retrieval.train_config import PretrainConfig
from ssl_retrieval.types import ImageSet
from ssl_retrieval.workers import own_cores


def open_images(cfg: PretrainConfig, out: Path) -> tuple[Packed | Stream, str]:
    """Pack the images, open a pack, or open a stream; and say why so.

    Args:
        cfg: The run's config.
        out: The run's folder.

    Raises:
        UserError: Fewer images than a batch needs, images that cannot be read, or a pack that is to be
            streamed.
    """
    source, reason = _open(cfg, out)
    if distributed.rank() == 0:
        report_skipped(source.skipped, cfg.data.root)
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
        packed: Packed = dataset.open_pack(cfg.data)
        return packed, f"packed beforehand at {packed.size} px"
    images: ImageSet = dataset.images(cfg.data)
    chosen, reason = _choice(cfg, images, out)
    if chosen == "stream":
        stream = Stream(images, seed=cfg.seed, num_workers=_num_workers(cfg), on_error=cfg.data.on_error)
        return stream, reason
    file = out / run_folder.IMAGES
    if distributed.rank() == 0:
        packed = pack(images, _side(cfg), file, cfg.data.on_error)
    distributed.barrier()
    if distributed.rank() > 0:
        packed = pack(images, _side(cfg), file, cfg.data.on_error)
    return packed, reason


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
