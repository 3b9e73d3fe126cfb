"""What the extractors over RootSIFT share: descriptors, learning a vocabulary, keeping it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from omegaconf import MISSING
from PIL import Image
from torch import Tensor, nn

from ssl_retrieval import backbones, vocabulary
from ssl_retrieval.errors import UserError
from ssl_retrieval.sift import root_sift, sift


@dataclass
class LocalConfig:
    """Which keypoints count; each extractor's ``Config`` adds its own options.

    Attributes:
        name: The extractor.
        max_keypoints: At most so many per image, those of the highest contrast.
        contrast_threshold: Keypoints of lower contrast are dropped (OpenCV's ``contrastThreshold``).
        min_side: Short side in pixels to which smaller images are enlarged.
        max_side: Long side in pixels to which larger images are reduced.
        seed: Of the descriptors that are drawn for learning, and of k-means.
    """

    name: str = MISSING
    max_keypoints: int = 1000
    contrast_threshold: float = 0.04
    min_side: int = 128
    max_side: int = 1024
    seed: int = 0


class LocalExtractor(nn.Module, ABC):
    """RGB image -> one vector of all its RootSIFT descriptors; the vocabulary is learned first.

    All the work is done in `preprocess`, on the CPU.

    Attributes:
        dim: Dimensions of a vector; before learning, what it will be if there are enough descriptors.
        weights_digest: Hash of what was learned, ``none`` before.
    """

    family = "hand-crafted"
    learns = True
    dim: int
    weights_digest: str

    def __init__(self, cfg: LocalConfig) -> None:
        """Check the options.

        Raises:
            UserError: One of them means nothing.
        """
        super().__init__()
        whole_number("max_keypoints", cfg.max_keypoints, 1, 100_000)
        whole_number("min_side", cfg.min_side, 1, 4096)
        whole_number("max_side", cfg.max_side, 1, 16384)
        if not 0 <= cfg.contrast_threshold < 1:
            raise UserError(f"model.contrast_threshold={cfg.contrast_threshold}: must be from 0 to below 1")
        self.cfg = cfg
        self.weights_digest = "none"

    def material(self, image: Image.Image) -> Tensor:
        """Give what is learned from: RGB image -> uint8 [n, 128], n ≥ 0, SIFT before the square root."""
        cfg = self.cfg
        return torch.from_numpy(
            sift(
                image,
                max_keypoints=cfg.max_keypoints,
                contrast_threshold=cfg.contrast_threshold,
                min_side=cfg.min_side,
                max_side=cfg.max_side,
            )
        )

    def learn(self, materials: list[Tensor]) -> dict[str, Tensor]:
        """Learn from the `material` of images.

        Raises:
            UserError: None of the images has a keypoint.
        """
        if not any(len(material) for material in materials):
            raise UserError(
                f"{self.cfg.name}: none of the {len(materials)} images to learn from has a SIFT keypoint: "
                "give others as fit.name=… and fit.root=…"
            )
        return self.learn_from(materials)

    def set_learned(self, state: dict[str, Tensor]) -> None:
        """Install what `learn` gave; sets ``dim`` and ``weights_digest``."""
        # In one order, on which the digest depends: a file gives them back in another than `learn`.
        for name, value in sorted(state.items()):
            self.register_buffer(name, value)
        self.dim = self.learned_dim(state)
        self.weights_digest = backbones.weights_digest(self)

    def preprocess(self, image: Image.Image) -> Tensor:
        """Make the vector: RGB image -> float32 [dim]; zeros where there is no keypoint."""
        assert self.weights_digest != "none", "learn first"
        descriptors = rooted(self.material(image))
        return self.aggregate(descriptors) if len(descriptors) else torch.zeros(self.dim)

    def forward(self, batch: Tensor) -> Tensor:
        """Give the vectors back: float32 [B, dim]."""
        return batch

    @abstractmethod
    def learn_from(self, materials: list[Tensor]) -> dict[str, Tensor]:
        """Learn from uint8 [n, 128] tensors, of which at least one has a row."""

    @abstractmethod
    def learned_dim(self, state: dict[str, Tensor]) -> int:
        """Give the dimensions of a vector, once it is known what was learned."""

    @abstractmethod
    def aggregate(self, descriptors: Tensor) -> Tensor:
        """Make one vector, float32 [dim], of RootSIFT descriptors, float32 [n, 128], n ≥ 1."""


class WordsExtractor(LocalExtractor):
    """A `LocalExtractor` that learns words by k-means.

    Attributes:
        words: float32 [K, 128]: a buffer, once learned.
    """

    words: Tensor

    def __init__(self, cfg: LocalConfig, num_words: int) -> None:
        """Note how many words to learn."""
        super().__init__(cfg)
        self.num_words = num_words

    def learn_from(self, materials: list[Tensor]) -> dict[str, Tensor]:
        """Learn the words."""
        drawn = drawn_from(materials, vocabulary.sample_size(self.num_words), self.cfg.seed)
        words = vocabulary.learn_words(drawn.numpy(), self.num_words, self.cfg.seed)
        return {"words": torch.from_numpy(words)}


def rooted(material: Tensor) -> Tensor:
    """Make RootSIFT, float32 [n, 128], of SIFT, uint8 [n, 128]."""
    return torch.from_numpy(root_sift(material.numpy()))


def drawn_from(materials: list[Tensor], limit: int, seed: int) -> Tensor:
    """Draw RootSIFT descriptors evenly from all images: float32 [at most ``limit``, 128]."""
    rows = vocabulary.sample([len(material) for material in materials], limit, seed)
    return rooted(
        torch.cat([material[torch.from_numpy(r)] for material, r in zip(materials, rows, strict=True)])
    )


def residual_sums(descriptors: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """Add up what separates descriptors from their nearest word.

    Args:
        descriptors: float32 [n, D].
        words: float32 [K, D].

    Returns:
        int64 [m]: the words that were nearest to any, ascending; float32 [m, D]: the sum of ``x − word`` over
        the descriptors ``x`` of each.
    """
    numbers = vocabulary.nearest(descriptors, words)
    present, places = numbers.unique(return_inverse=True)
    sums = torch.zeros(len(present), words.shape[1])
    return present, sums.index_add_(0, places, descriptors - words[numbers])


def whole_number(key: str, value: int, least: int, most: int) -> None:
    """Refuse an option outside its range.

    Raises:
        UserError: It is.
    """
    if not least <= value <= most:
        raise UserError(f"model.{key}={value}: must be from {least} to {most}")
