"""Any layer of a network, by timm's feature index or by the name of a module."""

import difflib
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ssl_retrieval import folding
from ssl_retrieval.errors import UserError


class _ReachedError(Exception):
    """Carries a layer's output out of a forward pass, of which the rest is not needed."""

    def __init__(self, output: Any) -> None:
        self.output = output


def feature_layers(model: nn.Module) -> list[str]:
    """Name the modules that timm's feature indices stand for, in order."""
    info: Any = getattr(model, "feature_info", [])
    return [str(entry["module"]) for entry in info]


def find(model: nn.Module, layer: str) -> str | int:
    """Resolve ``model.layer``.

    Args:
        model: A timm network.
        layer: An index as in timm's ``out_indices``, which may be negative, or a dotted module name.

    Returns:
        The module's name; the index itself, where the network can be asked for it.

    Raises:
        UserError: There is no such layer; the text lists the feature layers and the nearest names.
    """
    features = feature_layers(model)
    names = [name for name, _ in model.named_modules() if name]
    found = layer
    if layer.removeprefix("-").isdecimal():
        index = int(layer)
        found = features[index] if -len(features) <= index < len(features) else ""
        if found and hasattr(model, "forward_intermediates"):
            return index
    if found in names:
        return found
    near = difflib.get_close_matches(layer, names, n=3)
    guess = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    listed = ", ".join(f"{index} = {name}" for index, name in enumerate(features))
    parts = ", ".join(name for name in names if "." not in name)
    others = f"feature layers: {listed}" if listed else f"modules: {parts}"
    raise UserError(f"model.layer={layer!r}: {_network(model)} has no such layer{guess} ({others})")


def ended(model: nn.Module, folded: nn.Module, layer: str | int, example: Tensor) -> nn.Module:
    """Make a network end at a layer: from then on, only `output` can run it.

    Args:
        model: A timm network.
        folded: The same with its batch normalisation folded, or ``model`` itself.
        layer: From `find`.
        example: float [1, 3, H, W], an input that it takes.

    Returns:
        ``folded``, if the layer still gives the same there; else ``model``.

    Raises:
        UserError: The layer gives no map.
    """
    _stop_at(model, layer)
    if folded is model or (isinstance(layer, str) and layer not in dict(folded.named_modules())):
        return model
    _stop_at(folded, layer)
    with torch.no_grad():
        before, after = (output(network, example, layer) for network in (model, folded))
    # A convolution gives what comes after the normalisation, once that is folded into it.
    same = float((before - after).abs().max()) <= folding.TOLERANCE * float(before.abs().max())
    return folded if same else model


def _stop_at(model: nn.Module, layer: str | int) -> None:
    if isinstance(layer, int):
        return

    def stop(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        raise _ReachedError(output)

    model.get_submodule(layer).register_forward_hook(stop)


def output(model: nn.Module, images: Tensor, layer: str | int) -> Tensor:
    """Run a network up to the layer at which it was ended.

    Args:
        model: It went through `ended`.
        images: float [B, 3, H, W], normalised.
        layer: Which layer that was.

    Returns:
        float [B, …], with 2 to 4 dimensions.

    Raises:
        UserError: The layer takes no part, or does not give one tensor with a row per image.
    """
    found = _by_index(model, images, layer) if isinstance(layer, int) else _by_name(model, images)
    if not isinstance(found, Tensor) or found.ndim not in (2, 3, 4) or len(found) != len(images):
        raise UserError(
            f"model.layer={layer}: this layer of {_network(model)} gives no map of an image; try another: "
            f"{', '.join(feature_layers(model))}"
        )
    return found


def _by_name(model: nn.Module, images: Tensor) -> Any:
    try:
        model(images)
    except _ReachedError as reached:
        return reached.output
    return None


def _by_index(model: Any, images: Tensor, index: int) -> Any:
    """Ask the network, which knows how to make a map of what its modules give."""
    has_prefix = "return_prefix_tokens" in inspect.signature(model.forward_intermediates).parameters
    more = {"return_prefix_tokens": True} if has_prefix else {}
    found = model.forward_intermediates(
        images, indices=[index], stop_early=True, intermediates_only=True, **more
    )[0]
    if not isinstance(found, tuple):
        return found
    maps, prefix = found
    return torch.cat([prefix, maps.flatten(2).mT], dim=1)


def _network(model: nn.Module) -> str:
    card: Any = getattr(model, "pretrained_cfg", {})
    return repr(card.get("architecture") or type(model).__name__)
