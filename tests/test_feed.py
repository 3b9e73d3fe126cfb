"""A feed gives each step its own views, wherever the images come from and however far reading is ahead."""

import time
from collections.abc import Callable, Iterator
from multiprocessing import active_children

import numpy as np
import pytest
import torch
from short_runs import write_many_sizes
from torch import Tensor

from ssl_retrieval import feed
from ssl_retrieval.augment import Augment, Noise, Output, View, finish_views, make_views
from ssl_retrieval.feed import Feed
from ssl_retrieval.images import list_images
from ssl_retrieval.packed import Packed
from ssl_retrieval.streaming import Stream
from ssl_retrieval.types import ImageSet

SEED = 3
CPU = torch.device("cpu")
VIEWS = (View(Augment(crop_min=0.3, blur=0.5, solarize=0.2), 24), Noise(5), View(Augment(), 16))
OUTPUT = Output(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), memory_format=torch.channels_last)
REQUESTS = [(0, [0, 1, 2, 3]), (0, [5, 4]), (1, [7, 7, 0]), (6, [6]), (7, [1, 2, 3, 4, 5, 6, 7])]


def requests() -> Iterator[tuple[int, Tensor]]:
    return ((step, torch.tensor(numbers)) for step, numbers in REQUESTS)


@pytest.fixture(scope="module")
def packed() -> Packed:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 40, 40, 3), dtype=np.uint8)
    return Packed(pixels, tuple(f"{number}.png" for number in range(8)), ())


@pytest.fixture(scope="module")
def photos_of_many_sizes(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    root = write_many_sizes(tmp_path_factory.mktemp("feed") / "photos", 8)
    return ImageSet(root, tuple(list_images(root)))


def streamed(photos: ImageSet, num_workers: int) -> Feed:
    return Feed(Stream(photos, seed=SEED, num_workers=num_workers), VIEWS, SEED, CPU)


def assert_same(made: list[list[Tensor]], wanted: list[list[Tensor]]) -> None:
    assert len(made) == len(wanted) == len(REQUESTS)
    for views, expected in zip(made, wanted, strict=True):
        assert len(views) == len(expected) == len(VIEWS)
        for view, one in zip(views, expected, strict=True):
            assert view.dtype == torch.float32
            assert view.stride() == one.stride()
            assert torch.equal(view, one)


def made_of_pack(packed: Packed) -> list[list[Tensor]]:
    """The views of one request after the other, each with the rows it names."""
    return [
        make_views(
            torch.from_numpy(packed.pixels[numbers.numpy()]).permute(0, 3, 1, 2),
            VIEWS,
            seed=SEED,
            step=step,
            samples=numbers,
            output=OUTPUT,
        )
        for step, numbers in requests()
    ]


@pytest.mark.parametrize("resident", [False, True])
def test_packed_views_are_those_of_the_rows_asked_for(packed: Packed, resident: bool) -> None:
    pixels = packed.tensor().clone() if resident else None
    made = Feed(packed, VIEWS, SEED, CPU, pixels).batches(requests(), OUTPUT)
    assert_same(list(made), made_of_pack(packed))


def test_rows_that_a_thread_reads_ahead_come_in_order(
    packed: Packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The way of images that do not fit on a GPU, without one.
    def stay(self: Feed, step: int, numbers: Tensor, images: Tensor) -> tuple[int, Tensor, Tensor]:
        return step, numbers, images

    monkeypatch.setattr(Feed, "_on_device", stay)
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)
    far = Feed(packed, VIEWS, SEED, torch.device("meta"))
    assert_same(list(far.batches(requests(), OUTPUT)), made_of_pack(packed))
    assert list(far.batches(iter(()), OUTPUT)) == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_streamed_views_are_the_finished_crops_of_each_step_alone(
    photos_of_many_sizes: ImageSet, num_workers: int
) -> None:
    wanted = []
    for step, numbers in requests():
        (crops,) = Stream(photos_of_many_sizes, seed=SEED, num_workers=0).batches([(step, numbers)], VIEWS)
        wanted.append(finish_views(crops, VIEWS, seed=SEED, step=step, samples=numbers, output=OUTPUT))
    made = streamed(photos_of_many_sizes, num_workers).batches(requests(), OUTPUT)
    assert_same(list(made), wanted)


def test_noise_is_that_of_packed_images(packed: Packed, photos_of_many_sizes: ImageSet) -> None:
    # An objective that masks at random masks the same, however its images come.
    made = streamed(photos_of_many_sizes, 0).batches(requests(), OUTPUT)
    for views, others in zip(made, made_of_pack(packed), strict=True):
        assert torch.equal(views[1], others[1])


def test_a_stream_reads_ahead_and_ends_its_workers_when_it_is_closed(photos_of_many_sizes: ImageSet) -> None:
    asked: list[int] = []

    def endless() -> Iterator[tuple[int, Tensor]]:
        while True:
            asked.append(len(asked))
            yield asked[-1], torch.tensor([0, 1])

    batches = streamed(photos_of_many_sizes, 2).batches(endless(), OUTPUT)
    next(batches)
    assert len(asked) > 2
    assert len(active_children()) == 2
    batches.close()
    assert not active_children()


def test_a_stream_that_nobody_holds_ends_its_workers(photos_of_many_sizes: ImageSet) -> None:
    batches = streamed(photos_of_many_sizes, 2).batches(requests(), OUTPUT)
    next(batches)
    assert active_children()
    del batches
    wait_until(lambda: not active_children())


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_where_images_are_is_said(packed: Packed, photos_of_many_sizes: ImageSet) -> None:
    made, where = feed.make(packed, VIEWS, SEED, CPU)
    assert (made.resident, where) == (None, "packed")
    stream = Stream(photos_of_many_sizes, seed=SEED, num_workers=0)
    made, where = feed.make(stream, VIEWS, SEED, CPU)
    assert (made.resident, where) == (None, "streamed from the files")


@pytest.mark.parametrize(("free", "is_resident"), [(3 * 8 * 40 * 40 * 3, False), (10**6, True)])
def test_images_go_to_a_gpu_when_they_take_less_than_a_third_of_what_is_free(
    packed: Packed, monkeypatch: pytest.MonkeyPatch, free: int, is_resident: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
    monkeypatch.setattr(Tensor, "to", lambda self, device: self)
    made, where = feed.make(packed, VIEWS, SEED, torch.device("cuda", 0))
    assert (made.resident is not None) == is_resident
    assert where == ("packed, all on cuda:0" if is_resident else "packed")
