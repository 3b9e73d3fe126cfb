"""Search as the judge of training: passes over held-out images that leave the training as it was.

With labels a query/gallery task is scored. Without, each of some training images is looked for by a changed
view of itself, as in copy detection; the views are the same for every method, so that runs can be compared.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from ssl_retrieval import backbones, collapse, config, metrics, plugins
from ssl_retrieval.augment import Augment, Output, View, make_views
from ssl_retrieval.console import say
from ssl_retrieval.data.tasks import answerable, require_positives, subsample
from ssl_retrieval.embedding_head import EmbeddingHead
from ssl_retrieval.errors import UserError
from ssl_retrieval.evaluation_mode import as_in_search
from ssl_retrieval.images import report_skipped
from ssl_retrieval.metrics_knn import knn_accuracy
from ssl_retrieval.network_input import InputSpec
from ssl_retrieval.packing import Packed, pack
from ssl_retrieval.postprocess import l2_normalize
from ssl_retrieval.search import relevant_ranks, top_k
from ssl_retrieval.types import ImageSet, IntArray, Task, VectorArray

PASSES = 10
"""Passes per run, besides the one before training, where the config leaves it open."""

PASS_COST = 2.0
"""Steps between such passes, per batch of images that a pass looks at: a tenth of the time at most."""

KNN_K = 20

SIGNALS = ("std", "effective_rank", "alignment", "uniformity")

CHANGED = Augment(
    crop_min=0.3, jitter=0.8, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05, grayscale=0.0
)
"""How a training image becomes its own query; never the method's augmentation, which would favour it."""

CHANGED_SEED = 20_230_619
"""Apart from the seeds of runs, so that no training view is like it."""

SLOW_KINDS = frozenset({"shrinking", "worse"})
"""Troubles that count only when two passes in a row see them: search dips in the first steps of good runs."""


@dataclass
class MonitorConfig:
    """When and on how much search is measured during training.

    Attributes:
        every_epochs: Epochs between passes, fractions allowed; null = ten passes per run, 0 = no monitor.
        every_steps: The same in steps; 0 = by ``every_epochs``.
        max_images: At most so many queries, and so many gallery images.
        batch_size: Images per forward pass.
        patience: End the training after so many passes in a row without a new best value; 0 = never.
    """

    every_epochs: float | None = None
    every_steps: int = 0
    max_images: int = 1000
    batch_size: int = 128
    patience: int = 0

    def check(self) -> None:
        """Refuse values that mean nothing."""
        if self.every_epochs is not None and not 0 <= self.every_epochs < float("inf"):
            raise UserError(
                f"monitor.every_epochs={self.every_epochs}: must not be negative (0 = no monitor)"
            )
        if self.every_steps < 0:
            raise UserError(f"monitor.every_steps={self.every_steps}: must not be negative")
        if self.every_steps and self.every_epochs:
            raise UserError("monitor.every_steps and monitor.every_epochs are both set: keep one of them")
        if self.max_images < 2:
            raise UserError(f"monitor.max_images={self.max_images}: must be at least 2")
        if self.patience < 0:
            raise UserError(f"monitor.patience={self.patience}: must not be negative (0 = never stop early)")
        if self.patience and self.is_off:
            raise UserError("monitor.patience needs passes: monitor.every_epochs=0 switches them off")
        if self.batch_size < 1:
            raise UserError(f"monitor.batch_size={self.batch_size}: must be at least 1")

    @property
    def is_off(self) -> bool:
        """Tell whether there are no passes at all."""
        return self.every_epochs == 0 and self.every_steps == 0


@dataclass(frozen=True)
class MonitorResult:
    """What one pass found.

    Attributes:
        values: Name -> value; see `Monitor.check`.
        warning: What is wrong and what to try, when it is seen for the first time.
    """

    values: dict[str, float]
    warning: str | None


@dataclass(frozen=True, eq=False)
class _Images:
    """Rows of a packed file.

    Attributes:
        pixels: uint8 [M, H, W, 3].
        numbers: int64 [N], which of them.
        changed: Whether to show the changed view instead of the image itself.
    """

    pixels: NDArray[np.uint8]
    numbers: IntArray
    changed: bool = False


@dataclass(frozen=True, eq=False)
class _Probe:
    """The search that is scored.

    Attributes:
        prefix: ``val`` or ``self``.
        queries: Q images.
        gallery: N images.
        relevant: Q int64 arrays of gallery indices, none empty.
        ignored: Q int64 arrays.
        partners: int64 [Q], one relevant item each.
        labels: int64 [Q] and int64 [N], for search by category.
    """

    prefix: str
    queries: _Images
    gallery: _Images
    relevant: Sequence[IntArray]
    ignored: Sequence[IntArray]
    partners: IntArray
    labels: tuple[IntArray, IntArray] | None = None

    @property
    def names(self) -> list[str]:
        """Name its scores, the one that decides first."""
        scores = ["mAP", "hit_rate@1"] if self.labels is None else ["mAP", "hit_rate@1", f"knn@{KNN_K}"]
        return [f"{self.prefix}_{score}" for score in scores]


class Monitor:
    """Scores a network every now and then, and says when its embeddings go wrong.

    Attributes:
        key: The value that decides which checkpoint is best; higher is better.
    """

    def __init__(
        self,
        cfg: MonitorConfig,
        spec: InputSpec,
        device: torch.device,
        *,
        out: Path,
        packed: Packed,
        validation: Any,
        seed: int,
        advice: str,
        views: str = "",
    ) -> None:
        """Choose and decode what is searched; with a monitor that is off, nothing.

        Args:
            cfg: See `MonitorConfig`.
            spec: The network's input: side and normalisation.
            device: Where the network runs.
            out: The run's folder; decoded validation images are kept there for a resumed run.
            packed: The training images.
            validation: A dataset's filled config section; None = no labels.
            seed: The run's seed.
            advice: What to try when embeddings collapse, in words.
            views: What to try with the views when search gets worse all the same; empty = nothing.

        Raises:
            UserError: A mistake in the config, or a validation task that cannot be scored.
        """
        cfg.check()
        self.cfg, self.spec, self.device = cfg, spec, device
        self.advice, self.views = advice, views
        self.key = "self_mAP" if validation is None else "val_mAP"
        self.start: collapse.Signals | None = None
        self.trouble: str | None = None
        self.said: list[str] = []
        if cfg.is_off:
            return
        if validation is None:
            self.probe = _self_search(packed, cfg.max_images, seed)
        else:
            self.probe = _labelled_search(validation, cfg.max_images, spec.size, seed, out)

    def due(self, step: int, steps_per_epoch: int, total: int, batch_size: int) -> bool:
        """Tell whether to `check` after ``step`` steps: before the first, every so often, after the last.

        Args:
            step: Steps done.
            steps_per_epoch: Steps in a pass over the data.
            total: Steps of the whole run.
            batch_size: Images per step; where the interval is left open, passes over the probe stay a
                small part of the work.
        """
        if self.cfg.is_off:
            return False
        if step in (0, total):
            return True
        # A pass is forward alone over two lists, a step is forward and backward over two views or more.
        cheap = PASS_COST * (len(self.probe.queries.numbers) + len(self.probe.gallery.numbers)) / batch_size
        interval = float(self.cfg.every_steps) or max(total / PASSES, cheap)
        if self.cfg.every_epochs:
            interval = self.cfg.every_epochs * steps_per_epoch
        # Whole multiples count although fractions of epochs are inexact.
        return int(step / interval + 1e-9) > int((step - 1) / interval + 1e-9)

    def check(self, encoder: nn.Module, step: int, head: EmbeddingHead | None = None) -> MonitorResult:
        """Score a network; neither it nor torch's random state is changed.

        Args:
            encoder: A timm network with float32 weights on the monitor's device.
            step: Steps done, for the words. The first pass of a run is what later ones are compared to.
            head: What makes vectors of its map; None = its own pooling.

        Returns:
            ``val_mAP``, ``val_hit_rate@1`` and, for search by category, ``val_knn@20``; or
            ``self_mAP`` and ``self_hit_rate@1``. In both cases ``std``, ``effective_rank``, ``alignment``
            and ``uniformity`` (see `collapse.Signals`). All are NaN when embeddings are not finite.
        """
        with as_in_search(encoder, self.device):
            queries = self._embed(encoder, head, self.probe.queries)
            gallery = self._embed(encoder, head, self.probe.gallery)
            if not (np.isfinite(queries).all() and np.isfinite(gallery).all()):
                return self._not_finite(step)
            queries, gallery = l2_normalize(queries), l2_normalize(gallery)
            scores = self._scores(queries, gallery)
            signals = collapse.Signals.of(
                queries, gallery, self.probe.partners, retrieval=scores[self.key], metric=self.key
            )
        if self.start is None:
            self.start = signals
        values = scores | {name: getattr(signals, name) for name in SIGNALS}
        kind = collapse.kind_of_trouble(signals, self.start)
        return self._result(kind, values, collapse.diagnose(signals, self.start, self.advice, self.views))

    def state_dict(self) -> dict[str, Any]:
        """Give what a resumed run needs for the same words, as plain values."""
        start = None if self.start is None else vars(self.start).copy()
        return {"start": start, "trouble": self.trouble, "said": list(self.said)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.start = None if state["start"] is None else collapse.Signals(**state["start"])
        self.trouble, self.said = state["trouble"], list(state["said"])

    def _result(self, kind: str | None, values: dict[str, float], words: str | None) -> MonitorResult:
        lasting = kind not in SLOW_KINDS or self.trouble in SLOW_KINDS
        self.trouble = kind
        if kind is None or kind in self.said or not lasting:
            return MonitorResult(values, None)
        self.said.append(kind)
        return MonitorResult(values, words)

    def _not_finite(self, step: int) -> MonitorResult:
        words = (
            f"embeddings are not finite (NaN or infinity) at step {step}: try a lower optimizer.lr, "
            "optimizer.clip or precision=fp32"
        )
        return self._result("infinite", dict.fromkeys([*self.probe.names, *SIGNALS], float("nan")), words)

    def _embed(self, encoder: nn.Module, head: EmbeddingHead | None, images: _Images) -> VectorArray:
        embed = backbones.own_pooling if head is None else head
        rows = [
            embed(encoder, chunk.contiguous(memory_format=torch.channels_last)).float().cpu()
            for chunk in self._chunks(images)
        ]
        return torch.cat(rows).numpy()

    def _chunks(self, images: _Images) -> Iterator[Tensor]:
        for start in range(0, len(images.numbers), self.cfg.batch_size):
            numbers = images.numbers[start : start + self.cfg.batch_size]
            pixels = torch.from_numpy(images.pixels[numbers]).permute(0, 3, 1, 2).to(self.device)
            yield self._changed(pixels, numbers) if images.changed else self._clean(pixels)

    def _clean(self, pixels: Tensor) -> Tensor:
        side = [self.spec.size, self.spec.size]
        if list(pixels.shape[2:]) != side:
            pixels = tvf.resize(pixels, side, InterpolationMode.BICUBIC, antialias=True)
        values = tvf.to_dtype(pixels, torch.float32, scale=True)
        return tvf.normalize(values, list(self.spec.mean), list(self.spec.std))

    def _changed(self, pixels: Tensor, numbers: IntArray) -> Tensor:
        return make_views(
            pixels,
            [View(CHANGED, self.spec.size)],
            seed=CHANGED_SEED,
            step=0,
            samples=torch.from_numpy(numbers).to(self.device),
            output=Output(self.spec.mean, self.spec.std),
        )[0]

    def _scores(self, queries: VectorArray, gallery: VectorArray) -> dict[str, float]:
        probe = self.probe
        ranks = relevant_ranks(queries, gallery, probe.relevant, probe.ignored, self.device)
        found = [metrics.compute("mAP", ranks), metrics.compute("hit_rate@1", ranks)]
        if probe.labels is not None:
            nearest = top_k(queries, gallery, min(KNN_K, len(gallery)), probe.ignored, self.device)
            found.append(knn_accuracy(nearest, *probe.labels, k=KNN_K))
        return {name: float(values.mean()) for name, values in zip(probe.names, found, strict=True)}


def _labelled_search(validation: Any, limit: int, size: int, seed: int, out: Path) -> _Probe:
    try:
        whole: Task = plugins.find("dataset", validation.name).load(validation)
        require_positives(whole)
        task = subsample(whole, limit, seed)
        queries = _packed(task.queries, size, out / "validation_queries.npy", validation.on_error)
        gallery = _packed(task.gallery, size, out / "validation_gallery.npy", validation.on_error)
        task = answerable(task.restrict(set(queries.paths), set(gallery.paths)))
    except UserError as error:
        raise UserError(
            f"validation task: {config.in_section(str(error), validation, 'validation')}"
        ) from error
    say(
        f"monitor: {len(task.queries)} of {len(whole.queries)} queries search in {len(task.gallery)} of "
        f"{len(whole.gallery)} gallery images of {task.name}"
    )
    draw = np.random.default_rng(seed % 2**32)
    labels = None
    if task.level == "category" and task.queries.labels is not None and task.gallery.labels is not None:
        labels = task.queries.labels, task.gallery.labels
    return _Probe(
        prefix="val",
        queries=_Images(queries.pixels, _rows(queries, task.queries)),
        gallery=_Images(gallery.pixels, _rows(gallery, task.gallery)),
        relevant=task.relevant,
        ignored=task.ignored,
        partners=np.array([draw.choice(relevant) for relevant in task.relevant], np.int64),
        labels=labels,
    )


def _packed(images: ImageSet, size: int, file: Path, on_error: str) -> Packed:
    packed = pack(images, size, file, on_error)
    report_skipped(packed.skipped, f"the {file.stem.replace('_', ' ')}")
    return packed


def _rows(packed: Packed, images: ImageSet) -> IntArray:
    row_of = {path: row for row, path in enumerate(packed.paths)}
    return np.array([row_of[path] for path in images.paths], np.int64)


def _self_search(packed: Packed, limit: int, seed: int) -> _Probe:
    draw = np.random.default_rng(seed % 2**32)
    numbers = np.sort(draw.permutation(len(packed.paths))[:limit]).astype(np.int64)
    say(f"monitor: no validation, so {len(numbers)} training images are looked for by changed views")
    itself = np.arange(len(numbers))
    gallery = _Images(packed.pixels, numbers)
    return _Probe(
        prefix="self",
        queries=replace(gallery, changed=True),
        gallery=gallery,
        relevant=list(itself[:, None]),
        ignored=[np.empty(0, np.int64)] * len(numbers),
        partners=itself,
    )
