"""The exported encoder: safetensors weights plus everything needed to use them, in one file."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ssl_retrieval import backbones
from ssl_retrieval.atomic import atomic_path
from ssl_retrieval.embedding_head import EmbeddingHead
from ssl_retrieval.errors import UserError
from ssl_retrieval.network_input import InputSpec
from ssl_retrieval.weights import CARD, stored_card

SCHEMA = 1

_HEAD = "embedding_head."
"""Prefix of the head's weights; no timm network has a part of this name."""


@dataclass(frozen=True)
class Card:
    """What stands in the file beside the weights.

    Attributes:
        backbone: timm name.
        stem: ``standard`` or ``small``.
        input: `InputSpec.to_dict`.
        method: Name of the method that trained it.
        start: Where training began: ``random``, ``offline``, ….
        step: Steps trained.
        train_s: Seconds of training.
        images: Number of training images.
        seed: Seed of the run.
        extra: Anything else worth keeping.
        patch_size: Side of a ViT's patches in pixels; None = the network's own.
        dynamic_size: Whether a ViT was trained with, and takes, images of several sizes.
        network: Which of the method's networks this is: ``student`` or ``teacher``.
        recipe: The run's config with everything that was chosen for it.
        data: Fingerprint of the training images.
        scores: Name of a measure -> value.
        family: What it is called in tables: ``self-supervised``, ``fine-tuned`` or ``distilled``.
        head: `EmbeddingHead.to_dict` of the head that it was trained with; empty = the network's own pooling.
    """

    backbone: str
    stem: str
    input: dict[str, Any]
    method: str = ""
    start: str = ""
    step: int = 0
    train_s: float = 0.0
    images: int = 0
    seed: int = 0
    extra: dict[str, Any] = field(default_factory=dict)
    patch_size: int | None = None
    dynamic_size: bool = False
    network: str = "student"
    recipe: dict[str, Any] = field(default_factory=dict)
    data: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    family: str = "self-supervised"
    head: dict[str, Any] = field(default_factory=dict)


def save(model: nn.Module, card: Card, file: Path, head: EmbeddingHead | None = None) -> None:
    """Write the encoder, and the head that it was trained with, atomically."""
    named = dict(model.state_dict())
    if head is not None:
        card = replace(card, head=head.to_dict())
        named |= {f"{_HEAD}{key}": value for key, value in head.state_dict().items()}
    state = {key: value.detach().cpu().contiguous().clone() for key, value in named.items()}
    metadata = {CARD: json.dumps({"schema": SCHEMA} | asdict(card))}
    with atomic_path(file) as partial:
        save_file(state, partial, metadata=metadata)


def read_card(file: Path) -> Card:
    """Read the card alone.

    Raises:
        UserError: No such file, or not a checkpoint of ours.
    """
    if not file.is_file():
        raise UserError(f"no checkpoint {str(file)!r}: give the checkpoint.safetensors of a pretrain run")
    values = stored_card(file)
    if not values:
        raise UserError(
            f"{file}: not a checkpoint of ssl_retrieval (weights of other origin go to model.weights=FILE)"
        )
    try:
        if values.pop("schema") == SCHEMA:
            return Card(**values)
    except (KeyError, TypeError):
        pass
    raise UserError(f"{file}: written by another version of ssl_retrieval")


def load(file: Path, dynamic_size: bool = False) -> tuple[nn.Module, Card, InputSpec]:
    """Read an encoder in eval mode, its card and its input.

    Args:
        file: A checkpoint of ours.
        dynamic_size: Let a ViT take images of other sizes too, even if it was trained with one.

    Raises:
        UserError: See `read_card`.
    """
    card = read_card(file)
    spec = InputSpec.from_dict(card.input)
    model = backbones.make(
        card.backbone,
        "random",
        image_size=spec.size,
        stem=card.stem,
        patch_size=card.patch_size,
        dynamic_size=card.dynamic_size or dynamic_size,
    )
    state = {key: value for key, value in _state(file).items() if not key.startswith(_HEAD)}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{file}: the weights do not fit {card.backbone!r}") from error
    assert all(torch.isfinite(t).all() for t in state.values() if t.is_floating_point())
    return model.eval(), card, spec


def load_head(file: Path, model: nn.Module, card: Card) -> EmbeddingHead | None:
    """Read the head that an encoder was trained with; None where that is the network's own pooling.

    Args:
        file: A checkpoint of ours.
        model: Its encoder, from `load`.
        card: Its card.

    Raises:
        UserError: The weights do not fit the card.
    """
    if not card.head:
        return None
    try:
        head = EmbeddingHead(model, **card.head)
        head.load_state_dict(
            {key.removeprefix(_HEAD): value for key, value in _state(file).items() if key.startswith(_HEAD)}
        )
    except (TypeError, RuntimeError) as error:
        raise UserError(f"{file}: the head's weights do not fit its card") from error
    return head.eval()


def _state(file: Path) -> dict[str, Tensor]:
    with safe_open(file, framework="pt") as stored:
        return {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
