"""Anchors: losses that keep a network near the one that training began with, for every method alike.

A method's own loss stays as it is. Its step is watched: for every view of full size that the network in
training turns into a vector, the frozen start makes one too, and what anchors ask for is added to the loss.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from ssl_retrieval import backbones, distributed
from ssl_retrieval.errors import UserError
from ssl_retrieval.methods.base import BaseMethod

_CALLS = ("forward_features", "forward_head")


@dataclass
class AnchorConfig:
    """What of the start is kept, and how firmly; all off by default.

    The vector that is anchored is the one that is searched with, `backbones.own_pooling`.

    Attributes:
        similarity: λ of the Kullback-Leibler divergence between the start's similarities to the other images
            of the batch and those of the network in training (see `similarity_divergence`).
        temperature: What cosines are divided by there.
        feature: λ of 1 − cosine between each vector and the start's.
        weights: λ of half the squared distance to the start's weights: L2-SP (Li, Grandvalet, Davoine, ICML
            2018, arXiv 1802.01483).
        interpolate: α in (0, 1]: what is kept is (1 − α) · start + α · trained, weights and statistics of
            batch normalisation alike: WiSE-FT (Wortsman et al., CVPR 2022, arXiv 2109.01903); 1 = as trained.
    """

    similarity: float = 0.0
    temperature: float = 0.05
    feature: float = 0.0
    weights: float = 0.0
    interpolate: float = 1.0

    @property
    def has_loss(self) -> bool:
        """Tell whether the loss changes."""
        return self.similarity > 0 or self.feature > 0 or self.weights > 0

    @property
    def is_on(self) -> bool:
        """Tell whether the start is needed at all."""
        return self.has_loss or self.interpolate < 1

    def check(self, start: str, adapter: str = "none") -> None:
        """Refuse values that mean nothing.

        Args:
            start: ``model.weights``.
            adapter: ``model.adapter``.

        Raises:
            UserError: Names the key.
        """
        for name in ("similarity", "feature", "weights"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"anchor.{name}={getattr(self, name)}: must not be negative (0 = off)")
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"anchor.temperature={self.temperature}: must be positive")
        if not 0 < self.interpolate <= 1:
            raise UserError(
                f"anchor.interpolate={self.interpolate}: must be above 0 and at most 1 (as trained)"
            )
        if self.is_on and start == "random":
            raise UserError(
                "anchor: model.weights=random is nothing to keep: give learned weights, or leave anchors out"
            )
        if self.weights > 0 and adapter != "none":
            raise UserError(
                f"anchor.weights={self.weights}: model.adapter={adapter} leaves the start's weights as they "
                "are: use anchor.similarity or anchor.feature"
            )


class Anchored(nn.Module):
    """A method with its anchors, in the form that the training loop calls.

    Attributes:
        method: The method.
        start: The frozen network that training began with, in eval mode: it sees images as search does.
    """

    def __init__(self, method: BaseMethod, start: nn.Module, cfg: AnchorConfig, image_size: int) -> None:
        """Pair the trainable weights of the method's encoder with those of the start.

        Args:
            method: On its device.
            start: The encoder as it was before training, without adapters, on the same device.
            cfg: Filled.
            image_size: Side of the views that are anchored, in pixels; smaller crops are left out: they are
                parts, and the start was not made for them.
        """
        super().__init__()
        self.method = method
        self.start = start.requires_grad_(False).eval()
        self.cfg, self.image_size = cfg, image_size

    def forward(self, views: list[Tensor], progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Take the method's step and add the anchors: see `BaseMethod.forward`."""
        with watched(self.method.encoder, self.image_size) as seen:
            loss, logs = self.method(views, progress)
        with torch.autocast(loss.device.type, enabled=False):
            weights = self._distance() if self.cfg.weights > 0 else None
        terms = self._of_vectors(views, seen) if self.cfg.similarity > 0 or self.cfg.feature > 0 else {}
        if weights is not None:
            terms["weights"] = weights
        total = loss.float() + sum(getattr(self.cfg, name) * term for name, term in terms.items())
        return total, logs | {f"anchor_{name}": term.detach() for name, term in terms.items()}

    def _of_vectors(self, views: list[Tensor], seen: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Compare the vectors of all full-size views with the start's."""
        if not seen:
            # The method hides parts of every image: one plain look at the first view.
            whole = next(view for view in views if view.ndim == 4 and view.shape[-1] == self.image_size)
            seen = [(whole, backbones.own_pooling(self.method.encoder, whole))]
        with torch.no_grad():
            before = torch.cat([backbones.own_pooling(self.start, images) for images, _ in seen])
        with torch.autocast(before.device.type, enabled=False):
            now = torch.cat([vectors for _, vectors in seen]).float()
            # Rows come view by view, and processes hold other images, not other views.
            both = torch.cat([before.float(), now], dim=1).unflatten(0, (-1, len(views[0]))).transpose(0, 1)
            before, now = distributed.gather(both).transpose(0, 1).chunk(2, dim=2)
            found = {}
            if self.cfg.similarity > 0:
                found["similarity"] = similarity_divergence(before, now, self.cfg.temperature)
            if self.cfg.feature > 0:
                found["feature"] = (1 - nnf.cosine_similarity(before, now, dim=2)).mean()
            return found

    def _distance(self) -> Tensor:
        """Take half the squared distance between the encoder's trainable weights and the start's."""
        before = dict(self.start.named_parameters())
        trained = [(n, p) for n, p in self.method.encoder.named_parameters() if p.requires_grad]
        return 0.5 * torch.stack([(p.float() - before[n]).square().sum() for n, p in trained]).sum()


def similarity_divergence(before: Tensor, now: Tensor, temperature: float) -> Tensor:
    """Compare two networks by how each sees the images of a batch among each other.

    Every view of an image spreads a softmax of cosine / temperature over all views of all *other* images; its
    own other views are left out, so that a method may still draw these together.

    Args:
        before: float32 [V, B, D], of any length: the start's vectors of V views of B images.
        now: float32 [V, B, E], the trained network's.
        temperature: Positive.

    Returns:
        Scalar: KL(start ‖ trained), the mean over all V · B rows; 0 when both see alike.

    >>> rows = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    >>> round(float(similarity_divergence(rows, 3 * rows, 0.05)), 6)
    0.0
    """
    views, images, _ = before.shape
    itself = torch.eye(images, dtype=torch.bool, device=before.device).repeat(views, views)
    # Far below every other, but finite: 0 · −∞ has no value.
    least = torch.finfo(torch.float32).min

    def log_shares(vectors: Tensor) -> Tensor:
        rows = nnf.normalize(vectors.flatten(0, 1), dim=1)
        return (rows @ rows.T / temperature).masked_fill(itself, least).log_softmax(dim=1)

    wanted, found = log_shares(before), log_shares(now)
    return (wanted.exp() * (wanted - found)).sum(dim=1).mean()


@contextmanager
def watched(network: nn.Module, image_size: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Note the views of full size that a network sees as they are, and the vectors that it makes of them.

    Args:
        network: From `backbones.make`, perhaps compiled.
        image_size: Full size in pixels.

    Yields:
        (images, vectors) per call of ``forward_features``, as by `backbones.own_pooling`; complete once the
        context is left. Where a method pools in its own way, the network's own pooling is applied to its map.
    """
    features: Any = network.forward_features
    head: Any = network.forward_head
    own: dict[str, Any] = {name: vars(network)[name] for name in _CALLS if name in vars(network)}
    maps: list[tuple[Tensor, Any]] = []
    pooled: dict[int, Tensor] = {}

    def see(images: Tensor) -> Any:
        found = features(images)
        if images.shape[-1] == image_size:
            maps.append((images, found))
        return found

    def pool(found: Any, pre_logits: bool = False) -> Tensor:
        vectors: Tensor = head(found, pre_logits=pre_logits)
        if pre_logits:
            # The maps are held, so that no other object takes their numbers.
            pooled[id(found)] = vectors
        return vectors

    seen: list[tuple[Tensor, Tensor]] = []
    network.forward_features, network.forward_head = see, pool  # type: ignore[assignment]
    try:
        yield seen
    finally:
        for name in _CALLS:
            del vars(network)[name]
        vars(network).update(own)
    for images, found in maps:
        seen.append((images, pooled[id(found)] if id(found) in pooled else head(found, pre_logits=True)))
