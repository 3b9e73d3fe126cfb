"""A run's folder -> its networks, with what the exported checkpoint leaves out: the other one, projectors."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssl_retrieval import backbones, checkpoint, config, plugins, run_state
from ssl_retrieval.checkpoint import Card
from ssl_retrieval.embedding_head import EmbeddingHead
from ssl_retrieval.errors import UserError
from ssl_retrieval.network_input import InputSpec
from ssl_retrieval.projector_points import ProjectorPoint, layer_of, num_layers
from ssl_retrieval.run_folder import CHECKPOINT, STATE


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """The method of a run as its last saved step left it, in eval mode.

    Attributes:
        folder: The run's folder.
        method: With its weights.
        card: Of the exported checkpoint.
        spec: What the networks expect.
    """

    folder: Path
    method: Any
    card: Card
    spec: InputSpec

    def network(self, name: str) -> nn.Module:
        """Give ``student`` or ``teacher``; an empty name = the one that was exported.

        Raises:
            UserError: The method has no such network.
        """
        networks = self.method.networks()
        found = networks.get(name or self.card.network)
        if found is None:
            raise UserError(
                f"model.network={name!r}: a run of {self.card.method} has {', '.join(networks)}: use one of "
                "these"
            )
        return found

    def head(self, name: str, point: str) -> EmbeddingHead | ProjectorPoint | None:
        """Give what turns a network's pooled vector into the embedding.

        Args:
            name: As for `network`.
            point: ``projector.1``, …; empty = the head that it was trained with for searching, if any.

        Raises:
            UserError: There is no such point.
        """
        if not point:
            return self.method.embedding_head()
        layer, projector = layer_of(point), self.method.projectors().get(name or self.card.network)
        if projector is None:
            raise UserError(
                f"model.point={point!r}: {self.card.method} trains without a projector: leave it out"
            )
        return ProjectorPoint(projector, layer, backbones.feature_dim(self.method.encoder))

    def points(self, name: str) -> list[str]:
        """List the points of a network's projector; none where there is no projector."""
        projector = self.method.projectors().get(name)
        count = 0 if projector is None else num_layers(projector, backbones.feature_dim(self.method.encoder))
        return [f"projector.{layer}" for layer in range(1, count + 1)]


def has_state(folder: Path) -> bool:
    """Tell whether a path is the folder of a run with its state."""
    return (folder / STATE).is_file() and (folder / CHECKPOINT).is_file()


def load(folder: Path, dynamic_size: bool = False) -> TrainedRun:
    """Build a run's method anew and give it its weights.

    Args:
        folder: The run's folder, with ``state.pt`` and ``checkpoint.safetensors``.
        dynamic_size: Let a ViT take images of other sizes too.

    Raises:
        UserError: A file is missing, damaged, or of another version.
    """
    if not has_state(folder):
        raise UserError(
            f"model.path={str(folder)!r}: model.network and model.point need a run's folder with "
            f"{CHECKPOINT} and {STATE}: give that, or leave them out"
        )
    backbone, card, spec = checkpoint.load(folder / CHECKPOINT, dynamic_size=dynamic_size)
    section = card.recipe.get("method")
    if not section:
        raise UserError(
            f"{folder}: its checkpoint does not say how it was trained: train again with this version"
        )
    cfg = config.plugin_config("method", section, "method")
    with torch.random.fork_rng(devices=[]):
        method: Any = plugins.find("method", cfg.name).Method(cfg, backbone)
    state = run_state.read(folder / STATE, torch.device("cpu"))
    try:
        method.load_state_dict(state["method"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{folder / STATE} does not fit the recipe in {CHECKPOINT}: give another run"
        ) from error
    return TrainedRun(folder, method.eval(), card, spec)
