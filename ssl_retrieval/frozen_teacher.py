"""A trained network that others learn from: it never changes, and is no part of what learns from it."""

import dataclasses
import re
from typing import Any

import torch
from torch import Tensor, nn

from ssl_retrieval import plugins
from ssl_retrieval.errors import UserError
from ssl_retrieval.extractors.base import PooledNetwork


class FrozenTeacher:
    """A network extractor, outside of the module tree: not trained, not stored, shared by copies of a method.

    It is built anew from its source whenever a run goes on; `digest` tells whether it is still the same.

    Attributes:
        dim: Dimension of its vectors.
        size: Side of its input in pixels.
        digest: Hash of its weights, 16 hex digits.
    """

    def __init__(self, section: Any, where: str) -> None:
        """Build it.

        Args:
            section: Config of an extractor: a timm network or one of our checkpoints.
            where: What the section is called, for messages.

        Raises:
            UserError: It cannot be built, or is no network, or one that must learn first.
        """
        module = plugins.find("extractor", section.name)
        try:
            # On the CPU, whatever the default device is: a digest needs values.
            with torch.device("cpu"):
                extractor = module.Extractor(section)
        except UserError as error:
            # Extractors know their section as ``model``.
            keys = "|".join(field.name for field in dataclasses.fields(section))
            raise UserError(re.sub(rf"\bmodel\.({keys})\b", rf"{where}.\1", str(error))) from error
        if not isinstance(extractor, PooledNetwork) or extractor.learns:
            reason = "it must learn first" if isinstance(extractor, PooledNetwork) else "it is no network"
            raise UserError(
                f"{where}.name={section.name}: {reason}: give a timm network, or a checkpoint with its path"
            )
        self._network: nn.Module = extractor.eval().requires_grad_(False)
        self._network.to(memory_format=torch.channels_last)
        self._device = torch.device("cpu")
        spec = extractor.preprocess_spec
        self.mean, self.std = spec.mean, spec.std
        self.dim, self.size, self.digest = extractor.dim, spec.size, extractor.weights_digest

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Embed: float [B, 3, size, size], normalised by `mean` and `std` -> [B, dim], without gradient."""
        if images.device != self._device:
            self._network.to(images.device)
            self._device = images.device
        vectors: Tensor = self._network(images.contiguous(memory_format=torch.channels_last))
        return vectors

    def __deepcopy__(self, memo: dict[int, Any]) -> "FrozenTeacher":
        """Give itself: it never changes."""
        return self

    def weights(self) -> dict[str, Tensor]:
        """Give its parameters and buffers by name."""
        return self._network.state_dict()
