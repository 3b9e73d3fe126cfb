"""Vectors of pictures that are in memory and in no file: altered copies, say."""

from collections.abc import Iterable
from itertools import islice

import numpy as np
import torch
from PIL import Image

from ssl_retrieval.images import shrink
from ssl_retrieval.postprocess import l2_normalize
from ssl_retrieval.representation import Representation
from ssl_retrieval.types import VectorArray

BATCH_SIZE = 64


def embed_pictures(
    representation: Representation,
    pictures: Iterable[Image.Image],
    image_size: int | None = None,
    precision: str = "fp32",
) -> VectorArray:
    """Embed pictures as `embed.embed` embeds the files that would hold them.

    Args:
        representation: What embeds; one that must learn has learned.
        pictures: N RGB images.
        image_size: Short side in pixels to which they are reduced first; None = as they are.
        precision: See `embed.EmbedOptions`.

    Returns:
        float32 [N, D], rows of length 1, or 0 for a picture without features.
    """
    runtime = representation.runtime(precision)
    parts = [np.empty((0, representation.extractor.dim), np.float32)]
    left = iter(pictures)
    while batch := list(islice(left, BATCH_SIZE)):
        inputs = [representation.extractor.preprocess(shrink(picture, image_size)) for picture in batch]
        parts.append(representation.embed_batch(torch.stack(inputs), runtime).cpu().numpy())
    return l2_normalize(np.concatenate(parts))
