"""Any timm network, pretrained or random: its pooled map, with its own preprocessing."""

from dataclasses import dataclass

from timm.data.config import resolve_model_data_config

from ssl_retrieval import backbones
from ssl_retrieval.errors import UserError
from ssl_retrieval.extractors.base import NetworkConfig, PooledNetwork
from ssl_retrieval.network_input import InputSpec


@dataclass
class Config(NetworkConfig):
    """What to load, and what to take from it (see `NetworkConfig`).

    Attributes:
        name: timm name.
        weights: ``pretrained``, ``offline``, ``random``, ``hf-hub:OWNER/NAME`` or a file (see
            `backbones.make`).
        image_size: Input side in pixels; None = the network's own.
        crop: Share of the short side kept by the centre crop; None = the network's own.
        stem: ``standard`` or ``small``.
        patch_size: Side of a ViT's patches in pixels; None = the network's own.
        seed: Seed of random weights.
    """

    name: str = "tf_efficientnet_lite0"
    weights: str = "pretrained"
    image_size: int | None = None
    crop: float | None = None
    stem: str = "standard"
    patch_size: int | None = None
    seed: int = 0


class Extractor(PooledNetwork):
    """float [B, 3, H, W] -> [B, D] from a timm network."""

    def __init__(self, cfg: Config) -> None:
        """Build the network."""
        cfg.check()
        if cfg.crop is not None and not 0.1 <= cfg.crop <= 1:
            raise UserError(f"model.crop={cfg.crop}: must be between 0.1 and 1")
        if cfg.image_size is not None and cfg.image_size < 1:
            raise UserError(f"model.image_size={cfg.image_size}: must be at least 1")
        needs_classifier = "fc" in cfg.parts and not backbones.has_hidden_layer(
            backbones.without_weights(cfg.name)
        )
        model = backbones.make(
            cfg.name,
            cfg.weights,
            image_size=cfg.image_size,
            stem=cfg.stem,
            seed=cfg.seed,
            patch_size=cfg.patch_size,
            dynamic_size=cfg.has_several_sizes,
            classifier=needs_classifier,
        )
        own = resolve_model_data_config(model)
        spec = InputSpec(
            size=cfg.image_size or int(own["input_size"][-1]),
            mean=tuple(own["mean"]),
            std=tuple(own["std"]),
            interpolation="bicubic" if own["interpolation"] == "bicubic" else "bilinear",
            crop=float(cfg.crop or own["crop_pct"]),
        )
        super().__init__(model, spec, cfg)
        self.family = "random" if cfg.weights == "random" else "off-the-shelf"
