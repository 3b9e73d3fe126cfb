"""ASMK*: one binary code per visual word, compared word by word.

Tolias, Avrithis & Jégou, "To aggregate or not to aggregate: selective match kernels for image search", ICCV
2013, and "Image search with selective match kernels: aggregation across single and multiple images", IJCV
2016.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssl_retrieval.binary_inverted_file import BITS, ENTRY, BinaryInvertedFile, pack
from ssl_retrieval.errors import UserError
from ssl_retrieval.extractors.local_base import LocalConfig, WordsExtractor, residual_sums, whole_number
from ssl_retrieval.types import VectorArray

_ENTRY_BYTES = 4 + BITS // 8
"""An entry of the inverted file: 4 bytes for the image, 16 for the code."""


@dataclass
class Config(LocalConfig):
    """How many words, and how much two codes must agree.

    Attributes:
        words: Size of the vocabulary; the papers use 65,536. Learning takes time in proportion to its square.
        alpha: The higher, the more a match counts that agrees in most bits.
        tau: Matches whose cosine is not above this count nothing; 0 = those that agree in half of the bits.
    """

    name: str = "asmk"
    words: int = 4096
    alpha: float = 3.0
    tau: float = 0.0


class Extractor(WordsExtractor):
    """``Σ σ(u)`` over the words that two images share, divided by the root of both numbers of words' product.

    The code of a word in an image are the signs of ``Σ (x − c)`` over its descriptors, ``u`` is the cosine of
    two codes, ``σ(u) = u^α`` above τ and 0 otherwise. An image scores 1 with itself. Each descriptor of a
    query goes to one word, as in the gallery; the papers also give it to several.

    A stored row is a list of words and codes (see `binary_inverted_file`): only its scores mean something.
    """

    cfg: Config
    only_scores = True

    def __init__(self, cfg: Config) -> None:
        """Check the options."""
        whole_number("words", cfg.words, 1, 1 << 20)
        if not 0 < cfg.alpha <= 100:
            raise UserError(f"model.alpha={cfg.alpha}: must be above 0, at most 100")
        if not 0 <= cfg.tau < 1:
            raise UserError(f"model.tau={cfg.tau}: must be from 0 to below 1")
        super().__init__(cfg, cfg.words)
        self.dim = ENTRY * self._num_entries(cfg.words)

    def learned_dim(self, state: dict[str, Tensor]) -> int:
        """7 values for each word that an image can have."""
        return ENTRY * self._num_entries(len(state["words"]))

    def aggregate(self, descriptors: Tensor) -> Tensor:
        """Code each word: float32 [n, 128] -> float32 [dim], whole numbers."""
        present, sums = residual_sums(descriptors, self.words)
        row = pack(present.numpy(), sums.numpy() >= 0, self._num_entries(len(self.words)))
        return torch.from_numpy(row)

    def similarity(self, queries: VectorArray, gallery: VectorArray) -> BinaryInvertedFile:
        """Score through an inverted file: float32 [Q, dim] and [N, dim], as stored."""
        cosines = 1 - 2 * np.arange(BITS + 1) / BITS
        table = np.where(cosines > self.cfg.tau, np.abs(cosines) ** self.cfg.alpha, 0.0)
        return BinaryInvertedFile.of(queries, gallery, len(self.words), table)

    def bytes_per_image(self, gallery: VectorArray) -> float:
        """What an image takes in the inverted file, on average."""
        return _ENTRY_BYTES * float(np.count_nonzero(gallery[:, ::ENTRY])) / max(1, len(gallery))

    def _num_entries(self, num_words: int) -> int:
        return min(self.cfg.max_keypoints, num_words)
