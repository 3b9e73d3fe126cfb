"""An extractor, ready to run, and all that decides about its vectors."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssl_retrieval import config, memory, network_input, plugins
from ssl_retrieval.errors import UserError
from ssl_retrieval.precision import Runtime, without_trial


@dataclass(frozen=True)
class Representation:
    """An extractor ready to run, and its identity.

    Attributes:
        label: Name in tables.
        config: The config it was made from.
        extractor: The module.
        device: Where it runs.
    """

    label: str
    config: Any
    extractor: Any
    device: torch.device

    @classmethod
    def make(cls, label: str, cfg: Any, device: torch.device) -> "Representation":
        """Build the extractor that a config names.

        Raises:
            UserError: The label is no file name, or the extractor refuses its config.
        """
        check_label(label)
        extractor = plugins.find("extractor", cfg.name).Extractor(cfg).to(device).eval()
        extractor.to(memory_format=torch.channels_last)
        memory.keep_freed(device)
        return cls(label, cfg, extractor, device)

    def identity(self) -> dict[str, Any]:
        """Give everything that decides about its vectors, as plain values."""
        spec = getattr(self.extractor, "preprocess_spec", None)
        return {
            "config": config.to_dict(self.config),
            "family": self.extractor.family,
            "dim": self.extractor.dim,
            "weights": self.extractor.weights_digest,
            "input": None if spec is None else spec.to_dict() | {"version": network_input.VERSION},
        }

    def runtime(self, asked: str) -> Runtime:
        """Resolve ``embed.precision``; what has no network computes as it does."""
        has_network = self.extractor.family != "hand-crafted"
        return without_trial(asked if has_network else "fp32", "channels_last", self.device)

    def embed_batch(self, inputs: Tensor, runtime: Runtime) -> Tensor:
        """Embed what the extractor's ``preprocess`` gave, stacked: -> float32 [B, D] on the device."""
        with torch.inference_mode(), runtime.autocast(self.device):
            vectors: Tensor = self.extractor(inputs.to(self.device, non_blocking=True))
            return vectors.float()


def check_label(label: str) -> None:
    """Refuse the label of a representation that cannot be part of a file's name.

    Raises:
        UserError: It holds a slash.
    """
    if "/" in label or "\\" in label:
        raise UserError(f"representation {label!r}: a label names files, so it must not hold a slash")
