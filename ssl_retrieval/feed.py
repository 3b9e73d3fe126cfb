"""The views of each step on the training device, from packed images that are looked up or streamed photos."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ssl_retrieval import compiling
from ssl_retrieval.augment import Noise, Output, View, finish_views, make_views
from ssl_retrieval.packed import Packed
from ssl_retrieval.streaming import Stream

Requests = Iterable[tuple[int, Tensor]]
"""(step, int64 [B] image numbers), one after the other."""

_SHARE = 3
"""Images may take a third of a GPU's free memory."""


@dataclass(frozen=True)
class Feed:
    """Gives the views of one step after the other.

    Attributes:
        source: Packed images, or a stream of photos.
        views: What to make of each image.
        seed: The run's seed.
        device: Where views are made.
        resident: uint8 [N, 3, H, W] on the device; None when the images are too large for it or streamed.
    """

    source: Packed | Stream
    views: Sequence[View | Noise]
    seed: int
    device: torch.device
    resident: Tensor | None = None

    def batches(self, requests: Requests, output: Output) -> Generator[list[Tensor], None, None]:
        """Make the views that are asked for, in order; reading goes on ahead of what is taken.

        To close the generator ends the processes and threads that read.

        Args:
            requests: What to make.
            output: What the views are like.
        """
        if isinstance(self.source, Stream):
            yield from self._streamed(self.source, requests, output)
        else:
            yield from self._packed(self.source, requests, output)

    def _streamed(self, stream: Stream, requests: Requests, output: Output) -> Iterator[list[Tensor]]:
        # The stream reads requests ahead; what it has read is needed once more when the crops are there.
        ahead: list[tuple[int, Tensor]] = []

        def noted() -> Iterator[tuple[int, Tensor]]:
            for request in requests:
                ahead.append(request)
                yield request

        for crops in stream.batches(noted(), self.views):
            step, numbers = ahead.pop(0)
            sent = [crop.to(self.device, non_blocking=True) for crop in crops]
            samples = _sent(numbers, self.device)
            finish = partial(finish_views, sent, self.views, seed=self.seed, step=step, samples=samples)
            yield _all_in_one_way(finish, output)

    def _packed(self, packed: Packed, requests: Requests, output: Output) -> Iterator[list[Tensor]]:
        for step, samples, images in self._looked_up(packed, requests):
            make = partial(make_views, images, self.views, seed=self.seed, step=step, samples=samples)
            yield _all_in_one_way(make, output)

    def _looked_up(self, packed: Packed, requests: Requests) -> Iterator[tuple[int, Tensor, Tensor]]:
        if self.resident is not None:
            for step, numbers in requests:
                samples = _sent(numbers, self.device)
                yield step, samples, self.resident[samples]
            return
        pixels = packed.tensor()
        if self.device.type == "cpu":
            for step, numbers in requests:
                yield step, numbers, pixels[numbers]
            return

        def read(request: tuple[int, Tensor]) -> tuple[int, Tensor, Tensor]:
            step, numbers = request
            return step, numbers, pixels[numbers].pin_memory()

        # One batch is read from the disk while the last one is worked on.
        with ThreadPoolExecutor(1) as reader:
            waiting = None
            for request in requests:
                coming = reader.submit(read, request)
                if waiting is not None:
                    yield self._on_device(*waiting.result())
                waiting = coming
            if waiting is not None:
                yield self._on_device(*waiting.result())

    def _on_device(self, step: int, numbers: Tensor, images: Tensor) -> tuple[int, Tensor, Tensor]:
        return step, _sent(numbers, self.device), images.to(self.device, non_blocking=True)


def make(
    source: Packed | Stream, views: Sequence[View | Noise], seed: int, device: torch.device
) -> tuple[Feed, str]:
    """Put images where they are fastest, and say where in words.

    Args:
        source: Packed images, or a stream.
        views: What to make of each image.
        seed: The run's seed.
        device: The training device.
    """
    resident, where = None, "streamed from the files"
    if isinstance(source, Packed):
        where = "packed"
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if source.pixels.nbytes < free / _SHARE:
                resident = source.tensor().to(device)
                where = f"packed, all on {device}"
    return Feed(source, views, seed, device, resident), where


def _all_in_one_way(make: Callable[..., list[Tensor]], output: Output) -> list[Tensor]:
    """Make a batch's views; where the compiler fails in between, make them once more without it.

    What is left half compiled differs in its last bits from what a resumed run makes.
    """
    tries = output.compiled and compiling.works()
    views = make(output=output)
    return make(output=replace(output, compiled=False)) if tries and not compiling.works() else views


def _sent(numbers: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda":
        return numbers.to(device)
    # From pinned memory the copy does not wait for what the GPU is doing.
    return numbers.pin_memory().to(device, non_blocking=True)
