"""From config and data to what a run is made of: the network, and every setting that was left open."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ssl_retrieval import backbones, checkpoint, defaults, distributed, ema, optim, run_folder
from ssl_retrieval.class_balanced import ClassBalancedSampler
from ssl_retrieval.console import say
from ssl_retrieval.defaults import Facts, given
from ssl_retrieval.errors import UserError
from ssl_retrieval.multi_crop import SMALLEST_IMAGE
from ssl_retrieval.network_input import InputSpec
from ssl_retrieval.rounds import Round
from ssl_retrieval.sampler import Sampler
from ssl_retrieval.train_config import PretrainConfig, signal_of
from ssl_retrieval.tuple_sampler import TupleSampler
from ssl_retrieval.types import Choices, IntArray

AnySampler = Sampler | ClassBalancedSampler | TupleSampler


def _shows_several_sizes(cfg: PretrainConfig, module: Any) -> bool:
    """Tell whether the network must take small crops beside large ones."""
    if not getattr(module.Method, "multi_crop", False):
        return False
    local_crops = cfg.method.local_crops
    return local_crops > 0 if local_crops is not None else cfg.model.image_size >= SMALLEST_IMAGE


def build_backbone(cfg: PretrainConfig, module: Any) -> tuple[nn.Module, checkpoint.Card]:
    """Build the network, say how, and begin the card that goes with its weights.

    Args:
        cfg: The run's config.
        module: The method's file.
    """
    model, dynamic_size = cfg.model, _shows_several_sizes(cfg, module)
    stem, why_stem = backbones.choose_stem(model.stem, model.image_size, model.name, model.weights)
    patch, why_patch = backbones.choose_patch(model.patch_size, model.image_size, model.name, model.weights)
    backbone = backbones.make(
        model.name,
        model.weights,
        image_size=model.image_size,
        stem=stem,
        seed=cfg.seed,
        drop_path=model.drop_path,
        patch_size=patch,
        dynamic_size=dynamic_size,
    )
    how = f"{stem} stem: {why_stem}" if patch is None else f"patches of {patch} px: {why_patch}"
    say(f"{model.name}, {model.weights} weights; {how}")
    backbones.freeze(backbone, model.freeze)
    normal: Any = backbone.pretrained_cfg
    spec = InputSpec(model.image_size, tuple(normal["mean"]), tuple(normal["std"]))
    return backbone, checkpoint.Card(
        backbone=model.name,
        stem=stem,
        patch_size=patch,
        dynamic_size=dynamic_size,
        input=spec.to_dict(),
        method=cfg.method.name,
        start=model.weights,
        seed=cfg.seed,
        family=signal_of(cfg).family,
    )


def anchored_start(
    cfg: PretrainConfig, backbone: nn.Module, card: checkpoint.Card
) -> tuple[nn.Module | None, checkpoint.Card]:
    """Copy the network that anchors hold on to, and note on the card which one it was.

    It is built anew whenever a run goes on, and never stored.

    Args:
        cfg: The run's config.
        backbone: The network before training, without adapters.
        card: Its card.

    Returns:
        The frozen copy, None where there is no anchor; and the card.

    Raises:
        UserError: Weights are to be interpolated with a start that has no projection to interpolate.
    """
    share = cfg.anchor.interpolate
    if not cfg.anchor.is_on:
        return None, card
    if share < 1 and getattr(cfg.method, "dim", None):
        raise UserError(
            f"anchor.interpolate={share}: method.dim={cfg.method.dim} adds a projection that the start "
            "lacks: set method.dim=0, or anchor.interpolate=1"
        )
    start = ema.copy_of(backbone).eval()
    noted = {"start_digest": backbones.weights_digest(start)} | ({"interpolate": share} if share < 1 else {})
    return start, dataclasses.replace(card, extra=card.extra | noted)


def sampler_of(cfg: PretrainConfig, num_images: int, labels: IntArray | None) -> AnySampler:
    """Say which images make a step.

    Args:
        cfg: The run's settled config.
        num_images: Readable training images.
        labels: int64 [N], for a method that learns from labels.

    Raises:
        UserError: A batch cannot be made of so many images of each class.
    """
    count = given(cfg.images_per_class)
    if labels is None or count == 0:
        return Sampler(num_images, cfg.batch_size, cfg.seed)
    _require_whole(cfg, count, f"images_per_class={count}")
    sampler = ClassBalancedSampler(labels, cfg.batch_size, count, cfg.seed)
    say(
        f"batches of {sampler.classes_per_batch} classes, {count} images of each"
        + (f"; {sampler.num_left_out} classes have fewer and are left out" if sampler.num_left_out else "")
    )
    return sampler


def sampler_of_round(cfg: PretrainConfig, found: Round, number: int) -> AnySampler:
    """Say which images make a step of a round: counted from the round's first step, tuples from the run's.

    Args:
        cfg: The run's settled config.
        found: What the round is learned from.
        number: Of the round: each is shuffled anew, but for tuples.

    Raises:
        UserError: A batch cannot be made.
    """
    if found.tuples is not None:
        _require_whole(cfg, found.tuples.shape[1], f"tuples of {found.tuples.shape[1]} images")
        return TupleSampler(found.tuples, cfg.batch_size, cfg.seed)
    seed = int(np.random.SeedSequence([cfg.seed % 2**64, number]).generate_state(1)[0])
    return sampler_of(dataclasses.replace(cfg, seed=seed), len(found.labels), found.labels.numpy())


def _require_whole(cfg: PretrainConfig, count: int, what: str) -> None:
    """Insist that images that belong together stay together.

    Raises:
        UserError: A process and part of a batch would cut them apart.
    """
    share = distributed.share_of(cfg.batch_size, cfg.accumulate)
    if share % count:
        raise UserError(
            f"{what}: the {share} images of a process and part of a batch are no multiple "
            f"of {count}: change batch_size or accumulate"
        )


def require_classes(cfg: PretrainConfig, num_classes: int) -> None:
    """Refuse a classifier of fewer classes than there are.

    Raises:
        UserError: Names both numbers.
    """
    wanted = getattr(cfg.method, "num_classes", None)
    if wanted is not None and wanted < num_classes:
        raise UserError(
            f"method.num_classes={wanted}: the training labels name {num_classes} classes; leave it out"
        )


def settle(
    cfg: PretrainConfig,
    module: Any,
    num_images: int,
    backbone: nn.Module,
    out: Path,
    num_classes: int = 0,
) -> PretrainConfig:
    """Fill what the config leaves open: as stored with the run, or by the data, announced and stored.

    Args:
        cfg: The run's config.
        module: The method's file.
        num_images: Readable training images.
        backbone: The network.
        out: The run's folder.
        num_classes: Classes in the training labels, for a method that learns from labels.
    """
    per_epoch = num_images // cfg.batch_size
    if cfg.steps is not None:
        cfg = dataclasses.replace(cfg, epochs=-(-cfg.steps // per_epoch))
    stored = run_folder.stored_choices(out)
    if stored is not None:
        return defaults.fill(cfg, stored)[0]
    facts = Facts(
        num_images=num_images,
        batch_size=cfg.batch_size,
        image_size=cfg.model.image_size,
        pretrained=cfg.model.weights != "random",
        transformer=backbones.patch_size(backbone) > 1,
        num_classes=num_classes,
        own_labels=signal_of(cfg).renewed,
    )
    common = defaults.common(facts)
    if facts.pretrained and (cfg.optimizer.name == "lars" or (cfg.epochs or 0) > 3 * common["epochs"][0]):
        say(
            "  optimizer and epochs of this config look meant for random weights: set them to null for "
            f"learned ones (epochs: {common['epochs'][0]}), or much of what was learned is lost"
        )
    cfg, used = defaults.fill(cfg, common)
    steps = cfg.steps or given(cfg.epochs) * per_epoch
    facts = dataclasses.replace(facts, num_steps=max(1, steps))
    usual: Choices = {"images_per_class": (0, "")}
    if facts.own_labels:
        usual["renew_every"] = (1.0, "once per epoch")
    recipe = usual | module.defaults(facts)
    cfg, more = defaults.fill(cfg, recipe | optim.choices(cfg.optimizer, recipe, facts))
    used |= more
    for key, (value, reason) in used.items():
        if reason:
            say(f"  {key}={value} ({reason})")
    distributed.barrier()
    if distributed.rank() == 0:
        run_folder.store_choices(out, used)
    return cfg
