"""Views of several sizes: how many, how large, and one forward pass for each size."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ssl_retrieval import backbones, config
from ssl_retrieval.augment import Augment, View
from ssl_retrieval.defaults import Facts
from ssl_retrieval.errors import UserError
from ssl_retrieval.multi_crop import CropAugment, choices, features, make_views

LARGE = [Augment(blur=1.0), Augment(blur=0.1)]
SMALL = Augment(blur=0.5)


def views_of(**settings: Any) -> list[View]:
    usual: dict[str, Any] = {"image_size": 224, "local_crops": 3, "local_size": 0, "patch_size": 1}
    return make_views(LARGE, SMALL, **usual | settings)


@pytest.mark.parametrize(("network", "small"), [("test_resnet", 20), ("test_vit", 24)])
def test_neighbours_of_one_size_share_a_forward_pass(network: str, small: int) -> None:
    net = backbones.make(
        network, image_size=32, patch_size=8 if "vit" in network else None, dynamic_size=True
    )
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(2, 3, size, size, generator=generator) for size in (32, 32, small, small, small)]
    seen: list[Tensor] = []
    forward = net.forward_features
    net.forward_features = lambda images: (seen.append(images), forward(images))[1]  # type: ignore[operator,func-returns-value,assignment]
    together = features(net, views)
    assert [tuple(images.shape) for images in seen] == [(4, 3, 32, 32), (6, 3, small, small)]
    one_by_one = torch.cat([backbones.own_pooling(net, view) for view in views])
    torch.testing.assert_close(together, one_by_one, rtol=1e-5, atol=1e-5)


def test_large_views_come_first_and_small_ones_are_alike() -> None:
    views = views_of(local_size=100)
    assert [view.size for view in views] == [224, 224, 100, 100, 100]
    assert [view.augment for view in views] == [*LARGE, SMALL, SMALL, SMALL]
    assert len(views_of(local_crops=0)) == 2


@pytest.mark.parametrize(
    ("image_size", "patch_size", "small"),
    [(224, 1, 96), (224, 16, 96), (224, 14, 98), (128, 16, 48), (64, 16, 32), (32, 4, 12), (32, 32, 32)],
)
def test_small_views_have_three_sevenths_of_the_side_in_whole_patches(
    image_size: int, patch_size: int, small: int
) -> None:
    assert views_of(image_size=image_size, patch_size=patch_size)[-1].size == small


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (
            {"local_size": 100, "patch_size": 16},
            "method.local_size=100: must be a multiple of the patch size 16",
        ),
        ({"local_size": 100, "patch_size": 16}, "try 96"),
        ({"local_size": 256}, "method.local_size=256"),
        ({"local_size": -8}, "method.local_size=-8"),
        ({"local_crops": -1}, "method.local_crops=-1"),
    ],
)
def test_a_size_that_does_not_fit_is_named(settings: dict[str, Any], names: str) -> None:
    with pytest.raises(UserError) as caught:
        views_of(**settings)
    assert names in str(caught.value)


@pytest.mark.parametrize(("image_size", "crops"), [(32, 0), (63, 0), (64, 6), (127, 6), (128, 8), (224, 8)])
def test_small_images_get_fewer_local_crops(image_size: int, crops: int) -> None:
    (count, reason) = choices(Facts(image_size=image_size), 8)["method.local_crops"]
    assert count == crops
    assert reason


def test_crops_left_open_are_filled_and_given_ones_stay() -> None:
    filled = CropAugment(blur=0.3).within(0.4, 1.0)
    assert type(filled) is Augment
    assert filled == Augment(crop_min=0.4, crop_max=1.0, blur=0.3)
    assert CropAugment(crop_min=0.2).within(0.4, 1.0).crop_min == 0.2
    assert CropAugment(crop_max=0.3).within(0.05, 0.4).crop_max == 0.3
    with pytest.raises(UserError, match=r"crop_min=0\.5, crop_max=0\.4"):
        CropAugment(crop_min=0.5).within(0.05, 0.4)


def test_open_crops_can_be_written_and_read_in_a_config() -> None:
    section = {"name": "dino", "augment": {"crop_min": None, "blur": 0.2}, "local_augment": {"crop_max": 0.3}}
    cfg = config.plugin_config("method", section, "method")
    assert (cfg.augment.crop_min, cfg.augment.blur, cfg.local_augment.crop_max) == (None, 0.2, 0.3)
    again = config.plugin_config("method", config.to_dict(cfg), "method")
    assert again == cfg
    with pytest.raises(UserError, match=r"crop_mim.*did you mean 'method\.augment\.crop_min'"):
        config.plugin_config("method", {"name": "dino", "augment": {"crop_mim": 0.1}}, "method")


def test_a_vit_sees_small_views_at_their_own_size() -> None:
    net = backbones.make("test_vit", image_size=32, patch_size=8, dynamic_size=True)
    view = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    tokens: Tensor = net.forward_features(view)  # type: ignore[operator]
    patches = tokens.shape[1] - int(net.num_prefix_tokens)  # type: ignore[arg-type]
    assert math.isqrt(patches) == 2
    assert backbones.patch_size(net) == 8
