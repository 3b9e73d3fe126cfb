"""VLAD: residuals of descriptors, added up by visual word (Jégou et al., CVPR 2010)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ssl_retrieval.extractors.local_base import LocalConfig, WordsExtractor, residual_sums, whole_number
from ssl_retrieval.sift import DIM


@dataclass
class Config(LocalConfig):
    """How many words, and how to normalise.

    Attributes:
        words: Size of the vocabulary.
        signed_root: Whether each value becomes ``sign(v) √|v|``, which tames bursts of one pattern (Jégou et
            al., 2012).
        intra_norm: Whether the part of each word is then scaled to length 1 (Arandjelović & Zisserman, CVPR
            2013), for the same reason.
    """

    name: str = "vlad"
    words: int = 64
    signed_root: bool = True
    intra_norm: bool = True


class Extractor(WordsExtractor):
    """``Σ (x − c)`` over the descriptors whose nearest word is ``c``, one part of 128 values per word."""

    cfg: Config

    def __init__(self, cfg: Config) -> None:
        """Check the options."""
        whole_number("words", cfg.words, 1, 4096)
        super().__init__(cfg, cfg.words)
        self.dim = cfg.words * DIM

    def learned_dim(self, state: dict[str, Tensor]) -> int:
        """128 dimensions per word."""
        return state["words"].numel()

    def aggregate(self, descriptors: Tensor) -> Tensor:
        """Add up residuals: float32 [n, 128] -> float32 [K · 128]."""
        present, sums = residual_sums(descriptors, self.words)
        if self.cfg.signed_root:
            sums = sums.sign() * sums.abs().sqrt()
        if self.cfg.intra_norm:
            sums = functional.normalize(sums, dim=1)
        parts = torch.zeros_like(self.words)
        parts[present] = sums
        return functional.normalize(parts.flatten(), dim=0)
