"""Poolings of maps against loops that spell out the papers' formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ssl_retrieval import pooling, regions
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import FloatArray

MAPS = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
SIZES = [(1, 1), (1, 6), (6, 1), (2, 2), (3, 4), (5, 5), (7, 7), (7, 12), (31, 20)]

some_maps = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)),
    elements=st.floats(-100, 100, width=32),
)


def maps_of(height: int, width: int, channels: int = 4, count: int = 3) -> torch.Tensor:
    """Half of the values 0, as after a ReLU."""
    generator = torch.Generator().manual_seed(height * 100 + width)
    return torch.randn(count, channels, height, width, generator=generator).clamp(min=0)


def unit(vector: FloatArray) -> FloatArray:
    length = np.sqrt((vector**2).sum())
    return vector / length if length > 0 else vector


def values_at(maps: torch.Tensor, image: int, channel: int) -> list[float]:
    return [float(value) for row in maps[image, channel] for value in row]


def test_avg_is_the_mean_over_positions() -> None:
    for image in range(2):
        for channel in range(3):
            values = values_at(MAPS, image, channel)
            assert pooling.avg(MAPS)[image, channel].item() == pytest.approx(sum(values) / 20, abs=1e-6)


def test_mac_is_the_maximum_over_positions() -> None:
    for image in range(2):
        for channel in range(3):
            assert pooling.mac(MAPS)[image, channel].item() == max(values_at(MAPS, image, channel))


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, 4.5])
def test_gem_is_the_generalised_mean_over_positions(p: float) -> None:
    for image in range(2):
        for channel in range(3):
            values = [max(value, 1e-6) for value in values_at(MAPS, image, channel)]
            expected = (sum(value**p for value in values) / 20) ** (1 / p)
            assert pooling.gem(MAPS, p=p)[image, channel].item() == pytest.approx(expected, rel=1e-5)


def test_gem_with_p_1_is_the_average_of_the_cut_activations() -> None:
    torch.testing.assert_close(pooling.gem(MAPS, p=1.0), pooling.avg(MAPS.clamp(min=1e-6)))


def test_gem_grows_with_p_towards_the_maximum() -> None:
    maps = MAPS.abs() + 0.1
    largest = maps.amax(dim=(2, 3))
    pooled = [pooling.gem(maps, p=p) for p in (1.0, 3.0, 10.0, 60.0)]
    for lower, higher in zip(pooled, [*pooled[1:], largest], strict=True):
        assert (lower <= higher + 1e-5).all()
    torch.testing.assert_close(pooled[-1], largest, rtol=0.06, atol=0)


def test_gem_of_nothing_active_is_tiny_and_has_a_finite_gradient() -> None:
    maps = torch.full((1, 2, 3, 3), -5.0, requires_grad=True)
    pooled = pooling.gem(maps)
    pooled.sum().backward()
    assert maps.grad is not None
    assert torch.isfinite(maps.grad).all()
    torch.testing.assert_close(pooled, torch.full((1, 2), 1e-6))


@pytest.mark.parametrize("size", SIZES)
def test_spoc_is_a_sum_under_a_gaussian_around_the_centre(size: tuple[int, int]) -> None:
    height, width = size
    maps = maps_of(height, width).numpy().astype(np.float64)
    # The distance from the centre to the nearest border, in cells, is half the shorter side.
    sigma = min(height / 2, width / 2) / 3
    expected = np.zeros(maps.shape[:2])
    for row in range(height):
        for column in range(width):
            distance = (row + 0.5 - height / 2) ** 2 + (column + 0.5 - width / 2) ** 2
            expected += maps[:, :, row, column] * math.exp(-distance / (2 * sigma**2))
    np.testing.assert_allclose(pooling.spoc(maps_of(height, width)).numpy(), expected, rtol=1e-5, atol=1e-6)


def naive_crow(maps: FloatArray) -> FloatArray:
    """One image, [C, H, W], as in the paper: S, then I."""
    channels, height, width = maps.shape
    total = maps.sum(axis=0)
    norm = (total**2).sum() ** (1 / 2)
    spatial = (total / norm) ** (1 / 2) if norm > 0 else total
    nonzero = [np.count_nonzero(maps[k]) / (height * width) for k in range(channels)]
    expected = np.zeros(channels)
    for k in range(channels):
        weight = math.log((channels * 1e-6 + sum(nonzero)) / (1e-6 + nonzero[k]))
        expected[k] = weight * sum(spatial[i, j] * maps[k, i, j] for i in range(height) for j in range(width))
    return expected


@pytest.mark.parametrize("size", SIZES)
def test_crow_weighs_positions_and_channels(size: tuple[int, int]) -> None:
    maps = maps_of(*size)
    maps[0, 0] = 0
    expected = np.stack([naive_crow(image) for image in maps.numpy().astype(np.float64)])
    np.testing.assert_allclose(pooling.crow(maps).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_crow_takes_negative_activations_for_none() -> None:
    torch.testing.assert_close(pooling.crow(MAPS), pooling.crow(MAPS.clamp(min=0)))


def published_grid(height: int, width: int, levels: int = 3) -> list[tuple[int, int, int]]:
    """What the authors of R-MAC publish in Matlab, in exact arithmetic but otherwise step by step."""
    steps = np.array([2, 3, 4, 5, 6, 7])
    w = min(width, height)
    b = (max(height, width) - w) / (steps - 1)
    index = int(np.argmin(np.abs((w**2 - w * b) / w**2 - 0.4))) + 1
    more_right = index if height < width else 0
    more_down = index if height > width else 0
    found = []
    for level in range(1, levels + 1):
        side = math.floor(2 * w / (level + 1))
        half = math.floor(side / 2 - 1)
        centres = []
        for size, count in ((height, level + more_down), (width, level + more_right)):
            gaps = max(1, count - 1)
            centres.append(
                [math.floor((half * gaps + k * (size - side)) / gaps) - half for k in range(count)]
            )
        found += [(top, left, side) for top in centres[0] for left in centres[1] if side > 0]
    return found


@pytest.mark.parametrize("size", [*SIZES, (32, 24), (24, 32), (10, 90), (13, 14), (64, 48)])
def test_regions_are_the_papers(size: tuple[int, int]) -> None:
    found = regions.grid(*size)
    assert [tuple(region) for region in found] == published_grid(*size)
    for top, left, side in found:
        assert min(top, left) >= 0
        assert side >= 1
        assert top + side <= size[0]
        assert left + side <= size[1]


def test_regions_of_maps_that_are_known_by_heart() -> None:
    assert [len(regions.grid(side, side)) for side in (7, 14, 32)] == [14, 14, 14]
    # A photo of 4 : 3: two largest squares, then 2 × 3 and 3 × 4.
    assert len(regions.grid(24, 32)) == 2 + 6 + 12
    assert len(regions.grid(32, 24)) == 20
    assert regions.grid(1, 1) == [(0, 0, 1)]
    assert len(regions.grid(7, 7, levels=1)) == 1


@given(st.integers(1, 40), st.integers(1, 40))
def test_regions_reach_all_borders_and_turn_with_the_map(height: int, width: int) -> None:
    found = regions.grid(height, width)
    assert min(region.top for region in found) == min(region.left for region in found) == 0
    if max(height, width) <= 3 * min(height, width):
        assert max(region.top + region.side for region in found) == height
        assert max(region.left + region.side for region in found) == width
    assert {(left, top, side) for top, left, side in found} == set(regions.grid(width, height))


@pytest.mark.parametrize("size", SIZES)
def test_rmac_sums_the_normalised_maxima_of_regions(size: tuple[int, int]) -> None:
    maps = maps_of(*size).numpy().astype(np.float64)
    expected = np.zeros(maps.shape[:2])
    for image in range(len(maps)):
        for top, left, side in published_grid(*size):
            largest = maps[image, :, top : top + side, left : left + side].max(axis=(1, 2))
            expected[image] += unit(largest)
    np.testing.assert_allclose(regions.rmac(maps_of(*size)).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_rmac_whitens_each_region_before_the_sum() -> None:
    generator = np.random.default_rng(0)
    mean, matrix = generator.normal(size=4), generator.normal(size=(2, 4))
    maps = maps_of(5, 7).numpy().astype(np.float64)
    expected = np.zeros((3, 2))
    for image in range(3):
        for top, left, side in published_grid(5, 7):
            region = unit(maps[image, :, top : top + side, left : left + side].max(axis=(1, 2)))
            expected[image] += unit(matrix @ (region - mean))
    whitening = regions.Whitening(*(torch.from_numpy(values).float() for values in (mean, matrix)))
    np.testing.assert_allclose(regions.rmac(maps_of(5, 7), whitening).numpy(), expected, rtol=1e-4, atol=1e-5)


def picture(*rows: str) -> torch.Tensor:
    """A map of one channel; ``.`` = 0."""
    return torch.tensor([[0.0 if cell == "." else float(cell) for cell in row] for row in rows])


def test_scda_keeps_the_largest_of_two_objects() -> None:
    shown = picture(
        "99....",
        "99....",
        "....4.",
        "...454",
        "....4.",
    )
    maps = torch.stack([shown, shown * 0.5, shown.flip(1)])[None]
    maps[:, 2] = 0
    mask = pooling.object_mask(maps)[0]
    assert mask.tolist() == (picture("......", "......", "....1.", "...111", "....1.") > 0).tolist()
    expected = np.concatenate([unit(np.array([4.2, 2.1, 0])), unit(np.array([5, 2.5, 0]))])
    np.testing.assert_allclose(pooling.scda(maps)[0].numpy(), expected, rtol=1e-5)


def naive_mask(maps: FloatArray) -> list[tuple[int, int]]:
    """Flood fill of one image, [C, H, W]."""
    total = maps.sum(axis=0)
    above = {(int(i), int(j)) for i, j in zip(*np.nonzero(total > total.mean()), strict=True)}
    best: list[tuple[int, int]] = []
    while above:
        seed = min(above)
        waiting, group = [seed], []
        above.remove(seed)
        while waiting:
            i, j = waiting.pop()
            group.append((i, j))
            near = {(i + di, j + dj) for di in (-1, 0, 1) for dj in (-1, 0, 1)} & above
            above -= near
            waiting += near
        if len(group) > len(best):
            best = group
    return best or [(i, j) for i in range(total.shape[0]) for j in range(total.shape[1])]


@pytest.mark.parametrize("size", [*SIZES, (15, 15)])
def test_scda_against_a_flood_fill(size: tuple[int, int]) -> None:
    maps = maps_of(*size, count=6)
    for image, found in zip(maps.numpy().astype(np.float64), pooling.scda(maps).numpy(), strict=True):
        chosen = np.stack([image[:, i, j] for i, j in naive_mask(image)])
        expected = np.concatenate([unit(chosen.mean(axis=0)), unit(chosen.max(axis=0))])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_the_objects_of_several_images_do_not_touch() -> None:
    left, right = picture("9..", "9..", "..."), picture("...", "...", "..9")
    mask = pooling.object_mask(torch.stack([left, right])[:, None])
    assert mask.sum(dim=(1, 2)).tolist() == [2, 1]


def test_of_objects_of_one_size_the_first_counts() -> None:
    mask = pooling.object_mask(picture("9.5", "...", "5.9")[None, None])
    assert mask[0].nonzero().tolist() == [[0, 0]]


EACH = sorted(pooling.POOLINGS)


@pytest.mark.parametrize("name", EACH)
@given(maps=some_maps)
def test_pooled_values_are_finite_and_one_row_per_image(name: str, maps: np.ndarray) -> None:
    pooled = pooling.POOLINGS[name](torch.from_numpy(maps))
    assert pooled.shape == (len(maps), maps.shape[1] * (2 if name == "scda" else 1))
    assert pooled.dtype == torch.float32
    assert torch.isfinite(pooled).all()


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("value", [0.0, -3.0, 2.0])
def test_uniform_maps_are_no_trouble(name: str, value: float) -> None:
    pooled = pooling.POOLINGS[name](torch.full((2, 3, 4, 5), value))
    assert torch.isfinite(pooled).all()
    assert torch.equal(pooled[0], pooled[1])


@given(some_maps, st.randoms(use_true_random=False))
def test_some_do_not_care_where_things_are(maps: np.ndarray, random: object) -> None:
    height, width = maps.shape[2:]
    order = list(range(height * width))
    random.shuffle(order)  # type: ignore[attr-defined]
    moved = torch.from_numpy(maps).flatten(2)[:, :, order].view(*maps.shape)
    for name in ("avg", "mac", "gem", "crow", "mean"):
        pool = pooling.POOLINGS[name]
        torch.testing.assert_close(pool(moved), pool(torch.from_numpy(maps)), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", EACH)
def test_all_see_the_mirror_image_alike(name: str) -> None:
    # A region that starts between two cells is rounded to the left, so not every width would do for R-MAC.
    maps = maps_of(7, 7)
    torch.testing.assert_close(pooling.POOLINGS[name](maps.flip(3)), pooling.POOLINGS[name](maps))


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("factor", [0.25, 8.0])
def test_the_contrast_changes_the_length_only(name: str, factor: float) -> None:
    maps = maps_of(5, 6) + 0.01
    pooled = [pooling.POOLINGS[name](scaled) for scaled in (maps, maps * factor)]
    directions = [torch.nn.functional.normalize(vectors, dim=1) for vectors in pooled]
    torch.testing.assert_close(directions[1], directions[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EACH)
def test_images_do_not_see_each_other(name: str) -> None:
    maps = maps_of(7, 7, count=5).contiguous(memory_format=torch.channels_last)
    alone = torch.cat([pooling.POOLINGS[name](image[None]) for image in maps])
    torch.testing.assert_close(alone, pooling.POOLINGS[name](maps), rtol=1e-5, atol=1e-6)


def test_poolings_by_name() -> None:
    assert pooling.parse("gem") == ("gem",)
    assert pooling.parse("cls+gem + model") == ("cls", "gem", "model")
    for wrong in ("gme", "avg+gme", "avg+", ""):
        with pytest.raises(UserError, match=r"use one of model, avg, mac, spoc, .*joined by \+") as caught:
            pooling.parse(wrong)
        assert f"model.pool={wrong!r}" in str(caught.value)
