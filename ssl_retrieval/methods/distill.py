"""Distillation: a small network learns the vectors of a large one that stays as it is, without labels.

Student and teacher see the same crop, each at its own size; Beyer et al., CVPR 2022 (arXiv 2106.05237), show
what other views cost. What is matched is a weighted sum of `distillation`'s losses. A student that ends in
the teacher's space can ask a gallery that the teacher embedded: asymmetric retrieval, Budnik and Avrithis,
CVPR 2021 (arXiv 2006.13525).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from sklearn.linear_model import RidgeCV
from torch import Tensor, nn
from torch.nn import functional as nnf

from ssl_retrieval import distillation, distributed, pooling
from ssl_retrieval.augment import Augment, View
from ssl_retrieval.config import plugin
from ssl_retrieval.data.base import one_of
from ssl_retrieval.defaults import Facts, gentle
from ssl_retrieval.embedding_head import WHITENED_ON, EmbeddingHead
from ssl_retrieval.errors import UserError
from ssl_retrieval.frozen_teacher import FrozenTeacher
from ssl_retrieval.methods.base import BaseMethod, StepOutput
from ssl_retrieval.methods.one_view import crops
from ssl_retrieval.types import Choices

LOSSES = ("cosine", "mse", "similarity", "rkd_distance", "rkd_angle")
MATCHING = ("cosine", "mse")
"""Losses that compare vector with vector, so that both must have one dimension."""

SHRINKAGES = tuple(10.0**power for power in range(-6, 2))
"""Of the ridge regression that the projection starts as; leave-one-out errors choose."""


@dataclass
class Config:
    """The objective's settings.

    Attributes:
        teacher: Section of a model, as in ``compare``: a timm network, or ``checkpoint`` with its path.
        cosine: Weight of `distillation.cosine`, on projected vectors.
        mse: Weight of `distillation.relative_error`, on projected vectors.
        similarity: Weight of `distillation.similarity`, on the vectors that are searched with.
        rkd_distance: Weight of `distillation.distances`, on these.
        rkd_angle: Weight of `distillation.angles`, on these.
        temperature: Of ``similarity``.
        space: Where the student searches: ``student`` = by its pooled vector; a projection to the teacher's
            dimension is for training alone. ``teacher`` = by what the projection gives, which is exported:
            then it can search a gallery that the teacher embedded.
        projection: ``linear``; or ``none``, where the student begins with the teacher's weights. Two networks
            of equal dimension have other axes: a student that must learn the teacher's without it is ruined.
        fit_projection: Let the projection begin as the ridge regression of the teacher's vectors of up to
            4096 training images on the student's.
        pool: How the student's last map is pooled: ``model``, ``avg``, ``gem`` or ``cls``.
        gem_p: Exponent of ``gem``.
        augment: How the view is made.
    """

    name: str = "distill"
    teacher: Any = plugin("extractor")
    cosine: float = 1.0
    mse: float = 0.0
    similarity: float = 0.0
    rkd_distance: float = 0.0
    rkd_angle: float = 0.0
    temperature: float = 0.05
    space: str = "student"
    projection: str = "linear"
    fit_projection: bool = True
    pool: str = "model"
    gem_p: float = pooling.GEM_P
    augment: Augment = field(default_factory=crops)


def defaults(facts: Facts) -> Choices:
    """Choose the optimizer."""
    if facts.pretrained:
        return gentle()
    return {"optimizer.name": ("adamw", "the targets are vectors, not classes")}


def check(cfg: Config) -> None:
    """Refuse what needs no network to be refused.

    Raises:
        UserError: Names the key.
    """
    if cfg.teacher is None:
        raise UserError(
            "method.teacher is missing: give a timm name, as method.teacher.name=tf_efficientnet_lite2 "
            "method.teacher.weights=offline, or method.teacher.name=checkpoint method.teacher.path=RUN"
        )
    weights = {name: float(getattr(cfg, name)) for name in LOSSES}
    for name, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise UserError(f"method.{name}={weight}: a weight of 0 or more is needed")
    if not any(weights.values()):
        raise UserError(f"all of method.{', method.'.join(LOSSES)} are 0: give one of them a weight")
    if cfg.temperature <= 0:
        raise UserError(f"method.temperature={cfg.temperature}: must be positive")
    one_of("method.space", cfg.space, ("student", "teacher"))
    one_of("method.projection", cfg.projection, ("linear", "none"))
    if cfg.space == "teacher" and not any(weights[name] for name in MATCHING):
        raise UserError(
            "method.space=teacher needs method.cosine or method.mse above 0: the others do not say where the "
            "teacher's vectors are"
        )
    if cfg.space == "teacher" and cfg.projection == "none":
        raise UserError("method.space=teacher exports the projection: leave out method.projection=none")
    cfg.augment.check()


class Method(BaseMethod):
    """A student around a timm backbone; in several processes the loss is that of the whole batch.

    The teacher is no part of the state: it is built from its source again, and must be the same.
    """

    family = "distilled"
    advice = "a lower optimizer.lr, or a milder method.augment"
    teacher_digest: Tensor

    def __init__(self, cfg: Config, backbone: nn.Module) -> None:
        """Build the teacher, and what makes the student's vectors.

        Args:
            cfg: See `Config`.
            backbone: A network from `backbones.make`.
        """
        super().__init__()
        check(cfg)
        self.cfg = cfg
        self.encoder = backbone
        self.frozen = FrozenTeacher(cfg.teacher, "method.teacher")
        digest = list(bytes.fromhex(self.frozen.digest))
        self.register_buffer("teacher_digest", torch.tensor(digest, dtype=torch.uint8, device="cpu"))
        self.register_load_state_dict_pre_hook(self._require_same_teacher)
        self.plain = EmbeddingHead(backbone, cfg.pool, cfg.gem_p)
        matches = any(getattr(cfg, name) for name in MATCHING)
        differs = self.plain.dim != self.frozen.dim
        if matches and cfg.projection == "none" and differs:
            raise UserError(
                f"method.projection=none: the student's vectors have {self.plain.dim} values, the teacher's "
                f"{self.frozen.dim}: set method.projection=linear, or method.cosine=0 and method.mse=0"
            )
        # What no loss reads would have no gradient, for which several processes wait for ever.
        dim = self.frozen.dim if matches and cfg.projection == "linear" else 0
        self.head = EmbeddingHead(backbone, cfg.pool, cfg.gem_p, dim)
        normal: Any = backbone.pretrained_cfg
        mean, std, their_mean, their_std = (
            torch.tensor(values, device="cpu").view(1, 3, 1, 1)
            for values in (normal["mean"], normal["std"], self.frozen.mean, self.frozen.std)
        )
        self.register_buffer("to_teacher_scale", std / their_std, persistent=False)
        self.register_buffer("to_teacher_shift", (mean - their_mean) / their_std, persistent=False)

    to_teacher_scale: Tensor
    to_teacher_shift: Tensor

    def views(self, image_size: int) -> list[View]:
        """Ask for one crop, at the student's size and, where that differs, at the teacher's."""
        mine = View(self.cfg.augment, image_size)
        if self.frozen.size == image_size:
            return [mine]
        return [mine, View(self.cfg.augment, self.frozen.size, twin=0)]

    def begin(self, batches: Iterator[list[Tensor]]) -> None:
        """Fit the projection, if the config says so."""
        if self.head.projection is None or not self.cfg.fit_projection:
            return
        self.encoder.eval()
        ours, theirs, count = [], [], 0
        for views in islice(batches, WHITENED_ON):
            with torch.no_grad():
                pooled = self.head.pooled(self.encoder, views[0])
            ours.append(nnf.normalize(pooled.float(), dim=1).cpu())
            theirs.append(self._taught(views).cpu())
            count += len(views[0])
            if count >= WHITENED_ON:
                break
        # Directions count where the loss is of directions, lengths too where it is of those.
        wanted = torch.cat(theirs) if self.cfg.mse else nnf.normalize(torch.cat(theirs), dim=1)
        fitted = RidgeCV(alphas=SHRINKAGES).fit(torch.cat(ours).double().numpy(), wanted.double().numpy())
        with torch.no_grad():
            self.head.projection.weight.copy_(torch.from_numpy(fitted.coef_.reshape(-1, pooled.shape[1])))
            self.head.projection.bias.copy_(torch.from_numpy(fitted.intercept_))

    def embedding_head(self) -> EmbeddingHead:
        """Give the head whose vectors are searched with, for the export and the monitor."""
        return self.head if self.cfg.space == "teacher" else self.plain

    def step(self, views: list[Tensor], progress: float) -> StepOutput:
        """Compare the student's vectors with the teacher's.

        Args:
            views: float [B, 3, S, S]; a second one at the teacher's size where that is another.
            progress: Not used: no part of the loss has a schedule.
        """
        pooled = self.head.pooled(self.encoder, views[0])
        taught = self._taught(views)
        # Differences of similarities near 1 vanish in half types: fp32, whatever came before.
        with torch.autocast(pooled.device.type, enabled=False):
            pooled, taught = distributed.gather(pooled.float()), distributed.gather(taught)
            projected = self.head.project(pooled)
            parts = self._parts(pooled, projected, taught)
            loss = sum((getattr(self.cfg, name) * part for name, part in parts.items()), pooled.new_zeros(()))
        return StepOutput(loss=loss, logs={name: part.detach() for name, part in parts.items()})

    def _parts(self, pooled: Tensor, projected: Tensor, taught: Tensor) -> dict[str, Tensor]:
        """Compute every loss that has a weight."""
        searched = projected if self.cfg.space == "teacher" else pooled
        losses = {
            "cosine": lambda: distillation.cosine(projected, taught),
            "mse": lambda: distillation.relative_error(projected, taught),
            "similarity": lambda: distillation.similarity(searched, taught, self.cfg.temperature),
            "rkd_distance": lambda: distillation.distances(searched, taught),
            "rkd_angle": lambda: distillation.angles(searched, taught),
        }
        return {name: loss() for name, loss in losses.items() if getattr(self.cfg, name) > 0}

    def _taught(self, views: list[Tensor]) -> Tensor:
        """Give the teacher's vectors, float32 [B, E] without gradient."""
        seen = torch.addcmul(self.to_teacher_shift, views[-1], self.to_teacher_scale)
        return self.frozen(seen).float()

    def _require_same_teacher(
        self, module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any
    ) -> None:
        """Refuse a state that another teacher's vectors made."""
        stored = state.get(f"{prefix}teacher_digest")
        if stored is not None and bytes(stored.cpu().tolist()).hex() != self.frozen.digest:
            raise UserError(
                f"method.teacher.name={self.cfg.teacher.name}: its weights are not those that the run began "
                "with: bring those back, or use another out"
            )
