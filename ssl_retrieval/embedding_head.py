"""From a network's map to the vector that is searched with: a pooling, perhaps a learned projection."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from ssl_retrieval import backbones, pooling, regions, tokens
from ssl_retrieval.errors import UserError
from ssl_retrieval.whitening import Pca

POOLS = ("model", "avg", "gem", "rmac", "cls")

WHITENED_ON = 4096
"""Training images that the projection's whitening is computed from, at most."""


class EmbeddingHead(nn.Module):
    """Pools a network's last map and projects the result; its weights are exported with the network's.

    Radenović, Tolias, Chum: Fine-tuning CNN Image Retrieval with No Human Annotation, TPAMI 2019 (arXiv
    1711.02512): GeM pooling, then a fully connected layer that starts as a PCA whitening.

    Attributes:
        pool: ``model``: the network's own; ``avg``; ``gem``; ``rmac``; ``cls``: a ViT's class token.
        gem_p: Exponent of ``gem``, or where it began.
        exponent: float [1], the trained exponent; only with `learn_gem_p`.
        dim: D, the dimension of the embedding.
        projection: The fully connected layer; None = the pooled vector is the embedding.
    """

    exponent: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        pool: str = "model",
        gem_p: float = 3.0,
        dim: int = 0,
        learn_gem_p: bool = False,
    ) -> None:
        """Make the layer; nothing of the network is kept.

        Args:
            backbone: A network from `backbones.make`, for its dimension.
            pool: See the class.
            gem_p: Exponent of ``gem``, or where it begins.
            dim: Dimension of the projection; 0 = none.
            learn_gem_p: Whether the exponent is trained.

        Raises:
            UserError: A value out of range.
        """
        super().__init__()
        if pool not in POOLS:
            raise UserError(f"method.pool={pool!r}: one of {', '.join(POOLS)}")
        if not 0 < gem_p <= pooling.MAX_GEM_P:
            raise UserError(f"method.gem_p={gem_p}: must be above 0 and at most {pooling.MAX_GEM_P:g}")
        if dim < 0:
            raise UserError(f"method.dim={dim}: must be at least 1, or 0 for no projection")
        if learn_gem_p and pool != "gem":
            raise UserError(f"method.learn_gem_p=true is for method.pool=gem, not for method.pool={pool}")
        self.pool, self.gem_p, self.learn_gem_p = pool, gem_p, learn_gem_p
        if learn_gem_p:
            self.exponent = nn.Parameter(torch.tensor([gem_p]))
        # The number of values before the classifier, and of the map's channels, differ in some networks.
        pooled: Any = backbones.feature_dim(backbone) if pool == "model" else backbone.num_features
        self.projection = nn.Linear(pooled, dim) if dim else None
        self.dim = dim or int(pooled)

    def forward(self, encoder: nn.Module, images: Tensor) -> Tensor:
        """Embed: float [B, 3, H, W], normalised -> float [B, dim], of any length."""
        return self.project(self.pooled(encoder, images))

    def pooled(self, encoder: nn.Module, images: Tensor) -> Tensor:
        """Embed up to the projection: float [B, 3, H, W] -> [B, C].

        Raises:
            UserError: The network gives no single map, or has no class token.
        """
        if self.pool == "model":
            return backbones.own_pooling(encoder, images)
        features: Any = encoder.forward_features(images)  # type: ignore[operator]
        if not isinstance(features, Tensor):
            raise UserError(
                f"method.pool={self.pool}: the network ends in several maps: use method.pool=model"
            )
        with torch.autocast(images.device.type, enabled=False):
            found = tokens.arrange(features.float(), encoder, images)
            if self.pool == "cls":
                return tokens.class_token(found, encoder)
            if self.pool == "gem":
                return pooling.gem(found.maps, self.exponent if self.learn_gem_p else self.gem_p)
            if self.pool == "rmac":
                return regions.rmac(found.maps)
            return pooling.avg(found.maps)

    def project(self, pooled: Tensor) -> Tensor:
        """Apply the projection, if there is one, to vectors of length 1: float [B, C] -> [B, dim]."""
        return pooled if self.projection is None else self.projection(nnf.normalize(pooled, dim=1))

    def whiten_on_views(self, encoder: nn.Module, batches: Iterator[list[Tensor]]) -> None:
        """Do as `whiten` with the first view of each batch that a training step would get.

        Args:
            encoder: The network.
            batches: As for `BaseMethod.begin`; the first `WHITENED_ON` images are looked at.
        """
        seen = next(batches)[0]
        rest = islice((views[0] for views in batches), max(0, WHITENED_ON // len(seen) - 1))
        self.whiten(encoder, (images for part in ([seen], rest) for images in part))

    @torch.no_grad()
    def whiten(self, encoder: nn.Module, batches: Iterable[Tensor]) -> None:
        """Let the projection begin as the PCA whitening of these images; the network is put in eval mode.

        Args:
            encoder: The network.
            batches: float [B, 3, H, W] each, of more images than `dim` in all.

        Raises:
            UserError: Too few images, or they look too much alike.
        """
        assert self.projection is not None
        encoder.eval()
        vectors = torch.cat([nnf.normalize(self.pooled(encoder, b).float(), dim=1).cpu() for b in batches])
        found = Pca(self.dim, power=0.5).fit(vectors.numpy())
        if len(found.matrix) < self.dim:
            raise UserError(
                f"method.whiten: {len(vectors)} training images span {len(found.matrix)} dimensions, and "
                f"method.dim={self.dim}: lower method.dim, or set method.whiten=false"
            )
        matrix, mean = (torch.from_numpy(values).float() for values in (found.matrix, found.mean))
        self.projection.weight.copy_(matrix)
        self.projection.bias.copy_(-matrix @ mean.flatten())

    def to_dict(self) -> dict[str, Any]:
        """Give what another head is made of, besides its weights."""
        return {
            "pool": self.pool,
            "gem_p": self.gem_p,
            "learn_gem_p": self.learn_gem_p,
            "dim": self.dim if self.projection is not None else 0,
        }
