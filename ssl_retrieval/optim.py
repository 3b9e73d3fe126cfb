"""Optimizers by name, with the right parameters left out of weight decay, and the learning rate."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from lightly.utils.lars import LARS
from torch import nn

from ssl_retrieval.errors import UserError


@dataclass
class OptimizerConfig:
    """How weights are updated.

    Attributes:
        name: ``adamw``, ``sgd`` or ``lars``.
        lr: Peak learning rate, before ``scale``.
        scale: How ``lr`` depends on the batch size B: ``none``; ``linear``: lr · B / 256; ``sqrt``:
            lr · √B (SimCLR's rule for small batches, with lr = 0.075).
        weight_decay: Not applied to biases, normalisation and what timm's ``no_weight_decay`` names.
        momentum: For sgd and lars.
        warmup: Share of all steps over which the learning rate rises linearly from 0.
        final_lr: Share of the peak at the end of the cosine.
        clip: Largest gradient norm; 0 = no clipping.
    """

    name: str = "sgd"
    lr: float = 0.06
    scale: str = "none"
    weight_decay: float = 5e-4
    momentum: float = 0.9
    warmup: float = 0.1
    final_lr: float = 0.0
    clip: float = 0.0


def peak_lr(cfg: OptimizerConfig, batch_size: int) -> float:
    """Apply the scaling rule.

    >>> peak_lr(OptimizerConfig(lr=0.3, scale="linear"), 512)
    0.6
    """
    factors = {"none": 1.0, "linear": batch_size / 256, "sqrt": math.sqrt(batch_size)}
    if cfg.scale not in factors:
        raise UserError(f"optimizer.scale={cfg.scale!r}: one of {', '.join(factors)}")
    return cfg.lr * factors[cfg.scale]


def lr_factor(progress: float, warmup: float, final: float = 0.0) -> float:
    """Give the learning rate as a share of its peak: linear warm-up, then half a cosine.

    Args:
        progress: Share of the training done, in [0, 1].
        warmup: Share of the training that warms up, in [0, 1).
        final: The share at ``progress`` = 1.

    >>> [round(lr_factor(p, 0.1), 3) for p in (0.0, 0.05, 0.1, 0.55, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if progress < warmup:
        return progress / warmup
    done = (progress - warmup) / (1 - warmup)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))


def make(cfg: OptimizerConfig, method: nn.Module, batch_size: int) -> torch.optim.Optimizer:
    """Build the optimizer over a method's trainable parameters.

    Raises:
        UserError: Unknown name or a value out of range.
    """
    lr = peak_lr(cfg, batch_size)
    if not (cfg.lr > 0 and 0 <= cfg.warmup < 1 and cfg.weight_decay >= 0 and cfg.clip >= 0):
        raise UserError("optimizer: lr > 0, 0 <= warmup < 1, weight_decay >= 0 and clip >= 0 are needed")
    if not (0 <= cfg.momentum < 1 and 0 <= cfg.final_lr <= 1):
        raise UserError("optimizer: 0 <= momentum < 1 and 0 <= final_lr <= 1 are needed")
    groups = _groups(method, cfg.weight_decay)
    if cfg.name == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    if cfg.name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=cfg.momentum)
    if cfg.name == "lars":
        if cfg.weight_decay == 0:
            # lightly's LARS takes groups without weight decay for biases and does not adapt their rate.
            raise UserError("optimizer.weight_decay=0 turns lars into plain sgd: set it above 0, or name=sgd")
        return LARS(groups, lr=lr, momentum=cfg.momentum)
    raise UserError(f"unknown optimizer {cfg.name!r} (known: adamw, sgd, lars)")


def _groups(method: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    exempt: set[str] = set()
    for prefix, module in method.named_modules():
        if hasattr(module, "no_weight_decay"):
            exempt |= {f"{prefix}.{name}".lstrip(".") for name in module.no_weight_decay()}
    decay: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim < 2 or name in exempt else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
