"""What a study of adaptation is told: sets of photos with their tasks, starts, and the grid of settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ssl_retrieval import backbones, config, plugins, precision
from ssl_retrieval.config import plugin, plugin_map
from ssl_retrieval.console import say
from ssl_retrieval.errors import UserError


@dataclass
class SetConfig:
    """Photos to adapt to, and labelled tasks that tell what it did to retrieval.

    Attributes:
        photos: Dataset section; its training images are used, without labels.
        tasks: Name -> dataset section; one without ``name`` takes the keys of ``photos`` that it lacks.
        needs: Keys of ``roots`` without which the set is left out.
        max_photos: At most so many photos are trained on (see `study_images.lowest`); 0 = all.
        max_queries: Larger tasks keep so many queries (see `study_images.limited`).
        max_gallery: And so many gallery images.
    """

    photos: Any = plugin("dataset")
    tasks: Any = plugin_map("dataset", shared="photos")
    needs: list[str] = field(default_factory=list)
    max_photos: int = 0
    max_queries: int = 1000
    max_gallery: int = 4000


@dataclass
class StartConfig:
    """A network to begin with.

    Attributes:
        name: timm name.
        weights: As ``model.weights`` of ``pretrain``; a checkpoint of ours for a network pretrained here.
        needs: Keys of ``roots`` without which the start is left out.
    """

    name: str = "???"
    weights: str = "offline"
    needs: list[str] = field(default_factory=list)


@dataclass
class RoundConfig:
    """A part of the grid; an empty list = all that the study has.

    Attributes:
        sets: Names.
        starts: Names.
        methods: Names.
        jitter: With and without the usual colour augmentation.
        anchors: Weights λ of the anchor.
        seeds: Seeds.
    """

    sets: list[str] = field(default_factory=list)
    starts: list[str] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    jitter: list[bool] = field(default_factory=list)
    anchors: list[float] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)


@dataclass
class StudyConfig:
    """The keys of ``ssl-retrieval study``.

    Attributes:
        out: Folder of the study; the same folder again goes on with it.
        title: Heading of the document.
        device: ``auto``, ``cpu``, ``cuda``, ….
        roots: Name -> folder or file on this machine; empty = not here.
        sets: Name -> section, see `SetConfig`.
        starts: Name -> network, see `StartConfig`.
        methods: Self-supervised methods.
        jitter: Colour augmentation off, on, or both.
        anchors: Weights λ of the similarity anchor; 0 = free adaptation.
        seeds: Of order and augmentation.
        rounds: What is done first, second, …, each a part of the grid; empty = the grid as it stands. What
            no round names is left out.
        image_size: Side of the images in pixels, in training and in the tasks.
        steps: Steps of training per cell.
        batch_size: Photos per step.
        probe_photos: Photos whose vectors are kept, plain and altered, for signals without labels.
        precision: Of the scored vectors: ``fp32`` or ``bf16``.
        budget_minutes: No cell is begun after so many minutes; 0 = no limit.
        keep_weights: Keep each cell's checkpoint too.
        retry_broken: Try cells again that failed before.
    """

    out: str = "???"
    title: str = ""
    device: str = "auto"
    roots: dict[str, str] = field(default_factory=dict)
    sets: dict[str, Any] = field(default_factory=dict)
    starts: dict[str, StartConfig] = field(default_factory=dict)
    methods: list[str] = field(default_factory=lambda: ["simclr"])
    jitter: list[bool] = field(default_factory=lambda: [False, True])
    anchors: list[float] = field(default_factory=lambda: [0.0, 1.0, 3.0])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    rounds: list[RoundConfig] = field(default_factory=list)
    image_size: int = 128
    steps: int = 54
    batch_size: int = 96
    probe_photos: int = 300
    precision: str = "fp32"
    budget_minutes: float = 0.0
    keep_weights: bool = False
    retry_broken: bool = False


def check(cfg: StudyConfig) -> None:
    """Refuse what needs no images to be refused.

    Raises:
        UserError: Names the key.
    """
    for key in ("sets", "starts", "methods", "jitter", "anchors", "seeds"):
        if not getattr(cfg, key):
            raise UserError(f"{key} is empty: give at least one")
    for key, least in {"image_size": 8, "steps": 1, "batch_size": 2, "probe_photos": 12}.items():
        if getattr(cfg, key) < least:
            raise UserError(f"{key}={getattr(cfg, key)}: must be at least {least}")
    if min(cfg.anchors) < 0:
        raise UserError(f"anchors={cfg.anchors}: weights are 0 or more")
    if cfg.budget_minutes < 0:
        raise UserError(f"budget_minutes={cfg.budget_minutes}: must be 0 (no limit) or more")
    for name in (*cfg.sets, *cfg.starts):
        if not name or {"/", "\\"} & set(name):
            raise UserError(f"{name!r}: names of sets and starts name folders, so they must not hold a slash")
    precision.allowed(cfg.precision, "channels_last")
    for start in cfg.starts.values():
        backbones.check_name(start.name)
    for method in cfg.methods:
        if plugins.find("method", method).Method.needs_labels:
            raise UserError(f"methods: {method!r} learns from labels, and the photos have none: leave it out")
    for number, part in enumerate(cfg.rounds):
        for key in ("sets", "starts", "methods", "jitter", "anchors", "seeds"):
            known = list(getattr(cfg, key))
            unknown = [value for value in getattr(part, key) if value not in known]
            if unknown:
                raise UserError(
                    f"rounds[{number}].{key}: {unknown[0]!r} is not among {key} of the study: "
                    f"{', '.join(map(str, known))}"
                )


def sets_of(cfg: StudyConfig) -> dict[str, SetConfig]:
    """Read the sets whose folders are given; say which are left out.

    Raises:
        UserError: A section is wrong, or no set is left.
    """
    found = {}
    for name, section in cfg.sets.items():
        where = f"sets.{name}"
        if not isinstance(section, Mapping):
            raise UserError(
                f"{where!r} must be a section of keys (as {where}.photos.name=…), not {section!r}"
            )
        needs = list(section.get("needs") or [])
        if _is_left_out(cfg, "set", name, needs):
            continue
        made = config.build(SetConfig, {str(key): value for key, value in section.items()}, where)
        if made.photos is None or not made.tasks:
            raise UserError(f"{where}: give photos and at least one task, as {where}.tasks.fine.task=fine")
        for key in ("max_queries", "max_gallery"):
            if getattr(made, key) < 2:
                raise UserError(f"{where}.{key}={getattr(made, key)}: must be at least 2")
        found[name] = made
    if not found:
        raise UserError("no set of photos is left: give the folders, as roots.NAME=DIR")
    return found


def starts_of(cfg: StudyConfig) -> dict[str, StartConfig]:
    """Give the starts whose files are given; say which are left out.

    Raises:
        UserError: None is left.
    """
    found = {n: start for n, start in cfg.starts.items() if not _is_left_out(cfg, "start", n, start.needs)}
    if not found:
        raise UserError("no start is left: give the files, as roots.NAME=FILE")
    return found


def _is_left_out(cfg: StudyConfig, kind: str, name: str, needs: list[str]) -> bool:
    unknown = [key for key in needs if key not in cfg.roots]
    if unknown:
        raise UserError(
            f"{kind}s.{name}.needs: {unknown[0]!r} is not among roots: {', '.join(cfg.roots) or 'none'}"
        )
    lacking = [key for key in needs if not cfg.roots[key]]
    if lacking:
        say(f"{kind} {name!r} is left out: give roots.{lacking[0]}=PATH to have it")
    return bool(lacking)
