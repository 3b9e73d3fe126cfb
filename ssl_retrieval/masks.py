"""Masked patches of vision transformers: which ones, and a timm network that does not see them.

All masks follow from uniform numbers per image, so that an image's mask depends on neither its batch nor
on a generator's state.
"""

import math
from typing import Any

import torch
from lightly.models.modules import MaskedVisionTransformerTIMM
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_retrieval import backbones
from ssl_retrieval.errors import UserError

_BLOCKS = 12
_LEAST_BLOCK = 4
_ASPECT = 1 / 0.3

BLOCK_NUMBERS = 3 + 4 * _BLOCKS
"""Uniform numbers per image that `block_masks` needs."""

LEAST_PATCHES = 4
"""Fewer patches leave nothing to guess from."""


def random_masks(noise: Tensor, ratio: float) -> Tensor:
    """Mask patches one by one, anywhere (MAE).

    Args:
        noise: float [B, T], uniform in [0, 1); the patches with the smallest numbers are masked.
        ratio: Share of the patches, in [0, 1].

    Returns:
        bool [B, T], with exactly ``round(ratio · T)`` patches masked in every image.

    >>> random_masks(torch.tensor([[0.9, 0.1, 0.5, 0.3]]), 0.5)
    tensor([[False,  True, False,  True]])
    """
    count = round(ratio * noise.shape[1])
    smallest = noise.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(noise, dtype=torch.bool).scatter_(1, smallest, True)


def block_masks(
    noise: Tensor,
    grid: tuple[int, int],
    *,
    probability: float = 0.5,
    ratio_min: float = 0.1,
    ratio_max: float = 0.5,
) -> Tensor:
    """Mask rectangles of patches in some of the images (BEiT, iBOT, DINOv2).

    A rectangle has at least 4 patches and at most as many as are to be masked, and sides in a ratio of
    0.3 to 1/0.3. The authors go on drawing until nothing fits; here the number of rectangles is fixed, and
    `paint` cuts the last one, so that the number of masked patches is exact.

    Args:
        noise: float [B, `BLOCK_NUMBERS`], uniform in [0, 1).
        grid: Patches per column and per row: T = height · width.
        probability: Share of the images that are masked at all.
        ratio_min: Least share of an image's patches that is masked.
        ratio_max: Largest share; shares are uniform between the two.

    Returns:
        bool [B, T], row by row: none masked, or ``round(ratio · T)`` but at least one.
    """
    assert noise.shape[1] == BLOCK_NUMBERS
    height, width = grid
    ratio = ratio_min + noise[:, 1] * (ratio_max - ratio_min)
    count = (ratio * (height * width)).round().clamp(1, height * width)
    area, aspect, down, across = noise[:, 3:].reshape(-1, 4, _BLOCKS).unbind(1)
    area = _LEAST_BLOCK + area * (count[:, None] - _LEAST_BLOCK).clamp(min=0)
    aspect = torch.exp((2 * aspect - 1) * math.log(_ASPECT))
    h = torch.sqrt(area * aspect).round().clamp(1, height)
    w = torch.sqrt(area / aspect).round().clamp(1, width)
    top = (down * (height - h + 1)).floor()
    left = (across * (width - w + 1)).floor()
    count = torch.where(noise[:, 0] < probability, count, 0)
    mask = paint(torch.stack([top, left, h, w], dim=2).long(), count.long(), grid)
    # Cut rectangles keep their upper rows: every other image is turned round, or the top would be favoured.
    return torch.where(noise[:, 2:3] < 0.5, mask.flip(1), mask)


def paint(boxes: Tensor, counts: Tensor, grid: tuple[int, int]) -> Tensor:
    """Fill rectangle after rectangle, each row by row, until enough patches are masked.

    Where all rectangles together are too small, patches around the first one follow, the nearest first.

    Args:
        boxes: int64 [B, K, 4]: top, left, height, width.
        counts: int64 [B], how many patches to mask.
        grid: Patches per column and per row: T = height · width.

    Returns:
        bool [B, T] with ``counts`` patches masked.
    """
    height, width = grid
    rows = torch.arange(height, device=boxes.device)[:, None].expand(grid).flatten()
    columns = torch.arange(width, device=boxes.device)[None, :].expand(grid).flatten()
    top, left, h, w = boxes[..., None].unbind(2)
    # How far outside a rectangle each patch is, in steps of a chess king; 0 or less inside.
    outside = torch.stack([top - rows, rows - top - h + 1, left - columns, columns - left - w + 1]).amax(0)
    inside = outside <= 0
    number = inside.to(torch.uint8).argmax(dim=1)
    turn = torch.where(inside.any(dim=1), number, boxes.shape[1] + outside[:, 0])
    order = (turn * (height * width) + rows * width + columns).argsort(dim=1)
    return order.argsort(dim=1) < counts[:, None]


def require_vit(backbone: nn.Module, method: str) -> VisionTransformer:
    """Insist on a network whose patches can be masked.

    Args:
        backbone: A network from `backbones.make`.
        method: Who asks, for the error.

    Returns:
        The backbone itself.

    Raises:
        UserError: It is no plain timm ViT with a class token and learned positions.
    """
    if isinstance(backbone, VisionTransformer) and not hasattr(backbone, "dist_token"):
        vit: Any = backbone
        if vit.cls_token is not None and vit.pos_embed is not None:
            return vit
    raise UserError(
        f"method.name={method} masks patches, which {type(backbone).__name__} does not allow: set "
        "model.name to a timm ViT with a class token (vit_small_patch16_224), or method.name to another"
    )


def grid_side(vit: VisionTransformer, image_size: int) -> int:
    """Count the patches per side of a view.

    Raises:
        UserError: There are fewer than `LEAST_PATCHES` in all.
    """
    patch = backbones.patch_size(vit)
    side = image_size // patch
    assert side * patch == image_size, "backbones.make refuses images that are not whole patches"
    if side**2 < LEAST_PATCHES:
        raise UserError(
            f"model.image_size={image_size} makes {side**2} patches of {patch} px, too few to mask any: set "
            f"model.patch_size to {max(1, image_size // 8)} or less, or a larger model.image_size"
        )
    return side


def encode_masked(vit: VisionTransformer, images: Tensor, mask: Tensor, mask_token: Tensor) -> Tensor:
    """Run a ViT with some of its patches replaced before positions are added.

    Args:
        vit: See `require_vit`.
        images: float [B, 3, S, S].
        mask: bool [B, T], the patches to replace.
        mask_token: float [1, 1, D], what stands for them.

    Returns:
        float [B, prefix + T, D]: what ``vit.forward_features`` gives for unmasked images.
    """
    mask = nn.functional.pad(mask, (vit.num_prefix_tokens, 0))
    tokens: Tensor = _wrap(vit, mask_token).encode(images, mask=mask)
    return tokens


def encode_visible(vit: VisionTransformer, images: Tensor, visible: Tensor) -> Tensor:
    """Run a ViT on some of its patches alone.

    Args:
        vit: See `require_vit`.
        images: float [B, 3, S, S].
        visible: int64 [B, K], numbers of patches.

    Returns:
        float [B, prefix + K, D].
    """
    prefix = torch.arange(vit.num_prefix_tokens, device=visible.device).expand(len(visible), -1)
    keep = torch.cat([prefix, visible + vit.num_prefix_tokens], dim=1)
    tokens: Tensor = _wrap(vit, images.new_zeros(1, 1, vit.embed_dim)).encode(images, idx_keep=keep)
    return tokens


def _wrap(vit: VisionTransformer, mask_token: Tensor) -> MaskedVisionTransformerTIMM:
    # Made anew for every call: as a part of the method it would put the ViT into the state dict twice.
    return MaskedVisionTransformerTIMM(
        vit, mask_token, weight_initialization="skip", pos_embed_initialization="skip"
    )
