"""Pictures in memory are embedded as the files that hold them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_retrieval import config, picture_vectors
from ssl_retrieval.embed import EmbedOptions, embed
from ssl_retrieval.images import list_images, load_image
from ssl_retrieval.picture_vectors import embed_pictures
from ssl_retrieval.postprocess import l2_normalize
from ssl_retrieval.representation import Representation
from ssl_retrieval.types import ImageSet


@pytest.mark.parametrize("image_size", [None, 20])
def test_vectors_are_those_of_the_files(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_size: int | None
) -> None:
    monkeypatch.setattr(picture_vectors, "BATCH_SIZE", 7)
    cfg = config.plugin_config("extractor", {"name": "hog"}, "model")
    hog = Representation.make("hog", cfg, torch.device("cpu"))
    images = ImageSet(photos, tuple(list_images(photos)[:16]))
    stored = embed(hog, images, tmp_path, options=EmbedOptions(), image_size=image_size)
    pictures = (load_image(images.file(i)) for i in range(16))
    np.testing.assert_allclose(
        embed_pictures(hog, pictures, image_size), l2_normalize(stored.vectors), atol=1e-6
    )
    assert embed_pictures(hog, []).shape == (0, stored.dim)
