"""Training views straight from photos: worker processes decode and crop, the rest happens on the device."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssl_retrieval.augment import Noise, View
from ssl_retrieval.console import print_line
from ssl_retrieval.counter_random import uniform
from ssl_retrieval.crops import NUM_DRAWS, crop_boxes
from ssl_retrieval.errors import ImageError, UserError
from ssl_retrieval.images import (
    header_sizes,
    load_reduced,
    none_readable,
    unreadable,
)
from ssl_retrieval.types import ImageSet, digest_of
from ssl_retrieval.workers import own_cores, start_worker

Box = tuple[int, int, int, int]
"""Top, left, height and width in pixels."""

_RESIZE_INTO = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa.out,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa.out,
}
"""What torchvision's antialiased ``resize`` calls. Without ``out`` the result is not channels last, and
copying it into a batch that is takes longer than resizing."""

_LEAST_PART = 16
"""Images that a worker does in one go, where a batch has so many."""

_PATIENCE = 1000
"""Images in a row that may be unreadable; more look like a disk that went away."""


class Stream:
    """Decodes and crops the images of training steps, some steps ahead.

    Attributes:
        images: The N images whose headers could be read; numbers of images are places in here.
        paths: Their ids.
        skipped: (id, reason) of the images left out; grows when one turns out to be damaged later.
        labels: int64 [N]; None where they are not known, or not to be.
        key: Hash of the paths, of the files' sizes in bytes and of labels. To read the contents of a million
            photos would take minutes at every start; an edit that keeps a file's size goes unnoticed.
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        seed: int,
        num_workers: int = -1,
        on_error: str = "skip",
    ) -> None:
        """Look at every image's header.

        Args:
            images: The photos, of any sizes.
            seed: The run's seed.
            num_workers: Processes; 0 = none besides this one, -1 = one per core.
            on_error: ``skip`` leaves unreadable images out, and lets the next image, of the same label where
                there are labels, take the place of one that proves damaged later; ``fail`` refuses them.

        Raises:
            UserError: An image cannot be read and ``on_error`` is ``fail``, or none can be read.
        """
        assert len(images) > 0
        assert on_error in ("skip", "fail")
        sizes = header_sizes(images)
        bad = [(path, size) for path, size in zip(images.paths, sizes, strict=True) if isinstance(size, str)]
        if bad and on_error == "fail":
            raise unreadable(images, *bad[0])
        if len(bad) == len(images):
            raise none_readable(images, *bad[0])
        good = np.array([i for i, size in enumerate(sizes) if not isinstance(size, str)], np.int64)
        self.images, self.on_error = images.take(good), on_error
        self.paths, self.skipped, self.labels = self.images.paths, bad, self.images.labels
        more = [] if self.labels is None else [self.labels.tolist()]
        self.key = digest_of(["stream", self.paths, _file_sizes(self.images), *more])
        self.num_workers = own_cores() if num_workers < 0 else num_workers
        self.seed = seed

    def batches(
        self, requests: Iterable[tuple[int, Tensor]], views: Sequence[View | Noise]
    ) -> Iterator[list[Tensor]]:
        """Make the crops of some steps.

        What an image gives depends on the seed, the step, its number and the view, not on the batch that
        it comes in or the number of workers.

        Args:
            requests: (step, int64 [B] image numbers); read ahead of what is yielded.
            views: What to cut from each image, at least one `View`; nothing is made for a `Noise`.

        Yields:
            For each request, in order, one uint8 [B, 3, size, size] per `View`, channels last in memory,
            pinned where CUDA is there: the parts that `crops.crop_boxes` chooses from the whole photo by the
            view's first numbers, resized with antialiasing, not flipped.

        Raises:
            UserError: An image cannot be decoded and ``on_error`` is ``fail``, or very many cannot.
        """
        num_parts: deque[int] = deque()
        loader = DataLoader(
            _Photos(self.images, views, self.seed, replaces=self.on_error == "skip"),
            batch_sampler=_Parts(requests, max(1, self.num_workers), num_parts),
            num_workers=self.num_workers,
            collate_fn=_as_it_is,
            worker_init_fn=start_worker if self.num_workers else None,
            # Its own, or it would take a number from the generator that dropout draws from.
            generator=torch.Generator(),
        )
        parts = iter(loader)
        for first in parts:
            found = [first, *(next(parts) for _ in range(num_parts.popleft() - 1))]
            for part in found:
                self._take_note(part)
            yield _joined([part.views for part in found])

    def _take_note(self, part: "_Part") -> None:
        if part.failed and self.on_error == "fail":
            number, reason = part.failed[0]
            raise unreadable(self.images, self.paths[number], reason)
        if not part.views:
            number, reason = part.failed[0]
            raise UserError(
                f"{len(part.failed)} images in a row cannot be read, the first {self.paths[number]!r} "
                f"({reason}): is {str(self.images.root)!r} still there?"
            )
        for number, reason in part.failed:
            path = self.paths[number]
            if not any(path == known for known, _ in self.skipped):
                self.skipped.append((path, reason))
                # Of several processes each meets its own photos.
                print_line(f"{path}: {reason}: left out, the next image takes its place")


class _Part(NamedTuple):
    """What a worker made of some images.

    Attributes:
        views: One uint8 [B, 3, size, size] per `View`; empty when it gave up.
        failed: (number, reason) of the images that could not be decoded.
    """

    views: list[Tensor]
    failed: list[tuple[int, str]]


class _Parts:
    """Cuts requests into a worker's portions; a batch is then soon complete, and few wait in memory."""

    def __init__(self, requests: Iterable[tuple[int, Tensor]], workers: int, num_parts: deque[int]) -> None:
        self.requests, self.workers, self.num_parts = requests, workers, num_parts

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step, numbers in self.requests:
            assert len(numbers) > 0
            parts = numbers.split(max(_LEAST_PART, -(-len(numbers) // self.workers)))
            self.num_parts.append(len(parts))
            for part in parts:
                yield [(step, number) for number in part.tolist()]


class _Photos(Dataset):
    """Decodes and crops, in the workers: (step, number) of some images -> `_Part`."""

    def __init__(self, images: ImageSet, views: Sequence[View | Noise], seed: int, replaces: bool) -> None:
        self.images, self.seed = images, seed
        self.attempts = min(len(images), _PATIENCE) if replaces else 1
        kept = [(view.drawn_as(number), view) for number, view in enumerate(views) if isinstance(view, View)]
        assert kept
        self.numbers, self.views = [number for number, _ in kept], [view for _, view in kept]
        # crop_boxes takes as long for one view as for ten.
        self.alike: dict[tuple[float, float], list[int]] = {}
        for place, view in enumerate(self.views):
            self.alike.setdefault((view.augment.crop_min, view.augment.crop_max), []).append(place)

    def __getitems__(self, items: list[tuple[int, int]]) -> _Part:
        """Do a portion; all of it is of one step."""
        step, samples = items[0][0], torch.tensor([number for _, number in items])
        draws = torch.stack(
            [uniform(self.seed, step, samples, number, NUM_DRAWS) for number in self.numbers], dim=1
        )
        shapes = [(len(items), 3, view.size, view.size) for view in self.views]
        made = [torch.empty(s, dtype=torch.uint8, memory_format=torch.channels_last) for s in shapes]
        failed: list[tuple[int, str]] = []
        for row, (_, number) in enumerate(items):
            reasons, is_filled = self._fill([batch[row : row + 1] for batch in made], number, draws[row])
            failed += reasons
            if not is_filled:
                return _Part([], reasons)
        return _Part(made, failed)

    def _fill(self, rows: Sequence[Tensor], number: int, draws: Tensor) -> tuple[list[tuple[int, str]], bool]:
        """Cut from an image, or from the first readable one after it; give the unreadable ones."""
        reasons: list[tuple[int, str]] = []
        for candidate in islice(self._candidates(number), self.attempts):
            try:
                self._cut(rows, self.images.file(candidate), draws)
            except ImageError as error:
                reasons.append((candidate, str(error)))
            else:
                return reasons, True
        return reasons, False

    def _candidates(self, number: int) -> Iterator[int]:
        """Give an image and then those that may take its place: the next ones, of its label if it has one."""
        yield number
        labels = self.images.labels
        others = (number + np.arange(1, len(self.images))) % len(self.images)
        yield from (others if labels is None else others[labels[others] == labels[number]]).tolist()

    def _cut(self, rows: Sequence[Tensor], file: Path, draws: Tensor) -> None:
        boxes: list[Box] = []

        def factor(width: int, height: int) -> int:
            boxes.extend(self._boxes(draws, height, width))
            return _reduction(boxes, self.views, height, width)

        image, (width, height) = load_reduced(file, factor)
        pixels = np.asarray(image)
        for row, view, box in zip(rows, self.views, boxes or self._boxes(draws, height, width), strict=True):
            top, left, h, w = _scaled(box, (height, width), pixels.shape[:2])
            # A copy of its own, which torch may write to; Pillow's may not be.
            part = torch.from_numpy(pixels[top : top + h, left : left + w].copy())
            resize = _RESIZE_INTO[view.augment.interpolation]
            resize(part.permute(2, 0, 1)[None], [view.size, view.size], False, out=row)

    def _boxes(self, draws: Tensor, height: int, width: int) -> list[Box]:
        boxes: list[Box] = [(0, 0, 0, 0)] * len(self.views)
        for scale, places in self.alike.items():
            for place, (top, left, h, w) in zip(
                places, crop_boxes(draws[places], height, width, scale).tolist(), strict=True
            ):
                boxes[place] = (top, left, h, w)
        return boxes


def _file_sizes(images: ImageSet) -> list[int]:
    """Give every file's bytes; -1 for one that went away after its header was read."""
    sizes = []
    for index in range(len(images)):
        try:
            sizes.append(images.file(index).stat().st_size)
        except OSError:
            sizes.append(-1)
    return sizes


def _reduction(boxes: Sequence[Box], views: Sequence[View], height: int, width: int) -> int:
    """Tell how many times smaller a photo may be decoded so that no view must be enlarged for it."""
    for factor in (8, 4, 2):
        decoded = (round(height / factor), round(width / factor))
        sides = [min(_scaled(box, (height, width), decoded)[2:]) for box in boxes]
        if all(side >= view.size for side, view in zip(sides, views, strict=True)):
            return factor
    return 1


def _scaled(box: Box, full: tuple[int, ...], decoded: tuple[int, ...]) -> Box:
    """Find a box of the full photo in a smaller decode of it."""
    top, left = (round(box[i] * decoded[i] / full[i]) for i in (0, 1))
    bottom, right = (round((box[i] + box[i + 2]) * decoded[i] / full[i]) for i in (0, 1))
    return top, left, bottom - top, right - left


def _joined(parts: list[list[Tensor]]) -> list[Tensor]:
    pin = torch.cuda.is_available()
    if len(parts) == 1 and not pin:
        return parts[0]
    joined = []
    for view in zip(*parts, strict=True):
        shape = (sum(len(part) for part in view), *view[0].shape[1:])
        whole = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last, pin_memory=pin)
        joined.append(torch.cat(view, out=whole))
    return joined


def _as_it_is(part: Any) -> Any:
    return part
