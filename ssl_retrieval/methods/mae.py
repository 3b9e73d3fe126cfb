"""MAE: a small decoder restores the three quarters of an image that the encoder did not see.

He, Chen, Xie, Li, Dollár, Girshick: Masked Autoencoders Are Scalable Vision Learners, CVPR 2022
(arXiv 2111.06377). A negative control: pixels can be restored without pulling alike images together, so
nearest neighbours of untuned MAE features are expected to be poor. Only crops and flips are used, as in
the paper, and no class label or second view says what an image should be close to.

What is kept pools as the network itself does. The class token goes through the decoder with the visible
patches, so it is trained, but nothing is asked of it; a normalisation or attention that comes after the
pooling takes no part and stays as it was.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from lightly.models import utils
from lightly.models.modules import MaskedVisionTransformerDecoderTIMM
from lightly.models.modules.masked_vision_transformer_timm import init_weights
from torch import Tensor, nn

from ssl_retrieval import backbones, masks
from ssl_retrieval.augment import Augment, Noise, View
from ssl_retrieval.defaults import Facts, given
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods.base import BaseMethod, StepOutput
from ssl_retrieval.types import Choices

_HEAD_DIM = 32


def _crop_and_flip() -> Augment:
    return Augment(crop_min=0.2, jitter=0.0, grayscale=0.0, interpolation="bicubic")


@dataclass
class Config:
    """The objective's settings.

    Attributes:
        mask_ratio: Share of the patches that are hidden.
        norm_pix: Restore every patch normalised to mean 0 and variance 1, not its plain pixels.
        decoder_dim: Width of the decoder, a multiple of 32 (the width of an attention head); None = by
            the number of images.
        decoder_depth: Its blocks; None = by the number of images.
        augment: How the view is made.
    """

    name: str = "mae"
    mask_ratio: float = 0.75
    norm_pix: bool = True
    decoder_dim: int | None = None
    decoder_depth: int | None = None
    augment: Augment = field(default_factory=_crop_and_flip)


def defaults(facts: Facts) -> Choices:
    """Give the paper's recipe for ViTs, with a smaller decoder for fewer images."""
    decoder = f"{facts.num_images} images; 512 wide and 8 deep on ImageNet"
    choices: Choices = {
        "method.decoder_dim": (facts.step_limit(512, {20_000: 128, 200_000: 256}), decoder),
        "method.decoder_depth": (facts.step_limit(8, {20_000: 2, 200_000: 4}), decoder),
        "optimizer.name": ("adamw", "as the paper"),
        "optimizer.beta2": (0.95, "as the paper"),
        "optimizer.warmup": (0.05, "as the paper: 40 of 800 epochs"),
    }
    if facts.pretrained:
        return choices | {
            "optimizer.lr": (3e-4, "goes on from learned weights"),
            "optimizer.scale": ("none", "goes on from learned weights"),
            "optimizer.weight_decay": (1e-4, "goes on from learned weights"),
        }
    return choices | {
        "optimizer.lr": (1.5e-4, "as the paper"),
        "optimizer.scale": ("linear", "as the paper"),
        "optimizer.weight_decay": (0.05, "as the paper"),
    }


class Method(BaseMethod):
    """MAE around a timm ViT."""

    advice = "another method: restoring pixels does not spread features for nearest neighbours"

    def __init__(self, cfg: Config, backbone: nn.Module) -> None:
        """Put a decoder behind the backbone.

        Args:
            cfg: See `Config`.
            backbone: A ViT with a class token, from `backbones.make`.

        Raises:
            UserError: Another network, or a setting out of range.
        """
        super().__init__()
        cfg.augment.check()
        vit = masks.require_vit(backbone, "mae")
        dim, depth = given(cfg.decoder_dim), given(cfg.decoder_depth)
        if dim < 1 or dim % _HEAD_DIM or depth < 1:
            raise UserError(
                f"method.decoder_dim={dim}, decoder_depth={depth}: a multiple of {_HEAD_DIM}, and at least 1"
            )
        self.cfg = cfg
        self.encoder = backbone
        # Neither takes part in restoring patches: without gradients they would only decay.
        for after_pooling in (vit.fc_norm, vit.attn_pool):
            if isinstance(after_pooling, nn.Module):
                after_pooling.requires_grad_(False)
        self.side = masks.grid_side(vit, vit.patch_embed.img_size[0])
        num_patches = self.side**2
        self.num_masked = round(cfg.mask_ratio * num_patches)
        if not 0 < self.num_masked < num_patches:
            raise UserError(
                f"method.mask_ratio={cfg.mask_ratio} hides {self.num_masked} of {num_patches} patches: some "
                "must be hidden and some visible"
            )
        self.embed = nn.Linear(vit.embed_dim, dim).apply(init_weights)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches, dim, depth, dim // _HEAD_DIM, num_prefix_tokens=vit.num_prefix_tokens
        )
        self.predict = nn.Linear(dim, 3 * backbones.patch_size(vit) ** 2).apply(init_weights)

    def views(self, image_size: int) -> list[View | Noise]:
        """Ask for one view, and one random number per patch.

        Raises:
            UserError: The network was built for another size.
        """
        vit: Any = self.encoder
        if masks.grid_side(vit, image_size) != self.side:
            raise UserError(
                f"model.image_size={image_size}: the network was built for {vit.patch_embed.img_size[0]} px"
            )
        return [View(self.cfg.augment, image_size), Noise(self.side**2)]

    def step(self, views: list[Tensor], progress: float) -> StepOutput:
        """Compute the mean squared error over the hidden patches' pixels.

        Args:
            views: float [B, 3, S, S], and float [B, T].
            progress: Not used: MAE has no schedule of its own.
        """
        images, noise = views
        mask = masks.random_masks(noise, self.cfg.mask_ratio)
        # A stable sort has the visible patches first and then the hidden ones, both in their own order.
        order = mask.to(torch.uint8).argsort(dim=1, stable=True)
        visible, hidden = order.split([mask.shape[1] - self.num_masked, self.num_masked], dim=1)
        guesses = self._restore(images, visible, hidden)
        with torch.autocast(images.device.type, enabled=False):
            patches = _picked(utils.patchify(images.float(), images.shape[2] // self.side), hidden)
            wanted = normalise(patches) if self.cfg.norm_pix else patches
            # Every image hides equally many patches, so one mean over all is the mean over images too.
            return StepOutput(loss=nn.functional.mse_loss(guesses.float(), wanted))

    def _restore(self, images: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
        """Guess the hidden patches: float [B · hidden, 3 · P²], image by image."""
        vit: Any = self.encoder
        seen = self.embed(masks.encode_visible(vit, images, visible))
        prefix = vit.num_prefix_tokens
        tokens = utils.repeat_token(self.decoder.mask_token.to(seen.dtype), (len(images), self.side**2))
        tokens = utils.set_at_index(tokens, visible, seen[:, prefix:])
        decoded = self.decoder(torch.cat([seen[:, :prefix], tokens], dim=1))[:, prefix:]
        guesses: Tensor = self.predict(_picked(decoded, hidden))
        return guesses


def _picked(tokens: Tensor, places: Tensor) -> Tensor:
    """Pick tokens without waiting for the device, as picking by a mask would: [B, T, D] -> [B · n, D]."""
    picked: Tensor = utils.get_at_index(tokens, places)
    return picked.flatten(0, 1)


def normalise(patches: Tensor) -> Tensor:
    """Give every patch mean 0 and variance 1: float [N, values]; a plain patch becomes 0."""
    variance, mean = torch.var_mean(patches, dim=1, keepdim=True)
    return (patches - mean) / torch.sqrt(variance + 1e-6)
