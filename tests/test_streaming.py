"""A stream gives what a plain loop over the photos gives, however the work is shared out."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from ssl_retrieval import images as images_module
from ssl_retrieval import streaming
from ssl_retrieval.augment import NUM_DRAWS, Augment, Noise, View
from ssl_retrieval.counter_random import uniform
from ssl_retrieval.crops import crop_boxes
from ssl_retrieval.errors import UserError
from ssl_retrieval.image_source import choose, free_bytes, sample_short_sides
from ssl_retrieval.images import load_image
from ssl_retrieval.streaming import Stream
from ssl_retrieval.types import ImageSet

SEED = 7
VIEWS = (
    View(Augment(crop_min=0.2), 24),
    Noise(5),
    View(Augment(crop_min=0.05, crop_max=0.3, interpolation="bicubic"), 16),
    View(Augment(crop_min=0.2), 40),
)
REQUESTS = [(step, torch.tensor(numbers)) for step, numbers in ((0, [0, 1, 2, 3]), (1, [5, 4, 4]), (9, [6]))]


def picture(width: int, height: int, seed: int) -> Image.Image:
    draw = np.random.default_rng(seed)
    shapes = Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    soft = np.asarray(shapes.resize((width, height), Image.Resampling.BICUBIC)).astype(float)
    return Image.fromarray(np.clip(soft + draw.normal(0, 6, soft.shape), 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def pngs(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """Eight photos of different shapes and modes, one of them turned; read only."""
    root = tmp_path_factory.mktemp("pngs")
    turned = Image.Exif()
    turned[0x0112] = 6
    sizes = [(90, 60), (60, 90), (64, 64), (200, 30), (12, 9), (70, 50), (50, 70), (1, 40)]
    for number, (width, height) in enumerate(sizes):
        mode = {2: "L", 6: "RGBA"}.get(number, "RGB")
        options: dict[str, Any] = {"exif": turned} if number == 1 else {}
        picture(width, height, number).convert(mode).save(root / f"{number}.png", **options)
    return ImageSet(root, tuple(f"{number}.png" for number in range(len(sizes))))


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """Seven large photos: grey, CMYK, turned, and one too small to be reduced."""
    root = tmp_path_factory.mktemp("jpegs")
    for number in range(7):
        turned = Image.Exif()
        turned[0x0112] = number if number in (5, 6) else 1
        size = (90, 70) if number == 3 else (603 + number, 441 - number)
        mode = {1: "L", 2: "CMYK"}.get(number, "RGB")
        picture(*size, number).convert(mode).save(root / f"{number}.jpg", quality=95, exif=turned)
    return ImageSet(root, tuple(f"{number}.jpg" for number in range(7)))


def stream(images: ImageSet, **options: Any) -> Stream:
    return Stream(images, **{"seed": SEED, "num_workers": 0} | options)


def by_hand(file: Path, step: int, number: int, place: int, view: View) -> Tensor:
    """One view, from a full decode, with torchvision."""
    pixels = torch.from_numpy(np.array(load_image(file))).permute(2, 0, 1)
    draws = uniform(SEED, step, torch.tensor([number]), place, NUM_DRAWS)[:, :30]
    scale = (view.augment.crop_min, view.augment.crop_max)
    height, width = pixels.shape[1:]
    ((top, left, height, width),) = crop_boxes(draws, height, width, scale).tolist()
    mode = InterpolationMode(view.augment.interpolation)
    side = [view.size, view.size]
    return tvf.resized_crop(pixels, top, left, height, width, side, interpolation=mode, antialias=True)


def expected(images: ImageSet, step: int, numbers: Tensor) -> list[Tensor]:
    return [
        torch.stack([by_hand(images.file(n), step, n, place, view) for n in numbers.tolist()])
        for place, view in enumerate(VIEWS)
        if isinstance(view, View)
    ]


def test_views_of_pngs_are_those_of_a_plain_loop(pngs: ImageSet) -> None:
    made = list(stream(pngs).batches(REQUESTS, VIEWS))
    assert len(made) == len(REQUESTS)
    for (step, numbers), views in zip(REQUESTS, made, strict=True):
        assert [view.shape[1:] for view in views] == [(3, 24, 24), (3, 16, 16), (3, 40, 40)]
        for view, wanted in zip(views, expected(pngs, step, numbers), strict=True):
            assert view.dtype == torch.uint8
            assert view.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(view, wanted)


def test_views_of_jpegs_are_near_those_of_a_plain_loop(
    jpegs: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    factors: list[int] = []

    def spy(*arguments: Any) -> int:
        factors.append(reduction(*arguments))
        return factors[-1]

    reduction = streaming._reduction
    monkeypatch.setattr(streaming, "_reduction", spy)
    differences: list[float] = []
    for (step, numbers), views in zip(REQUESTS, stream(jpegs).batches(REQUESTS, VIEWS), strict=True):
        for view, wanted in zip(views, expected(jpegs, step, numbers), strict=True):
            differences += (view.float() - wanted.float()).abs().mean(dim=(1, 2, 3)).tolist()
    # The edges of boxes move by up to half a pixel of the smaller decode.
    assert max(differences) < 6
    assert np.mean(differences) < 2.5
    assert len(factors) == 8
    assert {1, 4, 8} <= set(factors)


def test_a_reduced_photo_has_pixels_enough_and_no_more_than_needed() -> None:
    draw = torch.Generator().manual_seed(0)
    seen = set()
    for height, width in ((3000, 2000), (480, 640), (100, 100), (37, 2000)):
        for size in (8, 32, 96):
            views = [View(Augment(), size), View(Augment(), 2 * size)]
            for draws in torch.rand(20, 2, 30, generator=draw):
                boxes = [tuple(box) for box in crop_boxes(draws, height, width, (0.2, 1.0)).tolist()]
                factor = streaming._reduction(boxes, views, height, width)
                seen.add(factor)
                for tried in (factor, 2 * factor):
                    sides = [
                        (box[2 + i] / tried, view.size)
                        for box, view in zip(boxes, views, strict=True)
                        for i in (0, 1)
                    ]
                    if tried > 8 or tried == 1:
                        continue
                    # Rounding may move each side by a pixel.
                    if tried == factor:
                        assert all(side > least - 1 for side, least in sides)
                    else:
                        assert any(side < least + 1 for side, least in sides)
    assert seen == {1, 2, 4, 8}


def test_nothing_depends_on_workers_and_batches(pngs: ImageSet) -> None:
    numbers = torch.arange(40) % 8
    whole = [(3, numbers), (4, numbers.flip(0))]
    cut = [(step, part) for step, all_numbers in whole for part in all_numbers.split(9)]
    reference = [torch.cat(views) for views in zip(*stream(pngs).batches(whole, VIEWS), strict=True)]
    for num_workers, requests in ((0, cut), (1, whole), (2, whole), (2, cut)):
        made = list(stream(pngs, num_workers=num_workers).batches(iter(requests), VIEWS))
        assert len(made) == len(requests)
        for views, wanted in zip(zip(*made, strict=True), reference, strict=True):
            assert all(view.is_contiguous(memory_format=torch.channels_last) for view in views)
            assert torch.equal(torch.cat(views), wanted)


def test_another_seed_step_and_view_give_other_crops(pngs: ImageSet) -> None:
    same_place = torch.tensor([2])
    first, second = (views for views in stream(pngs).batches([(0, same_place), (1, same_place)], VIEWS))
    assert not torch.equal(first[0], second[0])
    other = next(stream(pngs, seed=8).batches([(0, same_place)], VIEWS))
    assert not torch.equal(first[0], other[0])
    twice = next(stream(pngs).batches([(0, same_place)], [VIEWS[0], VIEWS[0]]))
    assert torch.equal(twice[0], first[0])
    assert not torch.equal(twice[0], twice[1])


def test_the_generator_of_dropout_is_left_alone(pngs: ImageSet) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(stream(pngs).batches(REQUESTS[:1], VIEWS))
    assert torch.equal(torch.get_rng_state(), before)


def test_requests_without_end_are_read_a_little_ahead(pngs: ImageSet) -> None:
    asked: list[int] = []

    def endless() -> Iterable[tuple[int, Tensor]]:
        while True:
            asked.append(len(asked))
            yield asked[-1], torch.tensor([0, 1])

    batches = stream(pngs, num_workers=2).batches(endless(), VIEWS)
    for step in range(3):
        assert torch.equal(next(batches)[0], expected(pngs, step, torch.tensor([0, 1]))[0])
    assert len(asked) < 12


# Broken photos


def copied(images: ImageSet, root: Path) -> ImageSet:
    for path in images.paths:
        (root / path).write_bytes(images.file(images.paths.index(path)).read_bytes())
    return ImageSet(root, images.paths)


def test_photos_with_unreadable_headers_are_left_out_at_the_start(pngs: ImageSet, tmp_path: Path) -> None:
    photos = copied(pngs, tmp_path)
    (tmp_path / "1.png").write_bytes(b"")
    (tmp_path / "5.png").write_text("no image")
    made = stream(photos)
    assert made.paths == tuple(f"{number}.png" for number in (0, 2, 3, 4, 6, 7))
    assert made.skipped == [("1.png", "empty file (0 bytes)"), ("5.png", "not an image")]
    views = next(made.batches([(0, torch.tensor([1]))], VIEWS))
    assert torch.equal(views[0][0], by_hand(pngs.file(2), 0, 1, 0, VIEWS[0]))
    with pytest.raises(UserError, match=r"1\.png': empty file"):
        stream(photos, on_error="fail")
    for path in photos.paths:
        (tmp_path / path).write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the 8 images .* can be read"):
        stream(photos)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_photo_that_proves_damaged_is_replaced_by_the_next(
    pngs: ImageSet, tmp_path: Path, num_workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = copied(pngs, tmp_path)
    for path in ("0.png", "7.png"):
        (tmp_path / path).write_bytes((tmp_path / path).read_bytes()[:60])
    made = stream(photos, num_workers=num_workers)
    assert made.skipped == []
    requests = [(step, torch.tensor([7, 2, 0])) for step in range(3)]
    for (step, _), views in zip(requests, made.batches(requests, VIEWS), strict=True):
        # After the last comes the first, which is damaged too.
        for row, (number, taken) in enumerate(((7, 1), (2, 2), (0, 1))):
            assert torch.equal(views[0][row], by_hand(pngs.file(taken), step, number, 0, VIEWS[0]))
    assert [path for path, _ in made.skipped] == ["7.png", "0.png"]
    assert all(reason.startswith("truncated") for _, reason in made.skipped)
    assert capsys.readouterr().err.count("the next image takes its place") == 2
    with pytest.raises(UserError, match=r"7\.png': truncated"):
        list(stream(photos, num_workers=num_workers, on_error="fail").batches(requests, VIEWS))


def test_a_disk_that_goes_away_ends_the_stream(pngs: ImageSet, tmp_path: Path) -> None:
    photos = copied(pngs, tmp_path)
    made = stream(photos)
    for path in photos.paths:
        (tmp_path / path).unlink()
    with pytest.raises(UserError, match=r"8 images in a row cannot be read, the first '2\.png' \(file does"):
        next(made.batches([(0, torch.tensor([2, 3]))], VIEWS))


def test_the_key_follows_names_and_file_sizes(pngs: ImageSet, tmp_path: Path) -> None:
    photos = copied(pngs, tmp_path)
    key = stream(photos).key
    assert key == stream(pngs).key
    assert stream(photos.take(np.arange(7))).key != key
    same_size = (tmp_path / "3.png").read_bytes()[:-1] + b"\0"
    (tmp_path / "3.png").write_bytes(same_size)
    assert stream(photos).key == key
    (tmp_path / "3.png").write_bytes(same_size + b"\0")
    assert stream(photos).key != key


# The choice


def test_packed_where_a_quarter_of_the_free_memory_is_enough() -> None:
    needed = 1000 * 100 * 100 * 3
    assert choose("auto", 1000, 100, 96, [500], 4 * needed)[0] == "packed"
    source, reason = choose("auto", 1000, 100, 96, [400, 600, 5000], 4 * needed - 1)
    assert source == "stream"
    for part in ("1000 images at 100 px", "0.03 GB", "0.12 GB free", "600 px", "96 px"):
        assert part in reason
    assert "photos" not in choose("auto", 1000, 100, 96, [], 10)[1]
    for wish in ("packed", "stream"):
        for free in (1, 10**12):
            assert choose(wish, 1000, 100, 96, [], free) == (wish, "as asked for")


def test_few_headers_are_looked_at(pngs: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sample_short_sides(pngs) == [60, 60, 64, 30, 9, 50, 50, 1]
    looked: list[Path] = []

    def look(path: Path) -> tuple[int, int]:
        looked.append(path)
        return 30, 20

    monkeypatch.setattr(images_module, "header_size", look)
    assert sample_short_sides(ImageSet(tmp_path, tuple(f"{i}.png" for i in range(5000)))) == [20] * 200
    assert {tmp_path / "0.png", tmp_path / "4999.png"} <= set(looked)


def test_free_bytes_are_those_of_the_smaller_of_memory_and_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssl_retrieval import image_source

    assert free_bytes(tmp_path / "not" / "yet") > 10**6
    monkeypatch.setattr(image_source, "_free_memory", lambda: 5)
    assert free_bytes(tmp_path) == 5
