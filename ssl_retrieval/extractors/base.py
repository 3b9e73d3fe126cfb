"""What the extractors around a timm network share: input, layer, pooling, scales, identity."""

from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import MISSING
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from ssl_retrieval import backbones, folding, layers, multi_scale, pooling, regions, tokens
from ssl_retrieval.embedding_head import EmbeddingHead
from ssl_retrieval.errors import UserError
from ssl_retrieval.network_input import InputSpec, Normalize
from ssl_retrieval.projector_points import ProjectorPoint
from ssl_retrieval.types import digest_of
from ssl_retrieval.whitening import Pca


@dataclass
class NetworkConfig:
    """What is taken from a network; each extractor's ``Config`` adds where the network comes from.

    Attributes:
        name: The extractor.
        pool: ``model``: as the network itself pools; ``avg``, ``mac``, ``spoc``, ``crow``, ``rmac``, ``gem``
            or ``scda``: of a map (see `pooling`); ``cls``: a ViT's class token; ``mean``: ``avg`` of its
            patches; ``fc``: the last fully connected layer before the classifier, or the classifier where
            there is no other. Or several joined by ``+``, each scaled to length 1: ``cls+gem``.
        gem_p: Exponent of ``gem``.
        layer: Which layer's map is pooled: an index as in timm's ``features_only`` (-2 = the last but one),
            or a module's name; empty = the last map, as the network itself takes it.
        scales: Sizes of the input at which an image is seen, as factors (see `multi_scale`).
        flip: Whether its mirror image is seen too; the vector is the mean of the two.
        rmac_whiten: Whether ``rmac`` whitens its regions' vectors, by a PCA of those of the images to fit on.
    """

    name: str = MISSING
    pool: str = "model"
    gem_p: float = pooling.GEM_P
    layer: str = ""
    scales: list[float] = field(default_factory=lambda: [1.0])
    flip: bool = False
    rmac_whiten: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        """The poolings in ``pool``.

        Raises:
            UserError: One of them is unknown.
        """
        return pooling.parse(self.pool)

    @property
    def has_several_sizes(self) -> bool:
        """Whether the network must take other sizes than its own."""
        return any(scale != 1 for scale in self.scales)

    def check(self) -> None:
        """Refuse what means nothing, before a network is loaded for it.

        Raises:
            UserError: Names the key.
        """
        parts = self.parts
        if not 0 < self.gem_p <= pooling.MAX_GEM_P:
            raise UserError(f"model.gem_p={self.gem_p}: must be above 0 and at most {pooling.MAX_GEM_P:g}")
        whole = next((part for part in parts if part in ("model", "fc")), None)
        if self.layer and whole:
            raise UserError(
                f"model.pool={self.pool}: {whole!r} is always taken from the end of the network: leave out "
                "model.layer, or choose another pooling, as avg"
            )
        if self.rmac_whiten and "rmac" not in parts:
            raise UserError(f"model.rmac_whiten needs rmac in model.pool, which is {self.pool!r}")
        multi_scale.sides(1, self.scales)


class PooledNetwork(nn.Module):
    """uint8 [B, 3, H, W] -> [B, D]: the pooled map of a network.

    Where R-MAC whitens its regions, it must learn first (see `learning`); `dim` is 0 until then.

    Attributes:
        model: A network from `backbones.make`, its batch normalisation folded.
        preprocess_spec: What it expects.
        dim: D.
        network_digest: Hash of the network's weights.
        weights_digest: The same; with what was learned, where anything was.
        learns: Whether it must learn first.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: InputSpec,
        cfg: NetworkConfig,
        head: EmbeddingHead | ProjectorPoint | None = None,
    ) -> None:
        """Find the layer, and the dimension.

        Args:
            model: A network from `backbones.make`.
            spec: What it expects.
            cfg: What to take from it.
            head: Whose projection is applied to what was pooled.

        Raises:
            UserError: It has no such layer, or what is asked for cannot be taken from it.
        """
        super().__init__()
        cfg.check()
        self.cfg, self.parts = cfg, cfg.parts
        self.preprocess_spec = spec
        self.normalize = Normalize(spec.mean, spec.std)
        self.sides = multi_scale.sides(spec.size, cfg.scales, backbones.patch_size(model))
        self.head = head
        self.network_digest = backbones.weights_digest(model)
        if head is not None and head.projection is not None:
            self.network_digest = digest_of([self.network_digest, backbones.weights_digest(head)])
        self.weights_digest = self.network_digest
        self.has_hidden_layer = backbones.has_hidden_layer(model)
        if "fc" in self.parts and not (self.has_hidden_layer or model.num_classes):
            raise UserError(
                f"model.pool={cfg.pool}: the network has neither a hidden fully connected layer nor a "
                "classifier: use model or avg instead of fc"
            )
        self.model = folding.fold(model, self._example())
        self.layer = layers.find(model, cfg.layer) if cfg.layer else None
        if self.layer is not None:
            self.model = layers.ended(model, self.model, self.layer, self._example())
        self.whitening: regions.Whitening | None = None
        self.learns = cfg.rmac_whiten
        self.dim = 0 if self.learns else self._measured_dim()

    def preprocess(self, image: Image.Image) -> Tensor:
        """Make the input: RGB image -> uint8 [3, H, W]. Normalising is left to `forward`."""
        return self.preprocess_spec.pixels(image)

    def forward(self, batch: Tensor) -> Tensor:
        """Embed: uint8 [B, 3, H, W], or float32 that is normalised already -> [B, dim]."""
        assert self.whitening is not None or not self.learns, "learn first"
        batch = self.normalize(batch)
        vectors = self._of_all_sizes(batch)
        if self.cfg.flip:
            vectors = multi_scale.merged([vectors, self._of_all_sizes(batch.flip(3))])
        return vectors if self.head is None else self.head.project(vectors)

    def material(self, image: Image.Image) -> Tensor:
        """Give what is learned from: RGB image -> float32 [R, C], its regions' vectors at all scales."""
        image_batch = self.preprocess(image)[None].to(self.normalize.scale.device)
        views = [multi_scale.resized(self.normalize(image_batch), side) for side in self.sides]
        found = [tokens.arrange(self._features(view), self.model, view).maps for view in views]
        return torch.cat([regions.vectors(maps)[0] for maps in found]).cpu()

    def learn(self, materials: list[Tensor]) -> dict[str, Tensor]:
        """Learn to whiten from the `material` of images.

        Raises:
            UserError: All regions look the same.
        """
        vectors = torch.cat(materials).numpy()
        projection = Pca(vectors.shape[1], power=0.5).fit(vectors)
        if not projection.matrix.any():
            raise UserError(
                f"model.rmac_whiten: the regions of the {len(materials)} images to learn from do not differ: "
                "give others as fit.name=… and fit.root=…"
            )
        learned = {"mean": projection.mean, "matrix": projection.matrix}
        return {name: torch.from_numpy(values).float() for name, values in learned.items()}

    def set_learned(self, state: dict[str, Tensor]) -> None:
        """Install what `learn` gave; sets ``dim`` and ``weights_digest``."""
        self.whitening = regions.Whitening(state["mean"], state["matrix"]).to(self.normalize.scale.device)
        self.weights_digest = digest_of([self.network_digest, backbones.weights_digest(self.whitening)])
        self.dim = self._measured_dim()

    def _of_all_sizes(self, batch: Tensor) -> Tensor:
        if len(self.sides) == 1 and not self.cfg.has_several_sizes:
            return self._of_one_view(batch)
        plain_gem = self.parts == ("gem",)
        views = (multi_scale.resized(batch, side) for side in self.sides)
        return multi_scale.merged(
            [self._of_one_view(view) for view in views], self.cfg.gem_p if plain_gem else 1.0
        )

    def _of_one_view(self, images: Tensor) -> Tensor:
        features = self._features(images)
        vectors = [self._pooled(part, features, images) for part in self.parts]
        if len(vectors) == 1:
            return vectors[0]
        return torch.cat([functional.normalize(vector.float(), dim=1) for vector in vectors], dim=1)

    def _features(self, images: Tensor) -> Any:
        if self.layer is not None:
            return layers.output(self.model, images, self.layer)
        features: Any = self.model.forward_features(images)  # type: ignore[operator]
        if not isinstance(features, Tensor) and set(self.parts) - {"model", "fc"}:
            raise UserError(
                f"model.pool={self.cfg.pool}: the network ends in several maps: use model, or choose one of "
                "them with model.layer"
            )
        return features

    def _pooled(self, part: str, features: Any, images: Tensor) -> Tensor:
        if part in ("model", "fc"):
            before_classifier = part == "model" or self.has_hidden_layer
            head: Any = self.model.forward_head
            pooled: Tensor = head(features, pre_logits=before_classifier)
            return pooled
        with torch.autocast(images.device.type, enabled=False):
            found = tokens.arrange(features.float(), self.model, images)
            if part == "cls":
                return tokens.class_token(found, self.model)
            if part in pooling.OF_GRIDS and found.maps.shape[3] == 1 < found.maps.shape[2]:
                raise UserError(
                    f"model.pool={self.cfg.pool}: {part!r} needs a map, and the network's tokens form none: "
                    "use avg, mac or gem"
                )
            if part == "gem":
                return pooling.gem(found.maps, self.cfg.gem_p)
            if part == "rmac":
                return regions.rmac(found.maps, self.whitening)
            return pooling.POOLINGS[part](found.maps)

    def _example(self) -> Tensor:
        size = self.preprocess_spec.size
        return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))

    def _measured_dim(self) -> int:
        example = self._example().to(self.normalize.scale.device)
        with torch.inference_mode():
            try:
                return int(self(example).shape[1])
            except RuntimeError as error:
                if not self.cfg.has_several_sizes:
                    raise
                raise UserError(
                    f"model.scales={self.cfg.scales}: the network cannot take inputs of one of "
                    f"{', '.join(map(str, self.sides))} px"
                ) from error
