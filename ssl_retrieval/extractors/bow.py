"""Bag of visual words with tf-idf, searched by an inverted file (Sivic & Zisserman, ICCV 2003)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssl_retrieval import vocabulary
from ssl_retrieval.errors import UserError
from ssl_retrieval.extractors.local_base import LocalConfig, WordsExtractor, rooted, whole_number
from ssl_retrieval.inverted_file import InvertedFile
from ssl_retrieval.types import VectorArray

_ENTRY_BYTES = 8
"""An entry of the inverted file: 4 bytes for the image, 4 for the weight."""


@dataclass
class Config(LocalConfig):
    """How many words.

    Attributes:
        words: Size of the vocabulary; papers use 20,000 to a million. Learning takes time in proportion to
            its square, a vector on disk 4 bytes per word.
    """

    name: str = "bow"
    words: int = 4096


class Extractor(WordsExtractor):
    """How often each word occurs in an image, times ``log(N / N_w)``; scored by the cosine.

    ``N`` is the number of images to learn from that have a keypoint, ``N_w`` how many of them have the word.
    """

    idf: Tensor

    def __init__(self, cfg: Config) -> None:
        """Check the options."""
        whole_number("words", cfg.words, 1, 1 << 17)
        super().__init__(cfg, cfg.words)
        self.dim = cfg.words

    def learn_from(self, materials: list[Tensor]) -> dict[str, Tensor]:
        """Learn the words and their ``idf``, float32 [K].

        Raises:
            UserError: Every word occurs in every image, so that all weights would be 0.
        """
        state = super().learn_from(materials)
        described = [material for material in materials if len(material)]
        num_with = torch.zeros(len(state["words"]), dtype=torch.int64)
        for material in described:
            num_with[vocabulary.nearest(rooted(material), state["words"]).unique()] += 1
        # A word that is nearest to none of these descriptors counts as the rarest, not as infinitely rare.
        idf = torch.log(len(described) / num_with.clamp(min=1))
        if not idf.any():
            raise UserError(
                f"bow: every word occurs in each of the {len(described)} images to learn from, so none tells "
                "images apart: learn from more images (fit.name=…) or more words (model.words=…)"
            )
        return state | {"idf": idf}

    def learned_dim(self, state: dict[str, Tensor]) -> int:
        """One dimension per word."""
        return len(state["words"])

    def aggregate(self, descriptors: Tensor) -> Tensor:
        """Count words and weigh them: float32 [n, 128] -> float32 [K]."""
        counts = vocabulary.nearest(descriptors, self.words).bincount(minlength=self.dim)
        return counts * self.idf

    def similarity(self, queries: VectorArray, gallery: VectorArray) -> InvertedFile:
        """Score by the cosine, through an inverted file: float32 [Q, K] and [N, K]."""
        return InvertedFile.of(queries, gallery)

    def bytes_per_image(self, gallery: VectorArray) -> float:
        """What an image takes in the inverted file, on average."""
        return _ENTRY_BYTES * float(np.count_nonzero(gallery)) / max(1, len(gallery))
