"""A network -> per-query scores on a set's tasks, from pixels that are decoded already."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ssl_retrieval import checkpoint, plugins, precision
from ssl_retrieval.adaptation.study_images import LabelledTask, StudySet
from ssl_retrieval.errors import UserError
from ssl_retrieval.extractors.base import NetworkConfig, PooledNetwork
from ssl_retrieval.metrics import compute
from ssl_retrieval.network_input import InputSpec
from ssl_retrieval.packed import Packed
from ssl_retrieval.postprocess import l2_normalize
from ssl_retrieval.query_groups import query_groups
from ssl_retrieval.search import relevant_ranks
from ssl_retrieval.train_config import PretrainConfig
from ssl_retrieval.train_setup import build_backbone
from ssl_retrieval.types import FloatArray, IntArray, VectorArray

METRICS = ("mAP", "hit_rate@1")
BATCH_SIZE = 64


@dataclass(frozen=True, eq=False)
class TaskScores:
    """What a network scored on one task.

    Attributes:
        level: ``instance`` or ``category``.
        per_query: Metric -> float64 [Q].
        groups: int64 [Q], the class or object of each query.
    """

    level: str
    per_query: dict[str, FloatArray]
    groups: IntArray


def starting_network(cfg: PretrainConfig) -> tuple[PooledNetwork, InputSpec]:
    """Build the very network that a training run begins with, ready to embed.

    Args:
        cfg: The run's config.

    Raises:
        UserError: Its weights cannot be had.
    """
    backbone, card = build_backbone(cfg, plugins.find("method", cfg.method.name))
    spec = InputSpec.from_dict(card.input)
    return _ready(backbone, spec), spec


def trained_network(file: Path) -> tuple[PooledNetwork, InputSpec, checkpoint.Card]:
    """Read the network that a training run left, ready to embed.

    Args:
        file: Its ``checkpoint.safetensors``.
    """
    model, card, spec = checkpoint.load(file)
    return _ready(model, spec), spec, card


def _ready(model: nn.Module, spec: InputSpec) -> PooledNetwork:
    network = PooledNetwork(model.eval(), spec, NetworkConfig(name="checkpoint")).eval()
    network.to(memory_format=torch.channels_last)
    return network


def score_set(
    network: PooledNetwork, images: StudySet, device: torch.device, number_format: str = "fp32"
) -> dict[str, TaskScores]:
    """Score a network on all tasks of a set.

    Args:
        network: From `starting_network` or `trained_network`, on ``device``.
        images: The set.
        device: Where it runs.
        number_format: ``fp32`` or ``bf16``.
    """
    vectors = embed(network, images.images, device, number_format)
    return {label: _score(task, vectors, device) for label, task in images.tasks.items()}


def embed(network: nn.Module, images: Packed, device: torch.device, number_format: str) -> VectorArray:
    """Embed packed images: float32 [N, D], rows of length 1.

    Raises:
        UserError: A vector is not finite.
    """
    runtime = precision.without_trial(number_format, "channels_last", device)
    pixels = images.tensor()
    parts = []
    with torch.inference_mode(), runtime.autocast(device):
        for start in range(0, len(pixels), BATCH_SIZE):
            parts.append(network(pixels[start : start + BATCH_SIZE].to(device)).float().cpu().numpy())
    vectors = np.concatenate(parts)
    if not np.isfinite(vectors).all():
        raise UserError("the network gives vectors that are not finite: it is ruined")
    return l2_normalize(vectors)


def _score(found: LabelledTask, vectors: VectorArray, device: torch.device) -> TaskScores:
    task = found.task
    ranks = relevant_ranks(
        vectors[found.queries], vectors[found.gallery], task.relevant, task.ignored, device
    )
    per_query = {metric: compute(metric, ranks) for metric in METRICS}
    return TaskScores(task.level, per_query, query_groups(task))
