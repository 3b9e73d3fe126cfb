"""Batch normalisation folded into the convolution before it: the same network, a pass over each map less."""

import copy
from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

TOLERANCE = 1e-3
"""Of the largest output value; rounding of deep networks stays below a hundredth of it."""


def fold(model: nn.Module, example: Tensor) -> nn.Module:
    """Give a network that computes the same, to rounding, in less time.

    A fifth of EfficientNet-lite0's time on a CPU goes into batch normalisation, which at inference is a
    factor and a shift per channel: they become part of the convolution. Which convolution feeds which
    normalisation is seen in one forward pass, so that no kind of network has to be known here; a result
    that differs is given up.

    Args:
        model: A network in evaluation mode; it stays as it is.
        example: float [B, 3, H, W], an input that it takes.

    Returns:
        A changed copy, or ``model`` itself where nothing can be folded.
    """
    if model.training or not any(type(module) in _NORMS for module in model.modules()):
        return model
    folded = copy.deepcopy(model)
    with torch.no_grad():
        pairs = _pairs(folded, example)
        if not pairs:
            return model
        for conv, norm in pairs:
            _merge(conv, norm)
        for parent in list(folded.modules()):
            for name, child in list(parent.named_children()):
                if any(child is norm for _, norm in pairs):
                    setattr(parent, name, child.act if isinstance(child, BatchNormAct2d) else nn.Identity())
        before, after = model(example), folded(example)
    same = float((before - after).abs().max()) <= TOLERANCE * float(before.abs().max())
    return folded if same else model


_CONVS = (nn.Conv2d, Conv2dSame)
_NORMS = (nn.BatchNorm2d, BatchNormAct2d)


def _pairs(model: nn.Module, example: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Find each convolution that runs once and whose output goes into a normalisation that runs once."""
    made: dict[int, tuple[Tensor, nn.Conv2d]] = {}
    uses: dict[nn.Module, int] = {}
    found: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def note(conv: Any, _: Any, output: Tensor) -> None:
        uses[conv] = uses.get(conv, 0) + 1
        # The tensor is kept, so that no other one gets its id.
        made[id(output)] = output, conv

    def match(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        uses[norm] = uses.get(norm, 0) + 1
        if id(inputs[0]) in made:
            found.append((made[id(inputs[0])][1], norm))

    hooks = []
    for module in model.modules():
        if type(module) in _CONVS:
            hooks.append(module.register_forward_hook(note))
        elif type(module) in _NORMS and module.track_running_stats:
            hooks.append(module.register_forward_pre_hook(match))
    model(example)
    for hook in hooks:
        hook.remove()
    return [(conv, norm) for conv, norm in found if uses[conv] == uses[norm] == 1]


def _merge(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    conv.weight, conv.bias = weight, bias
