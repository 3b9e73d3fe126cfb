"""Optimizers by name, with the right parameters left out of weight decay, and their schedules."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.models import group_parameters
from torch import nn

from ssl_retrieval.defaults import Facts, given
from ssl_retrieval.errors import UserError
from ssl_retrieval.lars import LARS
from ssl_retrieval.schedules import cosine
from ssl_retrieval.types import Choices

KNOWN = ("adamw", "sgd", "lars")

WARMUP_EPOCHS, WARMUP_STEPS = 10, 1000
"""For how long the learning rate rises where the method has no rule of its own."""

_FUSED_ON = ("cuda", "cpu")
"""On a CPU too: AdamW then takes a fifth of its time."""

_SCALES = ("none", "linear", "sqrt")

_Range = tuple[tuple[str, ...], Callable[[float], bool], str]
_RANGES: list[_Range] = [
    (("lr", "bias_lr", "patch_embed_lr", "encoder_lr"), lambda value: value > 0, "more than 0"),
    (("weight_decay", "weight_decay_end", "clip"), lambda value: value >= 0, "at least 0"),
    (("warmup", "momentum", "encoder_start"), lambda value: 0 <= value < 1, "at least 0 and less than 1"),
    (("final_lr",), lambda value: 0 <= value <= 1, "a share in [0, 1]"),
    (("beta2",), lambda value: 0 < value < 1, "between 0 and 1"),
    (("layer_decay",), lambda value: 0 < value <= 1, "more than 0 and at most 1"),
]

_GENERIC = {
    "adamw": {"lr": 5e-4, "scale": "linear", "weight_decay": 0.05},
    "sgd": {"lr": 0.06, "scale": "linear", "weight_decay": 5e-4},
    "lars": {"lr": 0.3, "scale": "linear", "weight_decay": 1e-6},
}


@dataclass
class OptimizerConfig:
    """How weights are updated; None = the method's own recipe.

    Attributes:
        name: ``adamw``, ``sgd`` or ``lars``.
        lr: Peak learning rate, before ``scale``.
        scale: How ``lr`` depends on the batch size B: ``none``; ``linear``: lr · B / 256; ``sqrt``:
            lr · √B (SimCLR's rule for small batches, with lr = 0.075).
        weight_decay: Not applied to biases, normalisation and what timm's ``no_weight_decay`` names.
        weight_decay_end: Where a cosine takes the weight decay by the end; None = it is constant.
        momentum: For sgd and lars.
        beta2: For adamw.
        warmup: Share of all steps over which the learning rate rises linearly from 0.
        final_lr: Share of the peak at the end of the cosine.
        clip: Largest gradient norm; 0 = no clipping.
        clip_mode: ``global``: the norm of all gradients together; ``each``: of every parameter by itself,
            as DINO's code does.
        bias_lr: Factor on the learning rate of biases and normalisation (Barlow Twins).
        layer_decay: Factor on the learning rate per layer below the top (1 = none; ViTs).
        patch_embed_lr: Factor on the learning rate of a ViT's patch embedding (DINOv2).
        encoder_lr: Factor on the learning rate of the network below the heads.
        encoder_start: Share of the training during which the network keeps its weights and the heads alone
            learn; its own warm-up and cosine follow (Kumar et al., ICLR 2022, arXiv 2202.10054).
    """

    name: str | None = None
    lr: float | None = None
    scale: str | None = None
    weight_decay: float | None = None
    weight_decay_end: float | None = None
    momentum: float | None = None
    beta2: float | None = None
    warmup: float | None = None
    final_lr: float | None = None
    clip: float | None = None
    clip_mode: str | None = None
    bias_lr: float | None = None
    layer_decay: float | None = None
    patch_embed_lr: float | None = None
    encoder_lr: float | None = None
    encoder_start: float | None = None


def choices(cfg: OptimizerConfig, recipe: Choices, facts: Facts) -> Choices:
    """Say what fills the open settings: the method's recipe, or the optimizer's usual ones.

    A method's learning rate belongs to its optimizer: with another ``name`` it would be off by orders. What
    is neutral (no clipping, no layer decay, …) has no reason and need not be announced.

    Args:
        cfg: As the user gave it.
        recipe: The method's ``defaults``.
        facts: What defaults depend on.

    Raises:
        UserError: Unknown optimizer.
    """
    own = {key: choice for key, choice in recipe.items() if key.startswith("optimizer.")}
    own.setdefault("optimizer.name", ("adamw" if facts.transformer else "sgd", "the usual one"))
    name = cfg.name or own["optimizer.name"][0]
    if name not in KNOWN:
        raise UserError(f"unknown optimizer {name!r} (known: {', '.join(KNOWN)})")
    if name != own["optimizer.name"][0]:
        own = {key: choice for key, choice in own.items() if key == "optimizer.warmup"}
    usual: Choices = {f"optimizer.{key}": (v, f"usual for {name}") for key, v in _GENERIC[name].items()}
    if cfg.lr is not None:
        # A learning rate that somebody wrote down is meant as it stands.
        own.pop("optimizer.scale", None)
        usual["optimizer.scale"] = ("none", "optimizer.lr is given")
    neutral = {"momentum": 0.9, "beta2": 0.999, "final_lr": 0.0, "clip": 0.0, "clip_mode": "global"}
    neutral |= {"bias_lr": 1.0, "layer_decay": 1.0, "patch_embed_lr": 1.0}
    neutral |= {"encoder_lr": 1.0, "encoder_start": 0.0}
    plain: Choices = {f"optimizer.{key}": (value, "") for key, value in neutral.items()}
    plain["optimizer.warmup"] = _warmup(facts)
    return plain | usual | own


def _warmup(facts: Facts) -> tuple[float, str]:
    """Warm up for 10 epochs, as nearly all authors do, but for small sets these would be few steps."""
    steps = max(WARMUP_EPOCHS * facts.num_images / facts.batch_size, WARMUP_STEPS)
    share = min(0.1, steps / facts.num_steps)
    return round(share, 5), f"{WARMUP_EPOCHS} epochs, at least {WARMUP_STEPS} steps, at most a tenth of all"


def peak_lr(cfg: OptimizerConfig, batch_size: int) -> float:
    """Apply the scaling rule.

    >>> peak_lr(OptimizerConfig(lr=0.3, scale="linear"), 512)
    0.6
    """
    factors = {"none": 1.0, "linear": batch_size / 256, "sqrt": math.sqrt(batch_size)}
    return given(cfg.lr) * factors[given(cfg.scale)]


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
    return cosine((progress - warmup) / (1 - warmup), 1.0, final)


def make(
    cfg: OptimizerConfig, method: nn.Module, batch_size: int, device: str = "cpu"
) -> torch.optim.Optimizer:
    """Build the optimizer over a method's trainable parameters.

    Args:
        cfg: Filled (see `choices`).
        method: With its ``encoder`` and, perhaps, ``fixed_lr`` and ``lr_factors``.
        batch_size: Images per step, for the scaling rule.
        device: Type of the device; fused versions are taken where torch has them.

    Raises:
        UserError: Unknown name or a value out of range.
    """
    check_given(cfg)
    lr = peak_lr(cfg, batch_size)
    groups = _groups(cfg, method, lr)
    fused = {"fused": True} if device in _FUSED_ON else {}
    if cfg.name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=(0.9, given(cfg.beta2)), **fused)
    if cfg.name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=given(cfg.momentum), **fused)
    return LARS(groups, lr=lr, momentum=given(cfg.momentum))


def schedule(cfg: OptimizerConfig, optimizer: torch.optim.Optimizer, progress: float) -> tuple[float, float]:
    """Set learning rates and weight decays for a step.

    Args:
        cfg: Filled.
        optimizer: From `make`.
        progress: Share of the training done.

    Returns:
        The learning rate of ordinary weights, and the weight decay.
    """
    factor = lr_factor(progress, given(cfg.warmup), given(cfg.final_lr))
    start = given(cfg.encoder_start)
    of_encoder = lr_factor((progress - start) / (1 - start), given(cfg.warmup), given(cfg.final_lr))
    of_encoder = of_encoder if progress >= start else 0.0
    decay = given(cfg.weight_decay)
    if cfg.weight_decay_end is not None:
        decay = cosine(progress, decay, cfg.weight_decay_end)
    for group in optimizer.param_groups:
        # States of earlier versions know of none that wait.
        moving = of_encoder if group.get("waits") else factor
        group["lr"] = group["peak"] * (1.0 if group["fixed"] else moving)
        if group["decays"]:
            group["weight_decay"] = decay
    return optimizer.defaults["lr"] * factor, decay


def clip_gradients(cfg: OptimizerConfig, method: nn.Module) -> None:
    """Limit the gradients' norms as the config says."""
    limit = given(cfg.clip)
    if limit == 0:
        return
    parameters = [p for p in method.parameters() if p.grad is not None]
    if cfg.clip_mode == "global":
        nn.utils.clip_grad_norm_(parameters, limit)
    else:
        for parameter in parameters:
            nn.utils.clip_grad_norm_(parameter, limit)


def check_given(cfg: OptimizerConfig) -> None:
    """Refuse values out of range, as far as a config gives them.

    Raises:
        UserError: Names the key and its range.
    """
    if cfg.name not in (None, *KNOWN):
        raise UserError(f"unknown optimizer {cfg.name!r} (known: {', '.join(KNOWN)})")
    if cfg.scale not in (None, *_SCALES):
        raise UserError(f"optimizer.scale={cfg.scale!r}: one of {', '.join(_SCALES)}")
    if cfg.clip_mode not in (None, "global", "each"):
        raise UserError(f"optimizer.clip_mode={cfg.clip_mode!r}: one of global, each")
    for names, fits, needed in _RANGES:
        for name in names:
            value = getattr(cfg, name)
            if value is not None and not fits(value):
                raise UserError(f"optimizer.{name}={value}: {needed} is needed")
    if cfg.name == "lars" and cfg.weight_decay == 0:
        # LARS takes groups without weight decay for biases and does not adapt their rate.
        raise UserError("optimizer.weight_decay=0 turns lars into plain sgd: set it above 0, or name=sgd")


def _groups(cfg: OptimizerConfig, method: nn.Module, lr: float) -> list[dict[str, Any]]:
    """Sort the parameters by weight decay, peak learning rate, fixed, waiting; in their own order."""
    exempt: set[str] = set()
    for prefix, module in method.named_modules():
        if hasattr(module, "no_weight_decay"):
            exempt |= {f"{prefix}.{name}".lstrip(".") for name in module.no_weight_decay()}
    depth = _depth_factors(method, given(cfg.layer_decay))
    fixed_prefixes = tuple(getattr(method, "fixed_lr", ()))
    factors = dict(getattr(method, "lr_factors", dict)())
    groups: dict[tuple[bool, float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in method.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim >= 2 and name not in exempt
        in_encoder = name.startswith("encoder.")
        waits = in_encoder and given(cfg.encoder_start) > 0
        peak = lr * depth.get(name, 1.0) * (given(cfg.encoder_lr) if in_encoder else 1.0)
        peak *= math.prod(factor for prefix, factor in factors.items() if name.startswith(prefix))
        if parameter.ndim < 2:
            peak *= given(cfg.bias_lr)
        if ".patch_embed." in name:
            peak *= given(cfg.patch_embed_lr)
        fixed = bool(fixed_prefixes) and name.startswith(fixed_prefixes)
        groups.setdefault((decays, peak, fixed, waits), []).append(parameter)
    decay = given(cfg.weight_decay)
    return [
        {"params": group, "weight_decay": decay if decays else 0.0, "peak": peak}
        | {"lr": peak, "fixed": fixed, "decays": decays, "waits": waits}
        for (decays, peak, fixed, waits), group in groups.items()
    ]


def _depth_factors(method: nn.Module, layer_decay: float) -> dict[str, float]:
    """Give each parameter of the encoder its factor: 1 for the last layer, less below."""
    if layer_decay == 1:
        return {}
    encoder: Any = method.encoder
    groups = group_parameters(encoder, encoder.group_matcher(coarse=False))
    top = len(groups)
    return {
        f"encoder.{name}": layer_decay ** (top - depth)
        for depth, (_, names) in enumerate(sorted(groups.items()), 1)
        for name in names
    }
