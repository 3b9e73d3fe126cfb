"""Extractors small enough to see through: one learns, one has scores only, one is blind in the dark."""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ssl_retrieval import plugins
from ssl_retrieval.representation import Representation
from ssl_retrieval.similarity import Similarity
from ssl_retrieval.types import VectorArray, digest_of


def mean_colour(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image, np.float32).reshape(-1, 3).mean(axis=0)) / 255


class Tiny(nn.Module):
    """float32 [B, dim] -> itself."""

    family = "hand-crafted"
    dim = 3
    weights_digest = "none"

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.cfg = cfg

    def preprocess(self, image: Image.Image) -> Tensor:
        return mean_colour(image)

    def forward(self, batch: Tensor) -> Tensor:
        return batch


@dataclass
class LearnerConfig:
    name: str = "learner"
    words: int = 4
    learns: bool = True


class Learner(Tiny):
    """How near an image's colour is to those of the first images it has learned from: [words]."""

    def __init__(self, cfg: LearnerConfig) -> None:
        super().__init__(cfg)
        self.learns, self.dim = cfg.learns, 0
        self.words: Tensor | None = None
        self.lessons: list[list[Tensor]] = []

    def material(self, image: Image.Image) -> Tensor:
        return mean_colour(image)[None]

    def learn(self, materials: list[Tensor]) -> dict[str, Tensor]:
        self.lessons.append(materials)
        # A transposed view, which safetensors would refuse to write as it is.
        return {"words": torch.cat(materials)[: self.cfg.words].T}

    def set_learned(self, state: dict[str, Tensor]) -> None:
        self.words = state["words"].T
        self.dim = len(self.words)
        self.weights_digest = digest_of(self.words.tolist())

    def preprocess(self, image: Image.Image) -> Tensor:
        assert self.words is not None
        return torch.exp(-10 * (mean_colour(image) - self.words).norm(dim=1))


@dataclass
class ScorerConfig:
    name: str = "scorer"


class NegativeDistances:
    """Minus the Euclidean distance."""

    def __init__(self, queries: VectorArray, gallery: VectorArray) -> None:
        self.queries, self.gallery = queries, gallery
        self.num_queries, self.num_gallery = len(queries), len(gallery)

    def scores(self, rows: slice) -> VectorArray:
        differences = self.queries[rows, None] - self.gallery[None]
        return -np.linalg.norm(differences, axis=2).astype(np.float32)


class Scorer(Tiny):
    """Colours, whose distances say more than their angles."""

    only_scores = True

    def similarity(self, queries: VectorArray, gallery: VectorArray) -> Similarity:
        return NegativeDistances(queries, gallery)

    def bytes_per_image(self, gallery: VectorArray) -> float:
        return 1.5


@dataclass
class BlindConfig:
    name: str = "blind"
    darkest: float = 0.5


class Blind(Tiny):
    """The colour around mid-grey, but nothing in dark images."""

    def preprocess(self, image: Image.Image) -> Tensor:
        colour = mean_colour(image)
        return (colour - 0.5) * float(colour.mean() >= self.cfg.darkest)


_TINY: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "learner": (LearnerConfig, Learner),
    "scorer": (ScorerConfig, Scorer),
    "blind": (BlindConfig, Blind),
}


def make(label: str, cfg: Any) -> Representation:
    """Make a representation of a config above."""
    return Representation(label, cfg, _TINY[cfg.name][1](cfg), torch.device("cpu"))


@pytest.fixture
def tiny_extractors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make them known by name in configs."""
    find = plugins.find

    def find_tiny(kind: str, name: str) -> ModuleType | SimpleNamespace:
        if kind == "extractor" and name in _TINY:
            schema, extractor = _TINY[name]
            return SimpleNamespace(Config=schema, Extractor=extractor)
        return find(kind, name)

    monkeypatch.setattr(plugins, "find", find_tiny)
