"""Image files -> batches of an extractor's input, in order, with the reasons for what could not be read."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssl_retrieval import images
from ssl_retrieval.errors import ImageError
from ssl_retrieval.types import ImageSet, IntArray

_MAX_THREADS = 16
"""Pillow and the resize run without the interpreter's lock, but a tenth of the work per image needs it."""

_CHUNK = 8
"""Images per task at most: enough that tasks cost nothing, few enough that no core waits long for another."""


class Batch(NamedTuple):
    """What became of some images.

    Attributes:
        numbers: Which images of the set could be read.
        inputs: What ``preprocess`` gave for them, stacked: [len(numbers), …], images as ``channels_last``;
            None when there are none.
        reasons: Number of an unreadable image -> why.
    """

    numbers: list[int]
    inputs: Tensor | None
    reasons: dict[int, str]


class Decoded(Dataset):
    """Some images, decoded and preprocessed one at a time: item -> (number, input, or the reason why not)."""

    def __init__(
        self,
        image_set: ImageSet,
        numbers: IntArray,
        preprocess: Callable[[Image.Image], Tensor],
        image_size: int | None,
    ) -> None:
        """Note what to do.

        Args:
            image_set: Where the images are.
            numbers: int64 [N]: which of them, in this order.
            preprocess: Image -> tensor, of one shape and dtype for all.
            image_size: Short side in pixels to which images are reduced first; None = as stored.
        """
        self.image_set, self.numbers = image_set, numbers
        self.preprocess, self.image_size = preprocess, image_size

    def __len__(self) -> int:
        """Count the images."""
        return len(self.numbers)

    def __getitem__(self, place: int) -> tuple[int, Tensor | str]:
        """Decode one."""
        number = int(self.numbers[place])
        try:
            return number, self.preprocess(load_part(self.image_set, number, self.image_size))
        except ImageError as error:
            return number, str(error)


def load_part(image_set: ImageSet, number: int, image_size: int | None) -> Image.Image:
    """Decode an image, reduce it and cut out the part that counts.

    Args:
        image_set: Where it is.
        number: Its index there.
        image_size: Short side in pixels to which it is reduced first; None = as stored.

    Raises:
        ImageError: It cannot be read.
    """
    image = images.load_image(image_set.file(number))
    small = images.shrink(image, image_size)
    # Shrunk before it is cut, so that what the box holds keeps the scale that it has in whole images.
    return images.cut(small, _scaled(image_set.box(number), small.width / image.width))


def _scaled(
    box: tuple[float, float, float, float] | None, factor: float
) -> tuple[float, float, float, float] | None:
    return None if box is None else (box[0] * factor, box[1] * factor, box[2] * factor, box[3] * factor)


def by_turns(decoded: Decoded, batch_size: int) -> Iterator[Batch]:
    """Decode each batch when it is asked for, with as many threads as torch has.

    For a network on the CPU: it stands still meanwhile, and then has all cores for itself; beside it, a
    busy core would hold up every layer. Processes would decode a little faster, but a network that has run
    before keeps much memory, and after a fork each of its pages is copied at the first write.

    Args:
        decoded: What to decode.
        batch_size: Images per batch.
    """
    num_threads = min(_MAX_THREADS, torch.get_num_threads())

    def decode(places: range) -> list[tuple[int, Tensor | str]]:
        return [decoded[place] for place in places]

    with ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(decoded), batch_size):
            end = min(start + batch_size, len(decoded))
            chunk = min(_CHUNK, -(-(end - start) // num_threads))
            tasks = [range(i, min(i + chunk, end)) for i in range(start, end, chunk)]
            yield _collate([item for part in pool.map(decode, tasks) for item in part])


def ahead(decoded: Decoded, batch_size: int, num_workers: int, pin: bool) -> Iterator[Batch]:
    """Decode in worker processes, some batches ahead.

    Args:
        decoded: What to decode.
        batch_size: Images per batch.
        num_workers: Processes, at least 1.
        pin: Whether batches go to a GPU: memory from which it copies on its own.
    """
    assert num_workers > 0
    loader = DataLoader(
        decoded, batch_size=batch_size, num_workers=num_workers, collate_fn=_collate, pin_memory=pin
    )
    yield from loader


def _collate(items: Sequence[tuple[int, Tensor | str]]) -> Batch:
    good = [(number, item) for number, item in items if isinstance(item, Tensor)]
    reasons = {number: item for number, item in items if isinstance(item, str)}
    inputs = _stacked([item for _, item in good]) if good else None
    return Batch([number for number, _ in good], inputs, reasons)


def _stacked(items: list[Tensor]) -> Tensor:
    shape = (len(items), *items[0].shape)
    # Convolutions run up to four times faster on this layout, on CPUs too.
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    batch = torch.empty(shape, dtype=items[0].dtype, memory_format=layout)
    # numpy copies without waking torch's threads, which would cost more than these copies.
    for row, item in zip(batch.numpy(), items, strict=True):
        np.copyto(row, item.numpy())
    return batch
