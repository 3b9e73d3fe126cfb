"""What to try on somebody's photos: settings of short trainings, and which of them fit into the time.

The recipe is a gentle one, for there is more to lose than to win: SimCLR (Chen et al., ICML 2020, arXiv
2002.05709) or another method from learned weights, the first stages frozen, batch normalisation as it was.
What differs between candidates is what decided between gain and loss wherever it was measured: whether views
change colour, and how firmly an anchor holds the similarities of the start.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_retrieval import backbones, config, plugins
from ssl_retrieval.adaptation.rule import COPIES
from ssl_retrieval.augment import Augment
from ssl_retrieval.train_config import PretrainConfig

LEAST_PHOTOS = 100
"""About one batch. Fewer photos repel the same few others in every step, and tell too little of whether that
helped."""

COLOURS_KEPT, COLOURS_CHANGED, FOR_COPIES = "colours kept", "colours changed", "copies"

TRIALS: dict[str, tuple[tuple[bool, float], ...]] = {
    COLOURS_KEPT: ((False, 0.0), (False, 1.0), (False, 3.0)),
    COLOURS_CHANGED: ((False, 0.0), (False, 1.0), (True, 1.0), (False, 3.0)),
    FOR_COPIES: ((True, 1.0), (True, 0.0), (True, 3.0), (False, 0.0)),
}
"""Colour changes and weight of the anchor, of what is tried, the most informative first: what won most
wherever it was measured (docs/adaptation_results.md). Free training won most where it won and lost most where
it lost; the anchor at 3 lost nowhere. Colour changes helped where photos hang together by shape, and wherever
altered copies were searched from off-the-shelf weights; a network that had learned from few pictures found
more of them without, so that is tried for copies too, last. Free training with colour changes is tried for
copies alone: in search for what is similar it mostly lost, and the rule alone has let that pass
(docs/adaptation.md)."""

BATCH_SIZE = 96
STEPS = (12, 18, 27, 40, 54, 81, 108, 162, 216)
"""Lengths of trainings. A few fixed ones, so that small differences in speed end in the same plan."""

FIRST_STEPS, GOOD_STEPS = 54, 27
"""A trial takes up to 54 steps: 5,184 photos seen. Rather than cut all trials below 27, fewer are made."""

FIRST_SHARE = 0.6
"""Share of the time for the first trials; the rest is for training the best of them longer."""

FROZEN, FROZEN_DEEPER, _OF_STAGES = 4, 2, 7
"""Share of the stages that stay as they are: four of the seven of an EfficientNet, or two."""

_DEEPER_COST = 1.5
"""A step through five stages of seven over one through three, about."""


@dataclass(frozen=True)
class Setting:
    """One training.

    Attributes:
        start: timm name of the network.
        weights: Where its weights come from: as ``model.weights`` of a training.
        method: What is trained: a name of ``ssl_retrieval/methods`` that needs no labels.
        jitter: Whether views change colour as usual, or not at all.
        anchor: Weight λ of the anchor to the similarities of the start; 0 = free.
        frozen: Sevenths of the stages that stay as they are.
        image_size: Side of the views in pixels.
        steps: Updates of the weights.
        batch_size: Photos per step.
        seed: Of order and views.
    """

    start: str = "tf_efficientnet_lite0"
    weights: str = "offline"
    method: str = "simclr"
    jitter: bool = False
    anchor: float = 0.0
    frozen: int = FROZEN
    image_size: int = 128
    steps: int = 54
    batch_size: int = BATCH_SIZE
    seed: int = 0

    @property
    def name(self) -> str:
        """Say what sets it apart from other trainings of the same start.

        >>> Setting(anchor=3).name
        'simclr, no colour changes, anchor 3'
        >>> Setting(method="byol", jitter=True).name
        'byol, colour changes, free'
        """
        colour = "colour changes" if self.jitter else "no colour changes"
        held = f"anchor {self.anchor:g}" if self.anchor else "free"
        return f"{self.method}, {colour}, {held}{', more layers' if self.frozen < FROZEN else ''}"


@dataclass(frozen=True)
class Pace:
    """How fast this machine is, in seconds.

    Attributes:
        setup_s: Before the first step of a training.
        image_s: Per photo of an anchored step.
        probe_s: Judging what a training has left.
    """

    setup_s: float
    image_s: float
    probe_s: float

    def seconds(self, setting: Setting) -> float:
        """Expect so much time for a training and its judgement."""
        return self.setup_s + setting.steps * setting.batch_size * self.image_s + self.probe_s


def pretrain_config(setting: Setting, data: Mapping[str, Any], out: Path) -> PretrainConfig:
    """Say the setting in the keys of ``ssl-retrieval pretrain``.

    Args:
        setting: What to train.
        data: Dataset section with the photos, e.g. ``{"name": "packed", "root": "photos.npy"}``.
        out: Folder of the run.

    Raises:
        UserError: An unknown network or method, or a value that the training refuses.
    """
    stages = backbones.num_stages(setting.start)
    keys = {
        "out": str(out),
        "seed": setting.seed,
        "data": dict(data),
        "model": {
            "name": setting.start,
            "weights": setting.weights,
            "image_size": setting.image_size,
            "freeze": setting.frozen * stages // _OF_STAGES,
            "batchnorm": "eval",
        },
        "method": {"name": setting.method, **_method(setting)},
        "optimizer": {"name": "adamw", "lr": 3e-4, "weight_decay": 1e-4, "warmup": 0.3},
        "steps": setting.steps,
        "batch_size": setting.batch_size,
        # Room for crops, as much as the recipe was measured with: 160 px for views of 128.
        "pack_size": setting.image_size * 5 // 4,
        "monitor": {"every_epochs": 0},
        # Nothing that is timed first: the same photos and seed give the same network.
        "precision": "fp32",
        "memory_format": "channels_last",
        "compile": "none",
    }
    if setting.anchor:
        keys["anchor"] = {"similarity": setting.anchor}
    return config.load(PretrainConfig, None, settings=keys)


def _method(setting: Setting) -> dict[str, Any]:
    """Give the method's keys: its temperature as measured, and what its views do to colour."""
    own = plugins.find("method", setting.method).Config
    keys: dict[str, Any] = {"temperature": 0.1} if setting.method == "simclr" else {}
    colour = {"jitter": 0.8, "grayscale": 0.2} if setting.jitter else {"jitter": 0.0, "grayscale": 0.0}
    for name, view in vars(own()).items():
        if not isinstance(view, Augment):
            continue
        keys[name] = dict(colour)
        if not setting.jitter:
            keys[name]["solarize"] = 0.0
        if setting.method == "simclr":
            keys[name]["crop_min"] = 0.2
    return keys


def trials_for(goal: str, keeps_colours: bool) -> str:
    """Name what is tried.

    Args:
        goal: What is searched for, see `rule`.
        keeps_colours: What `rule.colour_matters` says of the photos.

    Returns:
        A key of `TRIALS`.
    """
    if goal == COPIES:
        return FOR_COPIES
    return COLOURS_KEPT if keeps_colours else COLOURS_CHANGED


def plan(
    num_photos: int, seconds: float, pace: Pace, trials: str, base: Setting | None = None
) -> list[Setting]:
    """Choose what to try first.

    Args:
        num_photos: Different photos.
        seconds: Left for trying, all in all.
        pace: How fast this machine is.
        trials: Which: a key of `TRIALS`.
        base: What all settings share; by default the off-the-shelf start.

    Returns:
        The settings, the most informative first; none where the photos or the time do not suffice.

    >>> fast = Pace(setup_s=2, image_s=0.01, probe_s=10)
    >>> [setting.name for setting in plan(2000, 500, fast, COLOURS_KEPT)][:2]
    ['simclr, no colour changes, free', 'simclr, no colour changes, anchor 1']
    >>> plan(12, 500, fast, COLOURS_KEPT)
    []
    """
    if num_photos < LEAST_PHOTOS:
        return []
    base = base or Setting()
    base = dataclasses.replace(base, batch_size=min(base.batch_size, num_photos // 2))
    share = seconds * FIRST_SHARE
    for count in range(len(TRIALS[trials]), 0, -1):
        steps = _fitting(base, share / count, pace, FIRST_STEPS)
        if steps is not None and (steps >= GOOD_STEPS or count == 1):
            return [
                dataclasses.replace(base, jitter=jitter, anchor=anchor, steps=steps)
                for jitter, anchor in TRIALS[trials][:count]
            ]
    return []


def deeper(setting: Setting, seconds: float, pace: Pace) -> Setting | None:
    """Plan the same training through more layers; None where then no time were left to train longer.

    Args:
        setting: The best so far.
        seconds: Left for trying, all in all.
        pace: How fast this machine is.
    """
    more = dataclasses.replace(setting, frozen=FROZEN_DEEPER)
    slower = dataclasses.replace(pace, image_s=_DEEPER_COST * pace.image_s)
    left_s = seconds - slower.seconds(more)
    return more if longer(more, left_s, slower) is not None else None


def longer(setting: Setting, seconds: float, pace: Pace) -> Setting | None:
    """Plan the same training with more steps, from the start anew; None where the time does not suffice.

    A schedule that has run down cannot be gone on with, so a training that is only a little longer than the
    first one is no gain.
    """
    steps = _fitting(setting, seconds, pace, STEPS[-1])
    if steps is None or steps < 1.5 * setting.steps:
        return None
    return dataclasses.replace(setting, steps=steps)


def _fitting(setting: Setting, seconds: float, pace: Pace, most: int) -> int | None:
    """Find the longest of `STEPS` that fits; None where none does."""
    lengths = [dataclasses.replace(setting, steps=steps) for steps in STEPS if steps <= most]
    return max((s.steps for s in lengths if pace.seconds(s) <= seconds), default=None)
