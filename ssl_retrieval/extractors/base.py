"""What the extractors around a timm network share: input, pooling, dimension, identity."""

import torch
from PIL import Image
from torch import Tensor, nn

from ssl_retrieval import backbones, folding, pooling
from ssl_retrieval.network_input import InputSpec, Normalize


class PooledNetwork(nn.Module):
    """uint8 [B, 3, H, W] -> [B, D]: the pooled last map of a network.

    Attributes:
        model: A network from `backbones.make`, its batch normalisation folded.
        preprocess_spec: What it expects.
        dim: D.
        weights_digest: Hash of its weights.
    """

    def __init__(self, model: nn.Module, spec: InputSpec, pool: str) -> None:
        """Choose the pooling and find out the dimension.

        Args:
            model: A network from `backbones.make`.
            spec: What it expects.
            pool: ``model`` (as the network itself pools) or a name from `pooling`.
        """
        super().__init__()
        self.pool = None if pool == "model" else pooling.get(pool)
        self.preprocess_spec = spec
        self.normalize = Normalize(spec.mean, spec.std)
        self.weights_digest = backbones.weights_digest(model)
        example = torch.rand(1, 3, spec.size, spec.size, generator=torch.Generator().manual_seed(0))
        self.model = folding.fold(model, example)
        with torch.inference_mode():
            self.dim = int(self(example).shape[1])

    def preprocess(self, image: Image.Image) -> Tensor:
        """Make the input: RGB image -> uint8 [3, H, W]. Normalising is left to `forward`."""
        return self.preprocess_spec.pixels(image)

    def forward(self, batch: Tensor) -> Tensor:
        """Embed: uint8 [B, 3, H, W], or float32 that is normalised already -> [B, dim]."""
        batch = self.normalize(batch)
        if self.pool is None:
            return backbones.own_pooling(self.model, batch)
        return self.pool(backbones.feature_map(self.model, batch))
