"""The network that an adaptation begins with, and which it falls back to."""

from pathlib import Path
from typing import Any

from ssl_retrieval import backbones, checkpoint
from ssl_retrieval.errors import UserError
from ssl_retrieval.network_input import InputSpec
from ssl_retrieval.weights import OFFLINE_PACKAGES

AUTO = "auto"


def find(start: str, weights: str = AUTO) -> tuple[str, str]:
    """Resolve what the user calls the start.

    Args:
        start: timm name, or one of our checkpoints or runs.
        weights: As ``model.weights`` of a training; ``auto`` = those of an installed package where there is
            one, else timm's pretrained ones. Of no use with a checkpoint.

    Returns:
        timm name and weights.

    Raises:
        UserError: No such network, a file that is no checkpoint of ours, or random weights.

    >>> find("tf_efficientnet_lite0")
    ('tf_efficientnet_lite0', 'offline')
    >>> find("resnet50")
    ('resnet50', 'pretrained')
    """
    if weights == "random":
        raise UserError(
            "--weights random: a random network has learned nothing to adapt: train it with `ssl-retrieval "
            "pretrain`, or begin with learned weights"
        )
    path = Path(start).expanduser()
    if path.exists():
        file = path / "checkpoint.safetensors" if path.is_dir() else path
        return checkpoint.read_card(file).backbone, str(file.resolve())
    backbones.check_name(start)
    if weights != AUTO:
        return start, weights
    return start, "offline" if start in OFFLINE_PACKAGES else "pretrained"


def save(name: str, weights: str, image_size: int, file: Path) -> None:
    """Write the start as a checkpoint, which has the form that adapted networks have.

    Args:
        name: timm name.
        weights: From `find`.
        image_size: Side of its input in pixels.
        file: Where.

    Raises:
        UserError: The weights cannot be had, or do not take images of this size.
    """
    stem, _ = backbones.choose_stem("auto", image_size, name, weights)
    patch, _ = backbones.choose_patch(None, image_size, name, weights)
    model = backbones.make(name, weights, image_size=image_size, stem=stem, patch_size=patch)
    normal: Any = model.pretrained_cfg
    spec = InputSpec(image_size, tuple(normal["mean"]), tuple(normal["std"]))
    card = checkpoint.Card(
        backbone=name,
        stem=stem,
        patch_size=patch,
        input=spec.to_dict(),
        method="not adapted",
        start=weights,
        family="off-the-shelf",
    )
    checkpoint.save(model, card, file)
