"""Maps and class tokens, out of whatever form a network's layers give: maps, channels last, tokens."""

from math import isqrt
from typing import Any, NamedTuple

from torch import Tensor, nn

from ssl_retrieval import backbones
from ssl_retrieval.errors import UserError


class Activations(NamedTuple):
    """What a layer says about some images.

    Attributes:
        maps: float [B, C, h, w]; of tokens that form no square, [B, C, T, 1].
        prefix: float [B, P, C]: the class and register tokens; P is 0 where there are none.
    """

    maps: Tensor
    prefix: Tensor


def arrange(features: Tensor, model: nn.Module, images: Tensor) -> Activations:
    """Bring what a layer gave into one form.

    Args:
        features: float [B, C], [B, T, C], [B, C, h, w] or [B, h, w, C].
        model: The network that it comes from.
        images: float [B, 3, H, W]: what went in.
    """
    if features.ndim == 3:
        return _of_tokens(features, model, images)
    if features.ndim == 2:
        maps = features[:, :, None, None]
    else:
        maps = features.permute(0, 3, 1, 2) if _channels_last(features, model, images) else features
    return Activations(maps, maps.new_empty(len(maps), 0, maps.shape[1]))


def class_token(activations: Activations, model: nn.Module) -> Tensor:
    """Take the class token: float [B, C].

    Raises:
        UserError: The network has none, or none at this layer.
    """
    # A register token may stand in the first place too.
    if getattr(model, "cls_token", None) is None or activations.prefix.shape[1] == 0:
        raise UserError("model.pool=cls: no class token here: use mean or gem, or the last layer of a ViT")
    return activations.prefix[:, 0]


def _of_tokens(features: Tensor, model: nn.Module, images: Tensor) -> Activations:
    num_prefix, height, width = _layout(features.shape[1], model, images)
    patches = features[:, num_prefix:].transpose(1, 2)
    return Activations(patches.unflatten(2, (height, width)), features[:, :num_prefix])


def _layout(num_tokens: int, model: nn.Module, images: Tensor) -> tuple[int, int, int]:
    """Give the number of prefix tokens, and height and width of the patches' grid."""
    usual = int(getattr(model, "num_prefix_tokens", 0))
    patch = backbones.patch_size(model)
    height, width = (size // patch for size in images.shape[2:])
    # Some networks add their class token after most of their layers, and some do not count it.
    if 0 <= num_tokens - height * width <= usual:
        return num_tokens - height * width, height, width
    for num_prefix in (usual, 0, 1):
        side = isqrt(max(0, num_tokens - num_prefix))
        if side > 0 and side**2 == num_tokens - num_prefix:
            return num_prefix, side, side
    return usual, num_tokens - usual, 1


def _channels_last(features: Tensor, model: nn.Module, images: Tensor) -> bool:
    """Tell [B, h, w, C] from [B, C, h, w]: by the square that a square image becomes, where that decides."""
    first, second, third = features.shape[1:]
    if images.shape[2] == images.shape[3] and (first == second) != (second == third):
        return first == second
    own: Any = getattr(model, "output_fmt", "NCHW")
    return bool(own == "NHWC")
