"""The job of ``ssl-retrieval sweep``: where to take the embedding, and what to do to it, in three rounds.

First every place with and without whitening, then other resolutions at the best of these, then fewer
dimensions at the cheapest resolution that is about as good as the best. What is chosen is then scored where
nothing was chosen: on another task, or by the other half of the queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssl_retrieval import config, devices, pooling, postprocess
from ssl_retrieval.atomic import require_writable
from ssl_retrieval.config import plugin
from ssl_retrieval.console import say
from ssl_retrieval.embed import EmbedOptions
from ssl_retrieval.errors import UserError
from ssl_retrieval.evaluate import ProtocolOptions, fit_options, load_task, score_features, versions
from ssl_retrieval.features import derived, extracted
from ssl_retrieval.fitting import NothingToFitError
from ssl_retrieval.query_halves import query_halves
from ssl_retrieval.recipe import Derived
from ssl_retrieval.report.sweep_page import SweepReport, write_sweep_report
from ssl_retrieval.representation import Representation
from ssl_retrieval.resampling import StatisticsOptions
from ssl_retrieval.store import Store
from ssl_retrieval.sweep_choice import MEASURE, Tried, cheapest, judge
from ssl_retrieval.sweep_points import WHITENINGS, Place, check_axes, image_size_of, places, sizes
from ssl_retrieval.types import Task

AXES = ("network", "pooling", "layer", "projector", "whitening", "resolution", "dimensions")
MAX_DIM = 8192
"""Longer vectors are no embeddings: the prototypes of DINO, say."""

Processing = tuple[str, tuple[str, ...]]
"""Post-processing in words, and its steps."""

_NOTHING: Processing = ("", ())


@dataclass
class SweepConfig:
    """The keys of ``ssl-retrieval sweep``.

    Attributes:
        out: Folder for the tables, the picture, the page and the embeddings.
        seed: Splits the queries, and draws images to fit on.
        device: ``auto``, ``cpu``, ``cuda``, ….
        data: Dataset section: the task on which the choice is scored.
        validation: Dataset section of the task by which is chosen; without it, half of the queries of
            ``data`` choose, and the other half scores.
        model: Extractor section: a timm name, or ``checkpoint`` with a run's folder; the default point.
        axes: What is varied: some of ``network``, ``pooling``, ``layer``, ``projector``, ``whitening``,
            ``resolution`` and ``dimensions``.
        poolings: Of the last map and of layers; empty = as the network suggests.
        layers: Earlier layers, as ``model.layer`` is written; empty = the last few.
        resolutions: Input sides in pixels; empty = three factors of the default point's.
        dimensions: Of the shortened vectors.
        whiten_dim: Whitening in the first round keeps at most so many dimensions: of some thousand the last
            ones are noise of the images that it is fitted on, and whitening makes noise as large as the rest.
        max_loss: A point counts as about as good as the best only if its ``mAP`` is at most so much lower.
        embed: Batch size and workers.
        protocol: See `ProtocolOptions`.
        cache: Folder of embeddings shared between runs; by default ``out/embeddings``.
        fit: Dataset section: where whitening is fitted; by default each task's own training images.
        fit_limit: At most so many of them.
        fit_on_test: Whether test images may be among them.
        statistics: See `StatisticsOptions`.
    """

    out: str = "???"
    seed: int = 0
    device: str = "auto"
    data: Any = plugin("dataset")
    validation: Any = plugin("dataset")
    model: Any = plugin("extractor")
    axes: list[str] = field(default_factory=lambda: list(AXES))
    poolings: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    resolutions: list[int] = field(default_factory=list)
    dimensions: list[int] = field(default_factory=lambda: [512, 256, 128, 64, 32])
    whiten_dim: int = 256
    max_loss: float = 0.01
    embed: EmbedOptions = field(default_factory=EmbedOptions)
    protocol: ProtocolOptions = field(default_factory=ProtocolOptions)
    cache: str = ""
    fit: Any = plugin("dataset")
    fit_limit: int = 5000
    fit_on_test: bool = False
    statistics: StatisticsOptions = field(default_factory=StatisticsOptions)


def run_sweep(cfg: SweepConfig) -> SweepReport:
    """Try the points, choose one, score it; write tables, a picture, a page and the settings.

    Raises:
        UserError: A mistake in the config, the data or the network.
    """
    _check(cfg)
    out = Path(cfg.out).expanduser()
    require_writable(out)
    choosing, testing, how = _tasks(cfg)
    bench = _Bench(cfg, Path(cfg.cache).expanduser() if cfg.cache else out / "embeddings")
    found = places(cfg.model, cfg.axes, cfg.poolings, cfg.layers)
    say(f"{len(found)} places by {choosing.name}, then other resolutions and dimensions at the best")
    tried: list[Tried] = []
    for place in found:
        tried += bench.tried(place, place.label, "place", choosing)
    best = max(tried, key=lambda point: point.score)
    if "resolution" in cfg.axes:
        place = next(one for one in found if one.label == best.place)
        for size in sizes(place.model, cfg.resolutions):
            tried += bench.tried(place.at(size), place.label, "resolution", choosing, best.processing)
        alike = [
            one
            for one in judge(tried, cfg.statistics, cfg.max_loss)
            if (one.tried.place, one.tried.processing) == (best.place, best.processing)
        ]
        best = cheapest(alike).tried
    if "dimensions" in cfg.axes:
        tried += bench.shortened(best, choosing)
    judged = judge(tried, cfg.statistics, cfg.max_loss)
    chosen = cheapest(judged)
    winner = next(one for one in judged if one.behind_best is None)
    finalists = {point.label: point for point in (tried[0], winner.tried, chosen.tried)}
    say(f"scoring {len(finalists)} of {len(tried)} points on {testing.name}")
    report = SweepReport(
        name=testing.name,
        chosen_by=choosing.name,
        how=how,
        judged=judged,
        chosen=chosen,
        best=winner,
        held_out=judge([bench.again(point, testing) for point in finalists.values()], cfg.statistics, 0),
        max_loss=cfg.max_loss,
        settings=_settings(cfg, chosen.tried),
        notes=list(dict.fromkeys(bench.notes)),
        versions=versions(),
    )
    write_sweep_report(report, out)
    return report


def _check(cfg: SweepConfig) -> None:
    """Refuse, before anything is embedded, what cannot work."""
    config.require_sections(cfg, "data", "model")
    check_axes(cfg.axes, AXES)
    cfg.embed.check()
    cfg.statistics.check()
    for key, values in (("resolutions", cfg.resolutions), ("dimensions", cfg.dimensions)):
        if any(value < 1 for value in values):
            raise UserError(f"{key}={values}: each must be at least 1")
    if cfg.whiten_dim < 1:
        raise UserError(f"whiten_dim={cfg.whiten_dim}: must be at least 1")
    if not 0 <= cfg.max_loss <= 1:
        raise UserError(f"max_loss={cfg.max_loss}: must be in [0, 1], the difference of two mAP")
    for pool in cfg.poolings:
        pooling.parse(pool)


def _tasks(cfg: SweepConfig) -> tuple[Task, Task, str]:
    """Give the task to choose by, the one to score on, and how they differ in words."""
    task = load_task(cfg.data, cfg.protocol)
    if cfg.validation is not None:
        other = load_task(cfg.validation, cfg.protocol)
        shared = len(set(_query_files(task)) & set(_query_files(other)))
        if shared:
            raise UserError(
                f"validation: {shared} of its queries are queries of data too, so the choice would be scored "
                "by what it was made by: give another task, or leave out validation to split the queries"
            )
        how = f"Chosen by task {other.name}; scored on task {task.name}, which had no part in the choice."
        return other, task, how
    first, second = query_halves(task, cfg.seed)
    how = (
        f"Chosen by half of the queries of {task.name} ({len(first.queries):,}); scored by the other half "
        f"({len(second.queries):,}), which had no part in the choice. Classes (objects) are in one half only."
    )
    return first, second, how


def _query_files(task: Task) -> list[str]:
    return [str(task.queries.file(number)) for number in range(len(task.queries))]


def _settings(cfg: SweepConfig, chosen: Tried) -> dict[str, Any]:
    """Give the config of ``evaluate`` that takes the chosen point."""
    sections = {name: config.to_dict(getattr(cfg, name)) for name in ("data", "embed", "protocol")}
    fit = {} if cfg.fit is None else {"fit": config.to_dict(cfg.fit)}
    return {
        "out": "???",
        **sections,
        "model": config.to_dict(chosen.model),
        "steps": list(chosen.steps),
        **fit,
        "fit_limit": cfg.fit_limit,
        "fit_on_test": cfg.fit_on_test,
        "seed": cfg.seed,
        "metrics": [MEASURE],
    }


class _Bench:
    """Takes vectors at points and scores them.

    Attributes:
        notes: What was left out, and why.
    """

    def __init__(self, cfg: SweepConfig, cache: Path) -> None:
        self.cfg, self.cache = cfg, cache
        self.device = devices.pick(cfg.device)
        self.fit = fit_options(cfg)
        self.notes: list[str] = []

    def tried(self, place: Place, row: str, axis: str, task: Task, only: str | None = None) -> list[Tried]:
        """Try a place, as it is and whitened, or with one kind of post-processing only."""

        def wanted(dim: int) -> list[Processing]:
            kept = min(dim, self.cfg.whiten_dim)
            steps = {words: (step.format(dim=kept),) for words, step in WHITENINGS.items()}
            if only is not None:
                return [(only, steps[only]) if only else _NOTHING]
            return [_NOTHING, *(steps.items() if "whitening" in self.cfg.axes else ())]

        return self._scored(place, row, axis, task, wanted)

    def shortened(self, point: Tried, task: Task) -> list[Tried]:
        """Try fewer dimensions at a point, by PCA and by its own whitening."""
        place = Place(point.label.removesuffix(f", {point.processing}"), point.model)

        def wanted(dim: int) -> list[Processing]:
            found: list[Processing] = []
            for fewer in (size for size in dict.fromkeys(self.cfg.dimensions) if size < dim):
                found.append((f"{fewer} dim.", (f"pca:{fewer}",)))
                if point.processing:
                    step = WHITENINGS[point.processing].format(dim=fewer)
                    found.append((f"{point.processing}, {fewer} dim.", (step,)))
            return [one for one in found if one[1] != point.steps]

        return self._scored(place, point.place, "dimensions", task, wanted)

    def again(self, point: Tried, task: Task) -> Tried:
        """Score a point on another task."""
        place = Place(point.label.removesuffix(f", {point.processing}"), point.model)
        return self._scored(
            place, point.place, point.axis, task, lambda _: [(point.processing, point.steps)]
        )[0]

    def _scored(self, place: Place, row: str, axis: str, task: Task, wanted: Any) -> list[Tried]:
        representation = Representation.make(place.label, place.model, self.device)
        dim = representation.extractor.dim
        if dim > MAX_DIM and place.model != self.cfg.model:
            self._note(f"{place.label} is left out: it has {dim:,} dimensions")
            return []
        processings: Sequence[Processing] = wanted(dim)
        if not processings:
            return []
        store = Store(task, self.cache, self.cfg.embed, self._on_error(), self.fit)
        plain = extracted(representation, store)
        points = []
        for words, steps in processings:
            label = f"{place.label}, {words}" if words else place.label
            try:
                postprocess.parse(steps)
                recipe = Derived(of=[place.label], steps=list(steps))
                features = derived(label, recipe, [plain], store) if steps else plain
            except NothingToFitError as error:
                self._note(f"whitening and fewer dimensions are left out: {error}")
                continue
            report = score_features(features, [MEASURE], self.device).report
            size = image_size_of(place.model)
            points.append(Tried(label, axis, row, words, place.model, steps, size, report))
            say(f"{label}: {MEASURE} {points[-1].score:.3f}, {points[-1].dim} dimensions")
        return points

    def _on_error(self) -> str:
        return str(self.cfg.data.on_error)

    def _note(self, text: str) -> None:
        if text not in self.notes:
            say(text)
            self.notes.append(text)
