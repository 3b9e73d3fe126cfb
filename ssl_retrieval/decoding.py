"""Image files -> batches of an extractor's input, in order, with the reasons for what could not be read."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssl_retrieval import images, workers
from ssl_retrieval.errors import ImageError
from ssl_retrieval.types import ImageSet, IntArray

_CHUNK = 8
"""Images per task at most: enough that messages cost nothing, few enough that no core waits for another."""


class Batch(NamedTuple):
    """What became of some images.

    Attributes:
        numbers: Which images of the set could be read.
        inputs: What ``preprocess`` gave for them, stacked: [len(numbers), …], images as ``channels_last``;
            None when there are none. From `by_turns` it is good until the next batch is asked for.
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
            image = images.load_image(self.image_set.file(number))
            return number, self.preprocess(images.shrink(image, self.image_size))
        except ImageError as error:
            return number, str(error)


def by_turns(decoded: Decoded, batch_size: int, num_workers: int) -> Iterator[Batch]:
    """Decode each batch when it is asked for, on all cores.

    For a network on the CPU: it stands still meanwhile, and then has all cores for itself. Beside it,
    decoding would cost twice the time that it takes: each layer waits for its slowest core.

    Args:
        decoded: What to decode.
        batch_size: Images per batch.
        num_workers: Processes; 0 = as many threads of this process as torch has. Threads need no start,
            but wait for each other's use of the interpreter: two are a third slower than two processes.
    """
    if len(decoded) == 0:
        return
    rows = _empty(min(batch_size, len(decoded)), decoded.preprocess(Image.new("RGB", (8, 8))))
    fill: Callable[[range], list[str | None]]
    pool: Executor
    if num_workers == 0:
        fill, num_workers = partial(_fill, decoded, rows), torch.get_num_threads()
        pool = ThreadPoolExecutor(num_workers)
    else:
        fill = _fill_in_worker
        pool = ProcessPoolExecutor(
            num_workers, initializer=_start_worker, initargs=(decoded, rows.share_memory_())
        )
    with pool:
        for start in range(0, len(decoded), len(rows)):
            end = min(start + len(rows), len(decoded))
            chunk = min(_CHUNK, -(-(end - start) // num_workers))
            tasks = [range(i, min(i + chunk, end)) for i in range(start, end, chunk)]
            reasons = [reason for part in pool.map(fill, tasks) for reason in part]
            good = [row for row, reason in enumerate(reasons) if reason is None]
            numbers = decoded.numbers[start:end].tolist()
            yield Batch(
                [numbers[row] for row in good],
                (rows[: len(good)] if len(good) == len(reasons) else rows[good]) if good else None,
                {
                    number: reason
                    for number, reason in zip(numbers, reasons, strict=True)
                    if reason is not None
                },
            )


def _fill(decoded: Decoded, rows: Tensor, places: range) -> list[str | None]:
    """Decode into the rows of a batch; give the reasons why not."""
    values = rows.numpy()
    reasons: list[str | None] = []
    for place in places:
        _, item = decoded[place]
        if isinstance(item, Tensor):
            # numpy copies without waking torch's threads, which would cost more than the copy.
            np.copyto(values[place % len(values)], item.numpy())
        reasons.append(item if isinstance(item, str) else None)
    return reasons


_in_worker: Callable[[range], list[str | None]] | None = None


def _start_worker(decoded: Decoded, rows: Tensor) -> None:
    global _in_worker
    workers.start_worker()
    torch.set_num_threads(1)
    _in_worker = partial(_fill, decoded, rows)


def _fill_in_worker(places: range) -> list[str | None]:
    assert _in_worker is not None
    return _in_worker(places)


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
    batch = _empty(len(items), items[0])
    for row, item in zip(batch.numpy(), items, strict=True):
        np.copyto(row, item.numpy())
    return batch


def _empty(count: int, like: Tensor) -> Tensor:
    shape = (count, *like.shape)
    # Convolutions run up to four times faster on this layout, on CPUs too.
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, memory_format=layout)
