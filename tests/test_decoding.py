"""Batches come in order, whoever decodes them, and name what could not be read."""

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from made_up_photos import photo
from PIL import Image
from torch import Tensor

from ssl_retrieval import decoding, images
from ssl_retrieval.decoding import Batch, Decoded
from ssl_retrieval.network_input import InputSpec
from ssl_retrieval.types import ImageSet

SPEC = InputSpec(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
BROKEN = {0: "empty file (0 bytes)", 3: "not an image", 4: "not an image", 5: "not an image"}


@pytest.fixture(scope="module")
def image_set(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """Eleven pictures, of which four cannot be read: the first, and all of 3 to 5."""
    root = tmp_path_factory.mktemp("pictures")
    names = tuple(f"{number}.png" for number in range(11))
    for number, name in enumerate(names):
        photo((20 * number, 100, 50), number, (24 + number, 20)).save(root / name)
    for number, reason in BROKEN.items():
        (root / names[number]).write_bytes(b"" if "empty" in reason else b"a text")
    return ImageSet(root, names)


def beside(decoded: Decoded) -> Iterator[Batch]:
    return decoding.ahead(decoded, 3, num_workers=2, pin=False)


def in_turn(decoded: Decoded) -> Iterator[Batch]:
    return decoding.by_turns(decoded, 3)


WAYS = pytest.mark.parametrize("way", [beside, in_turn])
Way = Callable[[Decoded], Iterator[Batch]]


@WAYS
def test_batches_are_complete_in_order_and_laid_out(way: Way, image_set: ImageSet) -> None:
    numbers: list[list[int]] = []
    reasons: dict[int, str] = {}
    for batch in way(Decoded(image_set, np.arange(11), SPEC.pixels, None)):
        numbers.append(batch.numbers)
        reasons |= batch.reasons
        if batch.inputs is None:
            assert batch.numbers == []
            continue
        assert batch.inputs.dtype == torch.uint8
        assert batch.inputs.is_contiguous(memory_format=torch.channels_last)
        for number, row in zip(batch.numbers, batch.inputs, strict=True):
            assert torch.equal(row, SPEC.pixels(images.load_image(image_set.file(number))))
    assert numbers == [[1, 2], [], [6, 7, 8], [9, 10]]
    assert reasons == BROKEN


@WAYS
def test_only_the_images_that_were_asked_for_are_decoded(way: Way, image_set: ImageSet) -> None:
    decoded = Decoded(image_set, np.array([10, 2, 7, 1]), SPEC.pixels, None)
    assert [batch.numbers for batch in way(decoded)] == [[10, 2, 7], [1]]
    assert list(way(Decoded(image_set, np.empty(0, np.int64), SPEC.pixels, None))) == []


def mean_colour(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image, np.float32).mean((0, 1)))


def test_vectors_are_stacked_as_they_are(image_set: ImageSet) -> None:
    (batch,) = decoding.by_turns(Decoded(image_set, np.array([1, 2]), mean_colour, 8), 5)
    assert batch.inputs is not None
    assert batch.inputs.dtype == torch.float32
    expected = [mean_colour(images.shrink(images.load_image(image_set.file(n)), 8)) for n in (1, 2)]
    assert torch.equal(batch.inputs, torch.stack(expected))


def test_decoding_uses_as_many_threads_as_the_network(
    image_set: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    both = threading.Barrier(2)

    def meet(image: Image.Image) -> Tensor:
        both.wait(timeout=20)  # breaks unless two are here at once
        return mean_colour(image)

    (batch,) = decoding.by_turns(Decoded(image_set, np.array([1, 2, 6, 7]), meet, None), 4)
    assert batch.numbers == [1, 2, 6, 7]


def test_a_batch_is_decoded_only_when_it_is_asked_for(image_set: ImageSet) -> None:
    seen: list[int] = []

    def note(image: Image.Image) -> Tensor:
        seen.append(image.width)
        return mean_colour(image)

    batches = decoding.by_turns(Decoded(image_set, np.array([1, 2, 6, 7]), note, None), 2)
    next(batches)
    assert sorted(seen) == [25, 26]
    next(batches)
    assert sorted(seen) == [25, 26, 30, 31]
