"""Global hand-crafted features against naive loops, and the invariances that their papers claim."""

import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_photos import photo
from numpy.typing import NDArray
from PIL import Image
from scipy import stats
from skimage.color import rgb2hsv, rgb2lab
from skimage.feature import hog as skimage_hog

from ssl_retrieval.errors import UserError
from ssl_retrieval.extractors.color_moments import moments

NAMES = ("color_histogram", "color_moments", "hog", "lbp", "gist")


def extractor(name: str, **options: object) -> Any:
    module = importlib.import_module(f"ssl_retrieval.extractors.{name}")
    return module.Extractor(module.Config(**options))


def vector(name: str, image: Image.Image, **options: object) -> NDArray[np.float32]:
    made: NDArray[np.float32] = extractor(name, **options).preprocess(image).numpy()
    return made


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def grey_image(values: NDArray[Any]) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def cosine(first: NDArray[Any], second: NDArray[Any]) -> float:
    return float(first @ second / (np.linalg.norm(first) * np.linalg.norm(second)))


# All of them


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(1, 1), (2, 300), (20000, 20), (20, 20000), (32, 32), (33, 47)])
def test_any_size_gives_a_finite_vector_of_its_dimension(name: str, size: tuple[int, int]) -> None:
    feature = extractor(name)
    made = feature.preprocess(photo((200, 90, 30), 1, size))
    assert made.shape == (feature.dim,)
    assert made.dtype == torch.float32
    assert torch.isfinite(made).all()


@pytest.mark.parametrize(
    ("name", "options", "dim"),
    [
        ("color_moments", {}, 81),
        ("color_moments", {"grid": 1}, 9),
        ("hog", {}, 1764),
        ("hog", {"size": 128}, 8100),
        ("hog", {"size": 16}, 36),
        ("lbp", {}, 54),
        ("lbp", {"radii": [2], "grid": 3}, 162),
        ("gist", {}, 512),
        ("gist", {"size": 96, "grid": 3}, 288),
    ],
)
def test_the_dimension_follows_the_options(name: str, options: dict[str, Any], dim: int) -> None:
    feature = extractor(name, **options)
    assert feature.dim == dim
    batch = torch.stack([feature.preprocess(noise(50, 70, seed)) for seed in range(2)])
    assert feature(batch).shape == (2, dim)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("color_moments", {"grid": 0}, r"model\.grid=0: colour moments need 1 to 16"),
        ("color_moments", {"grid": 17}, r"model\.grid=17"),
        ("hog", {"size": 8}, r"model\.size=8: HOG needs a multiple of 8"),
        ("hog", {"size": 60}, r"model\.size=60"),
        ("hog", {"size": 520}, r"model\.size=520"),
        ("lbp", {"radii": []}, r"model\.radii=\[\]: LBP needs one radius"),
        ("lbp", {"radii": [1, 0]}, r"model\.radii=\[1, 0\]"),
        ("lbp", {"radii": [9]}, r"model\.radii=\[9\]"),
        ("lbp", {"grid": 0}, r"model\.grid=0: LBP"),
        ("lbp", {"size": 8}, r"model\.size=8: LBP"),
        ("gist", {"grid": 0}, r"model\.grid=0: GIST"),
        ("gist", {"size": 24}, r"model\.size=24: GIST needs a multiple of 16"),
        ("gist", {"size": 128, "grid": 5}, r"4 times model\.grid=5"),
        ("gist", {"size": 1024}, r"model\.size=1024"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_line(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        extractor(name, **options)
    assert "\n" not in str(caught.value)


# Colour histogram


@pytest.mark.parametrize("bins", [1, 5, 8])
def test_the_colour_histogram_is_that_of_a_naive_loop(bins: int) -> None:
    image = photo((40, 160, 90), 3, (31, 23))
    hsv = np.asarray(image.convert("HSV"))
    counts = np.zeros((bins, bins, bins))
    for row in hsv:
        for h, s, v in row:
            counts[int(h) * bins // 256, int(s) * bins // 256, int(v) * bins // 256] += 1
    wanted = np.sqrt(counts / counts.sum()).ravel()
    np.testing.assert_allclose(vector("color_histogram", image, bins=bins), wanted, rtol=1e-6)


def test_pillow_has_the_hue_and_saturation_of_skimage() -> None:
    image = noise(40, 40)
    own = np.asarray(image.convert("HSV")) / 255.0
    other = rgb2hsv(np.asarray(image))
    turn = np.abs(own[..., 0] - other[..., 0])
    assert np.minimum(turn, 1 - turn).max() < 0.01
    np.testing.assert_allclose(own[..., 1:], other[..., 1:], atol=0.01)


# Colour moments


@pytest.mark.parametrize("grid", [1, 2, 3])
def test_colour_moments_are_those_of_scipy(grid: int) -> None:
    image = noise(32 * grid, 32 * grid)
    lab = rgb2lab(np.asarray(image)) / (100, 50, 50)
    wanted = []
    for row in range(grid):
        for column in range(grid):
            for channel in range(3):
                cell = lab[row * 32 : (row + 1) * 32, column * 32 : (column + 1) * 32, channel].ravel()
                third = stats.skew(cell) * np.std(cell) ** 3
                wanted += [np.mean(cell), np.std(cell), np.cbrt(third)]
    np.testing.assert_allclose(vector("color_moments", image, grid=grid), wanted, atol=2e-4)


def test_colour_moments_do_not_see_where_in_a_cell_a_colour_is() -> None:
    values = np.asarray(noise(32, 32)).reshape(-1, 3)
    shuffled = np.random.default_rng(1).permutation(values).reshape(32, 32, 3)
    first, second = (
        vector("color_moments", Image.fromarray(pixels), grid=1)
        for pixels in (values.reshape(32, 32, 3), shuffled)
    )
    np.testing.assert_allclose(second, first, atol=1e-5)


def test_colour_moments_see_in_which_cell_a_colour_is() -> None:
    values = np.asarray(photo((250, 20, 20), 2, (64, 64)))
    image, mirrored = Image.fromarray(values), Image.fromarray(values[:, ::-1].copy())
    made, other = (vector("color_moments", picture, grid=2).reshape(2, 2, 9) for picture in (image, mirrored))
    np.testing.assert_allclose(other, made[:, ::-1], atol=1e-5)
    assert not np.allclose(other, made, atol=1e-2)


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=30), st.floats(-1, 1), st.floats(0.1, 4))
def test_moments_move_and_stretch_with_the_values(values: list[float], offset: float, factor: float) -> None:
    given_values = np.array(values, dtype=np.float64)
    mean, spread, skewness = moments(given_values)  # type: ignore[arg-type]
    other = moments(factor * given_values + offset)  # type: ignore[arg-type]
    wanted = (factor * mean + offset, factor * spread, factor * skewness)
    # A cube root turns rounding of 1e-16 into 1e-5.
    np.testing.assert_allclose(other, wanted, atol=5e-5)


def test_a_uniform_image_has_a_mean_and_nothing_else_and_black_has_nothing() -> None:
    made = vector("color_moments", Image.new("RGB", (40, 30), (200, 30, 60)), grid=2).reshape(4, 3, 3)
    wanted = rgb2lab(np.array([[[200, 30, 60]]], dtype=np.uint8))[0, 0] / (100, 50, 50)
    np.testing.assert_allclose(made[..., 0], np.tile(wanted, (4, 1)), atol=1e-4)
    np.testing.assert_allclose(made[..., 1:], 0, atol=1e-5)
    assert not vector("color_moments", Image.new("RGB", (40, 30))).any()


# HOG


def naive_hog(values: NDArray[Any], cell: int = 8) -> NDArray[np.float64]:
    """Cells of 8 pixels, 9 orientations, blocks of 2 × 2, L2-Hys, for a grey image."""
    side = len(values) // cell
    cells = np.zeros((side, side, 9))
    for y in range(side * cell):
        for x in range(side * cell):
            dy = values[y + 1, x] - values[y - 1, x] if 0 < y < len(values) - 1 else 0.0
            dx = values[y, x + 1] - values[y, x - 1] if 0 < x < len(values) - 1 else 0.0
            degrees = math.degrees(math.atan2(dy, dx)) % 180
            cells[y // cell, x // cell, int(degrees // 20) % 9] += math.hypot(dx, dy) / cell**2
    blocks = []
    for row in range(side - 1):
        for column in range(side - 1):
            block = cells[row : row + 2, column : column + 2].ravel()
            block = np.minimum(block / math.sqrt((block**2).sum() + 1e-10), 0.2)
            blocks.append(block / math.sqrt((block**2).sum() + 1e-10))
    return np.concatenate(blocks)


def made_up_gradients(size: int) -> NDArray[np.float64]:
    """Waves of many directions, none of which lies on the border between two bins."""
    y, x = np.mgrid[:size, :size] / size
    return np.rint(127 + 60 * np.sin(9 * x + 4 * y**2) + 60 * np.cos(7.3 * y - 5 * x * y))


def test_hog_is_that_of_a_naive_loop() -> None:
    values = made_up_gradients(64)
    np.testing.assert_allclose(vector("hog", grey_image(values)), naive_hog(values), atol=1e-3)


def test_hog_is_that_of_skimage_where_nothing_is_resized() -> None:
    image = noise(64, 64)
    wanted = skimage_hog(np.asarray(image), 9, (8, 8), (2, 2), channel_axis=2)
    np.testing.assert_allclose(vector("hog", image), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("slope", "orientation"),
    [((2, 0), 0), ((2, 1), 1), ((1, 1), 2), ((1, 2), 3), ((0, 2), 4), ((-1, 2), 5), ((-2, 1), 7)],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_hog_finds_the_direction_of_a_slope_whichever_way_it_goes(
    slope: tuple[int, int], orientation: int, sign: int
) -> None:
    y, x = np.mgrid[:64, :64]
    values = sign * (slope[0] * x + slope[1] * y)
    made = vector("hog", grey_image(values - values.min())).reshape(7, 7, 4, 9)
    inner = made[1:-1, 1:-1].sum(axis=(0, 1, 2))
    assert np.flatnonzero(inner).tolist() == [orientation]


def test_hog_does_not_see_brightness_and_contrast() -> None:
    values = made_up_gradients(64) // 2
    first = vector("hog", grey_image(values))
    np.testing.assert_allclose(vector("hog", grey_image(values + 60)), first, atol=1e-5)
    np.testing.assert_allclose(vector("hog", grey_image(values * 2)), first, atol=1e-4)


@pytest.mark.parametrize("name", ["hog", "gist"])
@pytest.mark.parametrize("size", [(1, 1), (64, 64), (90, 31)])
@pytest.mark.parametrize("grey", [0, 77, 255])
def test_without_an_edge_there_is_no_feature(name: str, size: tuple[int, int], grey: int) -> None:
    assert not vector(name, Image.new("RGB", size, (grey, grey, grey))).any()


# LBP


def naive_lbp(values: NDArray[Any], radius: int) -> NDArray[np.float64]:
    """Hellinger histogram of rotation-invariant uniform patterns with 8·R points."""
    points = 8 * radius
    height, width = values.shape
    counts = np.zeros(points + 2)
    for y in range(radius, height - radius):
        for x in range(radius, width - radius):
            lighter = []
            for point in range(points):
                turn = 2 * math.pi * point / points
                at_y = round(y - radius * math.sin(turn), 5)
                at_x = round(x + radius * math.cos(turn), 5)
                y0, x0 = math.floor(at_y), math.floor(at_x)
                y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
                dy, dx = at_y - y0, at_x - x0
                above = (1 - dx) * values[y0, x0] + dx * values[y0, x1]
                below = (1 - dx) * values[y1, x0] + dx * values[y1, x1]
                lighter.append((1 - dy) * above + dy * below >= values[y, x])
            changes = sum(lighter[i] != lighter[i - 1] for i in range(points))
            counts[sum(lighter) if changes <= 2 else points + 1] += 1
    return np.sqrt(counts / counts.sum())


@pytest.mark.parametrize("radius", [1, 2, 3])
def test_lbp_is_that_of_a_naive_loop(radius: int) -> None:
    values = np.random.default_rng(4).integers(0, 256, (22, 17)).astype(float)
    made = vector("lbp", grey_image(values), radii=[radius])
    np.testing.assert_allclose(made, naive_lbp(values, radius), atol=1e-6)


def test_lbp_goes_radius_by_radius_and_cell_by_cell() -> None:
    image = noise(34, 34).convert("L").convert("RGB")
    both = vector("lbp", image, radii=[1, 2])
    np.testing.assert_array_equal(both[:10], vector("lbp", image, radii=[1]))
    np.testing.assert_array_equal(both[10:], vector("lbp", image, radii=[2]))
    values = np.asarray(image.convert("L"))
    made = vector("lbp", image, radii=[1], grid=2).reshape(2, 2, 10)
    for row in range(2):
        for column in range(2):
            cell = values[row * 16 : row * 16 + 18, column * 16 : column * 16 + 18]
            np.testing.assert_allclose(made[row, column], naive_lbp(cell.astype(float), 1), atol=1e-6)


@given(st.integers(1, 3), st.integers(0, 60), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_lbp_does_not_see_brightness_and_contrast(factor: int, offset: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 65, (20, 20))
    first = vector("lbp", grey_image(values))
    np.testing.assert_allclose(vector("lbp", grey_image(factor * values + offset)), first, atol=0.02)


def test_lbp_hardly_sees_any_monotonic_change_of_grey() -> None:
    """Exactly it holds for points on pixels; four of eight are interpolated between them."""
    values = made_up_gradients(80).astype(int) // 3
    curve = np.rint(255 * (np.arange(86) / 85) ** 0.7)
    assert (np.diff(curve) > 0).all()
    first, second = vector("lbp", grey_image(values)), vector("lbp", grey_image(curve[values]))
    assert cosine(first, second) > 0.99
    assert cosine(first, vector("lbp", noise(80, 80))) < 0.5


def test_lbp_does_not_see_a_quarter_turn() -> None:
    image = photo((90, 140, 60), 6, (60, 60))
    turned = image.transpose(Image.Transpose.ROTATE_90)
    np.testing.assert_allclose(vector("lbp", turned), vector("lbp", image), atol=0.03)


def test_each_histogram_of_lbp_has_unit_length_where_a_circle_fits() -> None:
    made = vector("lbp", noise(40, 50))
    for part in (made[:10], made[10:28], made[28:]):
        assert np.linalg.norm(part) == pytest.approx(1)
    narrow = vector("lbp", noise(4, 50))
    assert np.linalg.norm(narrow[:10]) == pytest.approx(1)
    assert not narrow[10:].any()
    assert not vector("lbp", noise(2, 50)).any()


def test_cells_of_lbp_without_a_pixel_are_zero() -> None:
    made = vector("lbp", noise(4, 4), radii=[1], grid=4).reshape(16, 10)
    assert (np.linalg.norm(made, axis=1) > 0).sum() == 4


def test_a_flat_image_is_all_one_pattern() -> None:
    made = vector("lbp", Image.new("RGB", (50, 40), (70, 70, 70)))
    assert np.flatnonzero(made).tolist() == [8, 10 + 16, 28 + 24]


# GIST


def naive_gist(values: NDArray[Any], grid: int = 4) -> NDArray[np.float64]:
    """Filter by filter on the whole plane, as the authors' program does it."""
    size = len(values)
    stretched = 255 * (values - values.min()) / (values.max() - values.min())
    padded = np.pad(np.log(stretched + 1), 5, mode="symmetric")
    n = len(padded)
    fx, fy = np.meshgrid(np.arange(-n // 2, n // 2), np.arange(-n // 2, n // 2))
    low = np.fft.fftshift(np.exp(-(fx**2 + fy**2) / (4 / math.sqrt(math.log(2))) ** 2))
    details = padded - np.fft.ifft2(np.fft.fft2(padded) * low).real
    spread = np.sqrt(np.abs(np.fft.ifft2(np.fft.fft2(details**2) * low)))
    even = (details / (0.2 + spread))[5:-5, 5:-5]
    border = size // 4
    spectrum = np.fft.fft2(np.pad(even, border, mode="symmetric"))
    m = size + 2 * border
    fx, fy = np.meshgrid(np.arange(-m // 2, m // 2), np.arange(-m // 2, m // 2))
    radius, angle = (np.fft.fftshift(plane) for plane in (np.hypot(fx, fy), np.angle(fx + 1j * fy)))
    cell = size // grid
    means = []
    for scale in range(4):
        for orientation in range(8):
            turned = angle + math.pi / 8 * orientation
            turned = turned + 2 * math.pi * (turned < -math.pi) - 2 * math.pi * (turned > math.pi)
            centre = 0.3 / 1.85**scale
            gain = np.exp(-10 * 0.35 * (radius / m / centre - 1) ** 2 - 2 * math.pi * turned**2)
            response = np.abs(np.fft.ifft2(spectrum * gain))[border:-border, border:-border]
            for row in range(grid):
                for column in range(grid):
                    part = response[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
                    means.append(part.mean())
    return np.array(means)


@pytest.mark.parametrize(("size", "grid"), [(128, 4), (64, 2), (64, 4)])
@pytest.mark.parametrize("picture", ["photo", "noise", "waves"])
def test_gist_is_that_of_a_naive_loop(size: int, grid: int, picture: str) -> None:
    makers: dict[str, Callable[[], Image.Image]] = {
        "photo": lambda: photo((160, 60, 20), 8, (size, size)),
        "noise": lambda: noise(size, size),
        "waves": lambda: grey_image(made_up_gradients(size)),
    }
    image = makers[picture]()
    made = vector("gist", image, size=size, grid=grid).reshape(4, -1)
    wanted = naive_gist(np.asarray(image, dtype=np.float64).mean(axis=2), grid).reshape(4, -1)
    # The finest scale has every frequency, the others fewer samples.
    np.testing.assert_allclose(made[0], wanted[0], atol=1e-4 * wanted[0].max())
    np.testing.assert_allclose(made, wanted, rtol=0.02, atol=0.06 * wanted.mean())
    assert cosine(made.ravel(), wanted.ravel()) > 0.9999


@pytest.mark.parametrize("scale", range(4))
@pytest.mark.parametrize("orientation", range(8))
def test_a_grating_excites_the_filter_of_its_frequency_and_direction(scale: int, orientation: int) -> None:
    y, x = np.mgrid[:128, :128]
    turn = -math.pi * orientation / 8
    frequency = 0.3 / 1.85**scale
    phase = 2 * math.pi * frequency * (x * math.cos(turn) + y * math.sin(turn))
    made = vector("gist", grey_image(np.rint(127 + 100 * np.sin(phase)))).reshape(4, 8, 16)
    assert made.mean(axis=2).argmax() == 8 * scale + orientation


def test_gist_sees_where_a_texture_is() -> None:
    y, x = np.mgrid[:128, :128]
    values = np.where((x < 64) & (y < 64), 127 + 100 * np.sin(0.6 * math.pi * x), 127)
    cells = vector("gist", grey_image(values)).reshape(32, 4, 4)[0]
    assert cells[:2, :2].min() > 3 * cells[2:, 2:].max()


def test_gist_does_not_see_brightness_and_contrast() -> None:
    values = np.asarray(photo((100, 100, 100), 9, (128, 128)).convert("L")).astype(float)
    values = np.rint(120 * (values - values.min()) / (values.max() - values.min()))
    first = vector("gist", grey_image(values))
    for other in (values + 100, values * 2):
        np.testing.assert_allclose(vector("gist", grey_image(other)), first, atol=1e-3 * first.max())
