"""What is tried on somebody's photos, and what fits into the time."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl_retrieval.adaptation import plan
from ssl_retrieval.adaptation.plan import Pace, Setting
from ssl_retrieval.augment import Augment
from ssl_retrieval.errors import UserError

PACE = Pace(setup_s=2, image_s=0.01, probe_s=10)
DATA = {"name": "folder", "root": "photos"}


def views(cfg: object) -> list[Augment]:
    return [value for value in vars(cfg).values() if isinstance(value, Augment)]


@pytest.mark.parametrize("method", ["simclr", "byol", "dino"])
def test_without_jitter_no_view_changes_colour(method: str) -> None:
    cfg = plan.pretrain_config(Setting(method=method), DATA, Path("run"))
    assert views(cfg.method)
    for view in views(cfg.method):
        assert (view.jitter, view.grayscale, view.solarize) == (0, 0, 0)
    with_colour = plan.pretrain_config(Setting(method=method, jitter=True), DATA, Path("run"))
    assert all(view.jitter == 0.8 and view.grayscale == 0.2 for view in views(with_colour.method))


def test_the_recipe_is_the_measured_one() -> None:
    cfg = plan.pretrain_config(Setting(seed=4, steps=27), DATA, Path("run"))
    assert (cfg.seed, cfg.steps, cfg.epochs, cfg.batch_size, cfg.pack_size) == (4, 27, None, 96, 160)
    assert (cfg.model.freeze, cfg.model.batchnorm, cfg.model.weights) == (4, "eval", "offline")
    assert (cfg.optimizer.name, cfg.optimizer.lr, cfg.optimizer.warmup) == ("adamw", 3e-4, 0.3)
    assert (cfg.method.temperature, cfg.method.augment.crop_min) == (0.1, 0.2)
    assert cfg.monitor.is_off


def test_other_networks_freeze_as_large_a_share() -> None:
    cfg = plan.pretrain_config(Setting(start="resnet18", weights="random"), DATA, Path("run"))
    assert cfg.model.freeze == 2


def test_wrong_names_are_refused() -> None:
    with pytest.raises(UserError, match="nonet"):
        plan.pretrain_config(Setting(start="nonet"), DATA, Path("run"))
    with pytest.raises(UserError, match="nomethod"):
        plan.pretrain_config(Setting(method="nomethod"), DATA, Path("run"))


def test_more_time_tries_more_and_longer() -> None:
    little, more, plenty = (
        plan.plan(2000, seconds, PACE, plan.COLOURS_CHANGED) for seconds in (50, 200, 2000)
    )
    assert len(little) == 1
    assert 1 < len(more) < len(plenty) == len(plan.TRIALS[plan.COLOURS_CHANGED])
    assert little[0].steps < more[0].steps <= plenty[0].steps == plan.FIRST_STEPS
    assert plan.plan(2000, 5, PACE, plan.COLOURS_KEPT) == []


def test_few_photos_are_not_tried_on() -> None:
    assert plan.plan(plan.LEAST_PHOTOS - 1, 1e6, PACE, plan.COLOURS_KEPT) == []
    (first, *_) = plan.plan(plan.LEAST_PHOTOS, 1e6, PACE, plan.COLOURS_KEPT)
    assert first.batch_size == plan.LEAST_PHOTOS // 2


def test_more_layers_are_tried_only_where_the_better_one_can_then_be_trained_longer() -> None:
    setting = Setting(steps=54)
    assert plan.deeper(setting, 100, PACE) is None
    more = plan.deeper(setting, 1000, PACE)
    assert more == dataclasses.replace(setting, frozen=plan.FROZEN_DEEPER)
    assert more.name == "simclr, no colour changes, free, more layers"
    stages = [plan.pretrain_config(one, DATA, Path("run")).model.freeze for one in (setting, more)]
    assert stages == [4, 2]


def test_what_is_shared_stays() -> None:
    base = Setting(start="resnet18", weights="pretrained", image_size=64, seed=3)
    for setting in plan.plan(500, 1e5, PACE, plan.COLOURS_KEPT, base):
        same = dataclasses.replace(setting, jitter=False, anchor=0.0, steps=base.steps)
        assert same == base


@given(
    photos=st.integers(1, 10**6),
    seconds=st.floats(0, 1e5),
    image_s=st.floats(1e-5, 1),
    probe_s=st.floats(0, 100),
)
def test_the_time_is_kept(photos: int, seconds: float, image_s: float, probe_s: float) -> None:
    pace = Pace(1.0, image_s, probe_s)
    settings = plan.plan(photos, seconds, pace, plan.COLOURS_CHANGED)
    spent = sum(map(pace.seconds, settings))
    assert spent <= seconds
    assert len({setting.name for setting in settings}) == len(settings)
    for setting in settings[:1]:
        more = plan.longer(setting, seconds - spent, pace)
        assert more is None or (
            more.steps >= 1.5 * setting.steps and spent + pace.seconds(more) <= seconds + 1e-6
        )
