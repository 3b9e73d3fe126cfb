"""Extractors that learn from images first (vocabularies, region whitening): taught once, kept in a file."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ssl_retrieval import decoding, images
from ssl_retrieval.atomic import atomic_path
from ssl_retrieval.console import progress_bar, say
from ssl_retrieval.errors import UserError
from ssl_retrieval.representation import Representation
from ssl_retrieval.types import ImageSet, digest_of

_CHUNK = 8
_AHEAD = 64
"""Images that are decoded before their material is collected: bounds the memory of what waits."""


def learns(representation: Representation) -> bool:
    """Tell whether an extractor must be taught before it can embed."""
    return bool(getattr(representation.extractor, "learns", False))


def teach(
    representation: Representation, image_set: ImageSet, file: Path, *, image_size: int | None, on_error: str
) -> None:
    """Let an extractor learn from images, or give it what it learned from the same ones before.

    Args:
        representation: Its extractor has ``learns``, ``material``, ``learn`` and ``set_learned``.
        image_set: What to learn from.
        file: Where the learned state is kept (safetensors).
        image_size: Short side in pixels to which images are reduced first; None = as stored.
        on_error: ``skip`` or ``fail`` for unreadable images.

    Raises:
        UserError: An unreadable image with ``fail``, no readable image, or nothing to learn from.
    """
    extractor = representation.extractor
    untaught = {
        key: value for key, value in representation.identity().items() if key not in ("dim", "weights")
    }
    contents = images.contents(image_set)
    network = getattr(extractor, "network_digest", None)
    key = digest_of({"identity": untaught, "network": network, "images": contents, "image_size": image_size})
    state = _stored(file, key)
    if state is None:
        say(f"{representation.label} learns from {len(image_set)} images in {str(image_set.root)!r}")
        state = extractor.learn(_material(representation, image_set, image_size, on_error))
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(file) as partial:
            save_file({name: value.contiguous() for name, value in state.items()}, partial, {"key": key})
    extractor.set_learned(state)


def recall(representation: Representation, file: Path) -> None:
    """Give an extractor what a file holds, whatever it was learned from.

    Raises:
        UserError: There is no such file, or it cannot be read.
    """
    state = _stored(file, None)
    if state is None:
        raise UserError(
            f"{file}: what {representation.label!r} has learned cannot be read: run `embed` again"
        )
    representation.extractor.set_learned(state)


def _stored(file: Path, key: str | None) -> dict[str, Tensor] | None:
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as content:
            if key is not None and (content.metadata() or {}).get("key") != key:
                return None
            return {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        if key is not None:
            say(f"{file}: damaged; learning again")
        return None


def _material(
    representation: Representation, image_set: ImageSet, image_size: int | None, on_error: str
) -> list[Tensor]:
    def material(image: Image.Image) -> Tensor:
        # Here, because the mode holds for one thread only.
        with torch.no_grad():
            found: Tensor = representation.extractor.material(image)
            return found

    numbers = np.arange(len(image_set), dtype=np.int64)
    decoded = decoding.Decoded(image_set, numbers, material, image_size)
    collected: list[Tensor] = []
    skipped: list[tuple[str, str]] = []
    with progress_bar() as bar, ThreadPoolExecutor(torch.get_num_threads()) as pool:
        task = bar.add_task(f"learn {representation.label}", total=len(image_set))
        for start in range(0, len(image_set), _AHEAD):
            places = range(start, min(start + _AHEAD, len(image_set)))
            for number, item in pool.map(decoded.__getitem__, places, chunksize=_CHUNK):
                if isinstance(item, Tensor):
                    collected.append(item)
                    continue
                if on_error == "fail":
                    raise images.unreadable(image_set, image_set.paths[number], item)
                skipped.append((image_set.paths[number], item))
            bar.update(task, completed=places.stop)
    if not collected:
        raise images.none_readable(image_set, *skipped[0])
    images.report_skipped(skipped, f"what {representation.label} learns from")
    return collected
