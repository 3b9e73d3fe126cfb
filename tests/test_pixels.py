import numpy as np
import torch
from PIL import Image

from ssl_retrieval.extractors.pixels import Config, Extractor


def photo(seed: int, side: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def test_pixels_are_the_small_image_around_mid_grey() -> None:
    extractor = Extractor(Config(size=64))
    expected = np.asarray(photo(0), np.float32).ravel() / 255 - 0.5
    np.testing.assert_allclose(extractor.preprocess(photo(0)).numpy(), expected)
    assert extractor.dim == 3 * 64 * 64


def test_grey_pixels_see_light_and_no_colour() -> None:
    extractor = Extractor(Config(size=8, grey=True))
    assert extractor.dim == 64
    # Red and blue of the same lightness, by the weights that Pillow documents: 0.299, 0.587, 0.114.
    red, blue = (Image.new("RGB", (16, 16), colour) for colour in ((114, 0, 0), (0, 0, 299 - 44)))
    assert extractor.preprocess(red).shape == (64,)
    grey = photo(1).convert("L").convert("RGB")
    torch.testing.assert_close(extractor.preprocess(grey), extractor.preprocess(photo(1)))
    assert (extractor.preprocess(red)[0] - extractor.preprocess(blue)[0]).abs() < 0.03
