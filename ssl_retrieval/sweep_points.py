"""The places in a network where an embedding can be taken, and what can be done to it afterwards."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from timm.data.config import resolve_model_data_config
from torch import nn

from ssl_retrieval import backbones, layers, trained_run
from ssl_retrieval import checkpoint as checkpoint_file
from ssl_retrieval.errors import UserError
from ssl_retrieval.extractors import checkpoint as trained
from ssl_retrieval.extractors.base import NetworkConfig

DEFAULT = "default"
NUM_LAYERS = 3
"""Earlier layers that are tried where none are named."""

SIZES = (0.75, 1.25, 1.75)
"""Resolutions that are tried where none are named, as factors of the default point's."""

WHITENINGS = {"whitened": "pca_whiten:{dim}", "half-whitened": "pca_whiten:{dim}:0.25"}
"""Words -> the step; half-whitening divides by the root of the standard deviations, not by these."""


@dataclass(frozen=True)
class Place:
    """Where a vector is taken.

    Attributes:
        label: Its name.
        model: The extractor's config that takes it there.
    """

    label: str
    model: Any

    def at(self, image_size: int) -> "Place":
        """Take it from larger or smaller images."""
        return Place(f"{self.label}, {image_size} px", replace(self.model, image_size=image_size))


def places(model: Any, axes: Sequence[str], poolings: Sequence[str], wanted: Sequence[str]) -> list[Place]:
    """List the places of a network, the configured one first.

    Args:
        model: An extractor's config; what is no network has one place.
        axes: Some of ``pooling``, ``layer``, ``projector`` and ``network``.
        poolings: Of the last map and of layers; empty = ``avg`` and ``gem``, with a class token ``cls`` too.
        wanted: Earlier layers, as ``model.layer`` is written; empty = the last `NUM_LAYERS` whose map is not
            the network's last.

    Raises:
        UserError: See the extractor.
    """
    found = [Place(DEFAULT, model)]
    if not isinstance(model, NetworkConfig):
        return found
    skeleton = _skeleton(model)
    plain: Any = replace(model, layer="")
    if _is_trained(model):
        plain = replace(plain, point="", pool="model")
    chosen = list(poolings) or ["avg", "gem", *(["cls"] if hasattr(skeleton, "cls_token") else [])]
    if "pooling" in axes:
        if _is_trained(model) and _has_head(model):
            found.append(Place("model", plain))
        found += [Place(pool, replace(plain, pool=pool)) for pool in chosen]
    if "layer" in axes:
        for layer in wanted or _earlier_layers(skeleton):
            found += [
                Place(f"layer {layer} {pool}", replace(plain, pool=pool, layer=layer)) for pool in chosen
            ]
    if _is_trained(model):
        found += _of_run(model, axes)
    same: list[Place] = []
    for place in found:
        if all(place.model != other.model for other in same):
            same.append(place)
    return same


def image_size_of(model: Any) -> int | None:
    """Give the input side of an extractor in pixels; None where it has none."""
    if not isinstance(model, NetworkConfig):
        return None
    asked: int | None = getattr(model, "image_size", None)
    if asked is not None:
        return asked
    if _is_trained(model):
        return int(checkpoint_file.read_card(_file(model)).input["size"])
    return int(resolve_model_data_config(_skeleton(model))["input_size"][-1])


def sizes(model: Any, wanted: Sequence[int]) -> list[int]:
    """List the other resolutions to try, in pixels; none for what is no network.

    Args:
        model: An extractor's config.
        wanted: Those that the config names; empty = `SIZES`, rounded to what the network can take.
    """
    own = image_size_of(model)
    if own is None:
        return []
    if wanted:
        return [size for size in dict.fromkeys(wanted) if size != own]
    patch = backbones.patch_size(_skeleton(model))
    unit = patch if patch > 1 else 32 if own >= 96 else 8
    rounded = [max(1, round(factor * own / unit)) * unit for factor in SIZES]
    return [size for size in dict.fromkeys(rounded) if size != own]


def _is_trained(model: NetworkConfig) -> bool:
    return isinstance(model, trained.Config)


def _file(model: Any) -> Path:
    path = Path(model.path).expanduser()
    return path / "checkpoint.safetensors" if path.is_dir() else path


def _has_head(model: Any) -> bool:
    return model.pool == trained.TRAINED and bool(checkpoint_file.read_card(_file(model)).head)


def _skeleton(model: Any) -> nn.Module:
    name = checkpoint_file.read_card(_file(model)).backbone if _is_trained(model) else model.name
    return backbones.without_weights(name)


def _earlier_layers(skeleton: nn.Module) -> list[str]:
    """Count backwards from the last one whose map is not the network's own last."""
    info: Any = getattr(skeleton, "feature_info", [])
    count = len(layers.feature_layers(skeleton))
    first = 1 if count and info[-1]["num_chs"] != skeleton.num_features else 2
    return [f"-{number}" for number in range(first, min(first + NUM_LAYERS, count + 1))]


def _of_run(model: Any, axes: Sequence[str]) -> list[Place]:
    """List what only a run's folder has; nothing for a checkpoint alone."""
    folder = Path(model.path).expanduser()
    if not trained_run.has_state(folder) or not {"projector", "network"} & set(axes):
        return []
    run, found = trained_run.load(folder), []
    exported = model.network or run.card.network
    base = replace(model, pool=trained.TRAINED, layer="", point="")
    networks = [name for name in run.method.networks() if "network" in axes or name == exported]
    for name in sorted(networks, key=lambda one: one != exported):
        is_other = name != exported
        of_network = replace(base, network=name) if is_other else base
        if is_other:
            found.append(Place(name, of_network))
        if "projector" in axes:
            prefix = f"{name} " if is_other else ""
            found += [Place(f"{prefix}{p}", replace(of_network, point=p)) for p in run.points(name)]
    return found


def check_axes(axes: Sequence[str], known: Sequence[str]) -> None:
    """Refuse axes that do not exist.

    Raises:
        UserError: Names the first.
    """
    wrong = next((axis for axis in axes if axis not in known), None)
    if wrong is not None:
        raise UserError(f"axes: no axis {wrong!r}: use some of {', '.join(known)}")
