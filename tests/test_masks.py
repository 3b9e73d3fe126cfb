"""Which patches are masked, and that a masked network sees nothing of them."""

import math
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.models.utils import random_block_mask
from torch import Tensor

from ssl_retrieval import backbones, masks
from ssl_retrieval.counter_random import uniform
from ssl_retrieval.errors import UserError

seeds = st.integers(0, 2**32)
batches = st.integers(1, 6)
grids = st.tuples(st.integers(2, 16), st.integers(2, 16))


def numbers(seed: int, batch: int, num: int) -> Tensor:
    return uniform(seed, 0, torch.arange(batch), 0, num)


# Patches one by one


@settings(max_examples=60, deadline=None)
@given(seed=seeds, batch=batches, patches=st.integers(1, 200), ratio=st.floats(0, 1))
def test_random_masks_take_the_smallest_numbers_and_exactly_as_many(
    seed: int, batch: int, patches: int, ratio: float
) -> None:
    noise = numbers(seed, batch, patches)
    mask = masks.random_masks(noise, ratio)
    assert mask.shape == (batch, patches)
    assert mask.dtype == torch.bool
    for row, chosen in zip(noise.tolist(), mask.tolist(), strict=True):
        count = round(ratio * patches)
        assert sum(chosen) == count
        order = sorted(range(patches), key=lambda i: (row[i], i))
        assert {i for i in range(patches) if chosen[i]} == set(order[:count])


def test_random_masks_are_exact_when_numbers_repeat() -> None:
    assert masks.random_masks(torch.zeros(3, 8), 0.75).sum(1).tolist() == [6, 6, 6]


# Blocks


@settings(max_examples=60, deadline=None)
@given(seed=seeds, batch=batches, grid=grids, low=st.floats(0.01, 0.9), more=st.floats(0, 0.09))
def test_block_masks_hit_their_counts_exactly(
    seed: int, batch: int, grid: tuple[int, int], low: float, more: float
) -> None:
    noise = numbers(seed, batch, masks.BLOCK_NUMBERS)
    mask = masks.block_masks(noise, grid, ratio_min=low, ratio_max=low + more)
    total = grid[0] * grid[1]
    assert mask.shape == (batch, total)
    for (first, second), count in zip(noise[:, :2].tolist(), mask.sum(1).tolist(), strict=True):
        if first >= 0.5:
            assert count == 0
        else:
            assert count >= 1
            assert count == pytest.approx(max(1.0, (low + second * more) * total), abs=0.5 + 1e-3)


@settings(max_examples=40, deadline=None)
@given(seed=seeds, grid=grids)
def test_an_images_mask_does_not_depend_on_its_batch(seed: int, grid: tuple[int, int]) -> None:
    blocks, single = numbers(seed, 5, masks.BLOCK_NUMBERS), numbers(seed, 5, grid[0] * grid[1])
    for i in range(5):
        assert torch.equal(masks.block_masks(blocks, grid)[i], masks.block_masks(blocks[i : i + 1], grid)[0])
        assert torch.equal(
            masks.random_masks(single, 0.75)[i], masks.random_masks(single[i : i + 1], 0.75)[0]
        )
    backwards = masks.block_masks(blocks.flip(0), grid).flip(0)
    assert torch.equal(masks.block_masks(blocks, grid), backwards)


def painted(boxes: list[list[int]], count: int, height: int, width: int) -> set[tuple[int, int]]:
    """Patch by patch, as the docstring of `paint` says."""
    places = [(row, column) for row in range(height) for column in range(width)]
    done: list[tuple[int, int]] = []
    for top, left, h, w in boxes:
        inside = [(r, c) for r, c in places if top <= r < top + h and left <= c < left + w]
        done += [place for place in inside if place not in done]
    top, left, h, w = boxes[0]

    def distance(place: tuple[int, int]) -> int:
        r, c = place
        return max(top - r, r - (top + h - 1), left - c, c - (left + w - 1))

    done += sorted((place for place in places if place not in done), key=distance)
    return set(done[:count])


@settings(max_examples=80, deadline=None)
@given(data=st.data(), grid=grids)
def test_paint_is_the_loop(data: Any, grid: tuple[int, int]) -> None:
    height, width = grid
    boxes = []
    for _ in range(data.draw(st.integers(1, 4))):
        h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
        top, left = data.draw(st.integers(0, height - h)), data.draw(st.integers(0, width - w))
        boxes.append([top, left, h, w])
    count = data.draw(st.integers(0, height * width))
    mask = masks.paint(torch.tensor([boxes]), torch.tensor([count]), grid)[0].view(grid)
    assert {(r, c) for r, c in mask.nonzero().tolist()} == painted(boxes, count, height, width)


def borders(mask: Tensor) -> float:
    """Mean number of borders between masked and other patches, per masked patch."""
    changes = (mask[:, 1:] ^ mask[:, :-1]).sum((1, 2)) + (mask[:, :, 1:] ^ mask[:, :, :-1]).sum((1, 2))
    return float((changes / mask.sum((1, 2)).clamp(min=1)).mean())


@pytest.mark.parametrize("side", [7, 14])
def test_block_masks_are_as_block_like_as_the_authors(side: int) -> None:
    noise = numbers(0, 2000, masks.BLOCK_NUMBERS)
    ours = masks.block_masks(noise, (side, side), probability=1.0).view(-1, side, side)
    theirs = random_block_mask((500, side, side), batch_mask_ratio=1.0)
    scattered = masks.random_masks(numbers(1, 500, side**2), 0.3).view(-1, side, side)
    assert borders(ours) < 1.15 * borders(theirs)
    assert borders(ours) < 0.5 * borders(scattered)
    assert float(ours.float().mean()) == pytest.approx(0.3, abs=0.01)


def test_block_masks_reach_every_patch_and_half_of_the_images() -> None:
    mask = masks.block_masks(numbers(3, 4000, masks.BLOCK_NUMBERS), (8, 8))
    share = mask.float().mean(0).view(8, 8)
    assert float(share.min()) > 0.1 * float(share.max())
    torch.testing.assert_close(share, share.flip(0, 1), atol=0.03, rtol=0)
    torch.testing.assert_close(share, share.flip(0), atol=0.03, rtol=0)
    torch.testing.assert_close(share, share.T, atol=0.03, rtol=0)
    assert float(mask.any(1).float().mean()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(("probability", "masked"), [(0.0, 0), (1.0, 50)])
def test_the_probability_is_of_images(probability: float, masked: int) -> None:
    mask = masks.block_masks(numbers(0, 50, masks.BLOCK_NUMBERS), (4, 4), probability=probability)
    assert int(mask.any(1).sum()) == masked


# Networks

NETWORKS: list[tuple[dict[str, Any], int]] = [
    ({"img_size": 48, "dynamic_img_size": False}, 48),
    ({"img_size": 64, "dynamic_img_size": True}, 64),
    ({"img_size": 64, "dynamic_img_size": True}, 48),
    ({"img_size": 48, "global_pool": "avg", "dynamic_img_size": False}, 48),
    ({"img_size": 48, "reg_tokens": 3, "no_embed_class": True, "pre_norm": True}, 48),
]


def network(settings: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=0, **settings).eval()


@pytest.mark.parametrize(("settings", "size"), NETWORKS)
@torch.no_grad()
def test_with_everything_visible_a_network_does_as_always(settings: dict[str, Any], size: int) -> None:
    vit = network(settings)
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    images = torch.randn(2, 3, size, size)
    patches = masks.grid_side(vit, size) ** 2
    expected = vit.forward_features(images)
    none = torch.zeros(2, patches, dtype=torch.bool)
    torch.testing.assert_close(masks.encode_masked(vit, images, none, torch.ones(1, 1, 64)), expected)
    everything = torch.arange(patches).expand(2, -1)
    torch.testing.assert_close(masks.encode_visible(vit, images, everything), expected)
    assert vit.pos_embed.requires_grad
    after = vit.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def scribble(images: Tensor, mask: Tensor, patch: int) -> Tensor:
    """Change every pixel of the masked patches."""
    changed = images.clone()
    side = images.shape[2] // patch
    for image, number in mask.nonzero().tolist():
        row, column = divmod(number, side)
        changed[image, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] += 9
    return changed


@pytest.mark.parametrize(("settings", "size"), NETWORKS)
@torch.no_grad()
def test_nothing_is_seen_of_masked_patches(settings: dict[str, Any], size: int) -> None:
    vit = network(settings)
    images = torch.randn(3, 3, size, size)
    patches = masks.grid_side(vit, size) ** 2
    mask = masks.random_masks(numbers(0, 3, patches), 0.5)
    changed = scribble(images, mask, 16)
    token = torch.randn(1, 1, 64)
    first = masks.encode_masked(vit, images, mask, token)
    torch.testing.assert_close(masks.encode_masked(vit, changed, mask, token), first)
    assert not torch.allclose(masks.encode_masked(vit, images, mask, -token), first, atol=1e-3)
    visible = torch.stack([(~row).nonzero()[:, 0] for row in mask])
    seen = masks.encode_visible(vit, images, visible)
    assert seen.shape == (3, vit.num_prefix_tokens + visible.shape[1], 64)
    torch.testing.assert_close(masks.encode_visible(vit, changed, visible), seen)
    assert not torch.allclose(vit.forward_features(images), vit.forward_features(changed), atol=1e-3)


@pytest.mark.parametrize(
    "name", ["resnet10t", "test_vit2", "test_convnext", "deit_tiny_distilled_patch16_224"]
)
def test_networks_without_patches_or_class_token_are_refused(name: str) -> None:
    with pytest.raises(UserError) as caught:
        masks.require_vit(timm.create_model(name, num_classes=0), "mae")
    for part in ("method.name=mae", "model.name", "vit_small_patch16_224"):
        assert part in str(caught.value)


def test_too_few_patches_are_refused() -> None:
    assert masks.grid_side(network({"img_size": 32}), 32) == math.isqrt(masks.LEAST_PATCHES)
    with pytest.raises(UserError, match=r"model.image_size=16 makes 1 patches.*model.patch_size"):
        masks.grid_side(network({"img_size": 16}), 16)


def test_a_network_of_ours_can_be_masked() -> None:
    net = backbones.make("test_vit", image_size=32, patch_size=4, dynamic_size=True)
    assert masks.require_vit(net, "ibot") is net
    assert masks.grid_side(masks.require_vit(net, "ibot"), 32) == 8
