"""What a training run is told: the keys of ``pretrain`` and ``finetune``, and what can be refused at once."""

from dataclasses import dataclass, field
from typing import Any

from ssl_retrieval import adapters, backbones, compiling, config, image_source, optim, plugins, precision
from ssl_retrieval.anchor import AnchorConfig
from ssl_retrieval.config import plugin
from ssl_retrieval.data.base import one_of
from ssl_retrieval.errors import UserError
from ssl_retrieval.monitor import MonitorConfig
from ssl_retrieval.rounds import Signal


@dataclass
class ModelConfig:
    """The network that is trained.

    Attributes:
        name: timm name.
        weights: Where training starts: ``random``, ``pretrained``, ``offline``, ``hf-hub:OWNER/NAME``, or a
            file: a weights file, or a checkpoint or run of ours.
        image_size: Side of the views in pixels.
        stem: ``auto``, ``small`` or ``standard``.
        patch_size: Side of a ViT's patches in pixels; None = its own, or a smaller one for small images.
        drop_path: Stochastic depth of the student.
        freeze: Stages (after the stem) that keep their weights.
        batchnorm: ``train``, or ``eval`` to keep all running statistics.
        adapter: ``none``, or ``lora``: small matrices are trained in place of weights (see `adapters.add`).
        adapter_rank: Their rank.
    """

    name: str = "???"
    weights: str = "random"
    image_size: int = 224
    stem: str = "auto"
    patch_size: int | None = None
    drop_path: float = 0.0
    freeze: int = 0
    batchnorm: str = "train"
    adapter: str = "none"
    adapter_rank: int = 8


@dataclass
class PretrainConfig:
    """The keys of ``ssl-retrieval pretrain`` and ``ssl-retrieval finetune``, which run the same loop.

    Attributes:
        out: Folder of the run; the same folder again resumes it.
        seed: Weights, order of images and augmentations follow from it.
        device: ``auto``, ``cpu``, ``cuda``, ….
        data: Dataset section; its training images are used, their labels by methods alone that learn from
            labels.
        model: The network.
        method: The objective.
        optimizer: How weights are updated; what is left open follows the method's recipe.
        anchor: What holds the network to its learned start.
        epochs: Passes over the images; None = by their number.
        steps: Updates of the weights, in place of ``epochs``: the last pass may end early.
        batch_size: Images per step, over all processes.
        images_per_class: Images of each class in a batch, for methods that learn from labels; 0 = batches
            are drawn from all images alike, None = as the method needs.
        renew_every: Epochs between rounds, fractions allowed, for methods that make their own teaching signal
            from what the network sees; None = as the method needs.
        accumulate: Parts into which a batch is cut, one after the other, when it does not fit in memory.
            Objectives that compare images of a batch see one part at a time.
        sync_batchnorm: In several processes, let batch normalisation see the whole batch.
        source: ``packed``: images are decoded once, into squares; ``stream``: photos are decoded in every
            epoch and cut at full resolution; ``auto``: packed where they fit in a quarter of the free memory.
        pack_size: Side in pixels at which packed images are kept; None = ``model.image_size``.
        num_workers: Processes that decode a stream; -1 = one per core, or per two when training on the CPU.
        precision: ``auto`` (timed at the start), ``fp32``, ``bf16``, or ``fp16`` with scaled loss.
        memory_format: ``auto``, ``contiguous`` or ``channels_last``.
        compile: What torch.compile makes faster: ``none``, ``views``, ``all`` (the network too), ``graphs``
            (as all, with CUDA graphs); ``auto`` by the device and the length of the run.
        monitor: How retrieval is watched while training.
        validation: Dataset section of a held-out task for the monitor; without it, training images must
            find themselves.
        save_every_s: Seconds between checkpoints.
        log_every: Steps between lines of ``metrics.jsonl``.
    """

    out: str = "???"
    seed: int = 0
    device: str = "auto"
    data: Any = plugin("dataset")
    model: ModelConfig = field(default_factory=ModelConfig)
    method: Any = plugin("method")
    optimizer: optim.OptimizerConfig = field(default_factory=optim.OptimizerConfig)
    anchor: AnchorConfig = field(default_factory=AnchorConfig)
    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 256
    images_per_class: int | None = None
    renew_every: float | None = None
    accumulate: int = 1
    sync_batchnorm: bool = True
    source: str = "auto"
    pack_size: int | None = None
    num_workers: int = -1
    precision: str = "auto"
    memory_format: str = "auto"
    compile: str = "auto"
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    validation: Any = plugin("dataset")
    save_every_s: float = 60.0
    log_every: int = 10


def check(cfg: PretrainConfig) -> None:
    """Refuse what needs no images to be refused: an hour may go into decoding them.

    Raises:
        UserError: Names the key.
    """
    config.require_sections(cfg, "data", "method")
    for name in ("epochs", "steps", "batch_size", "log_every", "accumulate"):
        value = getattr(cfg, name)
        if value is not None and value < 1:
            raise UserError(f"{name}={value}: must be at least 1")
    if cfg.steps is not None and cfg.epochs is not None:
        raise UserError(f"epochs={cfg.epochs} and steps={cfg.steps} are both set: keep one of them")
    if cfg.batch_size < 2:
        raise UserError("batch_size=1: contrastive training and batch normalisation need at least 2")
    if cfg.model.image_size < 8:
        raise UserError(f"model.image_size={cfg.model.image_size}: must be at least 8")
    if cfg.pack_size is not None and cfg.pack_size < 8:
        raise UserError(f"pack_size={cfg.pack_size}: must be at least 8, or null for model.image_size")
    _check_labels(cfg)
    _check_method(cfg)
    backbones.check_name(cfg.model.name)
    cfg.monitor.check()
    precision.allowed(cfg.precision, cfg.memory_format)
    one_of("compile", cfg.compile, ("auto", *compiling.PARTS))
    one_of("source", cfg.source, ("auto", *image_source.SOURCES))
    if cfg.num_workers < -1:
        raise UserError(f"num_workers={cfg.num_workers}: must be -1 (one per core), 0 or more")
    optim.check_given(cfg.optimizer)
    if cfg.model.batchnorm not in ("train", "eval"):
        raise UserError(f"model.batchnorm={cfg.model.batchnorm!r}: one of train, eval")
    model = cfg.model
    adapters.check(model.adapter, model.adapter_rank)
    cfg.anchor.check(model.weights, model.adapter)
    backbones.choose_stem(model.stem, model.image_size, model.name, model.weights)
    backbones.choose_patch(model.patch_size, model.image_size, model.name, model.weights)


def signal_of(cfg: PretrainConfig) -> Signal:
    """Tell where the method's labels come from.

    Raises:
        UserError: The method's config says nothing that there is.
    """
    signal: Signal = plugins.find("method", cfg.method.name).Method.signal(cfg.method)
    return signal


def _check_method(cfg: PretrainConfig) -> None:
    """Let the method's file refuse its settings, where it has a ``check``."""
    own = getattr(plugins.find("method", cfg.method.name), "check", None)
    if own is not None:
        own(cfg.method)


def _check_labels(cfg: PretrainConfig) -> None:
    signal, every, count = signal_of(cfg), cfg.renew_every, cfg.images_per_class
    if every is not None:
        if not signal.renewed:
            raise UserError(
                f"renew_every={every}: method.name={cfg.method.name} makes no labels of its own here: leave "
                "it out"
            )
        if not 0 < every < float("inf"):
            raise UserError(f"renew_every={every}: a positive number of epochs is needed, e.g. 1 or 0.5")
    if cfg.batch_size % signal.together:
        near = max(1, round(cfg.batch_size / signal.together)) * signal.together
        raise UserError(
            f"batch_size={cfg.batch_size}: method.name={cfg.method.name} takes its images in tuples of "
            f"{signal.together}: set batch_size={near}"
        )
    if count is None or count == 0:
        return
    if count < 2:
        raise UserError(f"images_per_class={count}: must be at least 2, or 0 for plain batches")
    if not (signal.given or signal.renewed):
        raise UserError(
            f"images_per_class={count}: method.name={cfg.method.name} sees no labels: leave it out"
        )
    if signal.together > 1:
        raise UserError(
            f"images_per_class={count}: method.name={cfg.method.name} takes its images in tuples, not by "
            "class: leave it out"
        )
