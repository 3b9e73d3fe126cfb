"""Adapters: small matrices that are trained in place of a network's weights, and merged into them in the end.

Hu et al.: LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022 (arXiv 2106.09685), by peft. Beside a
layer's weights W stands a product B·A of low rank; B begins as 0, so that training begins at the start.
"""

from typing import Any

import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from ssl_retrieval import backbones
from ssl_retrieval.errors import UserError

KINDS = ("none", "lora")

_PLAIN = (nn.Linear.forward, nn.Conv2d.forward, Conv2dSame.forward)
"""How layers compute to which a product of matrices may be added: others change their weights on the way."""


def check(kind: str, rank: int) -> None:
    """Refuse values that mean nothing, and a missing package.

    Raises:
        UserError: Names the key.
    """
    if kind not in KINDS:
        raise UserError(f"model.adapter={kind!r}: one of {', '.join(KINDS)}")
    if rank < 1:
        raise UserError(f"model.adapter_rank={rank}: must be at least 1")
    if kind == "lora":
        _peft()


def add(model: nn.Module, kind: str, rank: int, seed: int = 0) -> int:
    """Put adapters beside the layers that would be trained, in place; nothing else there trains.

    Adapted are linear layers (in a ViT ``qkv``, ``proj``, ``fc1``, ``fc2``) and convolutions that mix
    channels; not the first layer, and no depthwise or grouped convolutions, which are small anyway. Batch
    normalisation keeps its statistics, for its weights are frozen (see `backbones.train_mode`).

    Args:
        model: From `backbones.make`, perhaps after `backbones.freeze`.
        kind: ``none`` or ``lora``.
        rank: Rank of the products.
        seed: Of A, which begins at random.

    Returns:
        The number of layers with adapters.

    Raises:
        UserError: peft is missing, or no layer can have one.
    """
    if kind == "none":
        return 0
    peft = _peft()
    names = [name for name, layer in model.named_modules() if _is_adaptable(layer)]
    first: Any = model.pretrained_cfg["first_conv"]  # type: ignore[index]
    names = [name for name in names if name != first]
    if not names:
        raise UserError(
            "model.adapter=lora: no linear layer or plain convolution is left to adapt: lower model.freeze, "
            "or set model.adapter=none"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # With alpha = rank the product counts as it is.
        peft.inject_adapter_in_model(
            peft.LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=names), model
        )
    return len(names)


@torch.no_grad()
def merged(model: nn.Module) -> nn.Module:
    """Give a plain timm network that computes the same; the network itself where it has no adapters."""
    if not any(_is_adapted(layer) for layer in model.modules()):
        return model
    plain = backbones.copied(model)
    for name, layer in list(plain.named_modules()):
        if _is_adapted(layer):
            adapted: Any = layer
            adapted.merge()
            plain.set_submodule(name, adapted.get_base_layer())
    # peft leaves its settings there; a plain network has none.
    vars(plain).pop("peft_config", None)
    return plain


def _is_adaptable(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.Linear | nn.Conv2d) or type(layer).forward not in _PLAIN:
        return False
    if not layer.weight.requires_grad:
        return False
    return isinstance(layer, nn.Linear) or (layer.groups == 1 and layer.dilation == (1, 1))


def _is_adapted(layer: nn.Module) -> bool:
    return hasattr(layer, "lora_A") and hasattr(layer, "get_base_layer")


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise UserError(
            "model.adapter=lora needs the package peft: pip install 'ssl-retrieval[lora]'"
        ) from error
    return peft
