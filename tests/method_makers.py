"""Every method around a tiny network, and views for it."""

from typing import Any

import torch
from torch import Tensor

from ssl_retrieval import backbones, config, plugins
from ssl_retrieval.augment import Output, make_views
from ssl_retrieval.defaults import Facts, fill_method
from ssl_retrieval.methods.base import BaseMethod
from ssl_retrieval.methods.tuples import TuplesMethod

IMAGE_SIZE = 32
FACTS = Facts(num_images=1000, batch_size=8, image_size=IMAGE_SIZE)
NEEDS_VIT = {"ibot", "mae"}

OPTIONS: dict[str, dict[str, Any]] = {
    "barlow_twins": {"output_dim": 64},
    "byol": {"momentum": 0.5},
    "dcl": {"weighted": True},
    "dino": {"local_crops": 2, "output_dim": 64, "momentum": 0.5},
    "ibot": {"local_crops": 2, "output_dim": 64, "momentum": 0.5},
    "lejepa": {"local_crops": 2},
    "moco_v2": {"queue_length": 24, "momentum": 0.5},
    "moco_v3": {"momentum": 0.5},
    "sscd": {"dim": 16},
    "swav": {"local_crops": 2, "num_prototypes": 32, "queue_length": 8, "queue_start": 0.0},
    "vicreg": {"output_dim": 64},
    "visreg": {"local_crops": 2, "num_slices": 256},
    "contrastive": {"memory": 24, "memory_start": 0.0, "dim": 16},
    "triplet": {"memory": 24, "memory_start": 0.0, "dim": 16},
    "multi_similarity": {"memory": 24, "memory_start": 0.0, "pool": "gem"},
    "pair_contrastive": {"pairs": "neighbours", "negatives": 2, "skip": 0, "k": 3, "dim": 16},
    "pair_triplet": {"pairs": "diffusion", "negatives": 2, "skip": 0, "k": 3, "margin": 0.5},
    "arcface": {"pool": "gem", "dim": 16},
    "distill": {
        "teacher": {"name": "test_convnext", "weights": "random", "image_size": 48},
        **dict.fromkeys(("mse", "similarity", "rkd_distance", "rkd_angle"), 1.0),
    },
}
"""Settings under which a tiny batch uses every part of a method, and teachers move visibly in a step."""


NUM_CLASSES = FACTS.num_classes


def needs_labels(name: str) -> bool:
    return bool(plugins.find("method", name).Method.needs_labels)


def in_tuples(name: str) -> bool:
    return issubclass(plugins.find("method", name).Method, TuplesMethod)


def labels_for(batch_size: int = 8) -> Tensor:
    """Pairs of a class, so that half a batch holds some too."""
    return torch.arange(batch_size) // 2 % NUM_CLASSES


def network_of(name: str) -> str:
    return "test_vit" if name in NEEDS_VIT else "test_resnet"


def method_of(name: str, seed: int = 0, **options: Any) -> BaseMethod:
    module = plugins.find("method", name)
    backbone = backbones.make(
        network_of(name),
        image_size=IMAGE_SIZE,
        seed=seed,
        patch_size=8 if name in NEEDS_VIT else None,
        dynamic_size=getattr(module.Method, "multi_crop", False),
    )
    settings = OPTIONS.get(name, {}) | options
    if isinstance(settings.get("teacher"), dict):
        settings["teacher"] = config.plugin_config("extractor", settings["teacher"], "method.teacher")
    cfg = fill_method(module, module.Config(**settings), FACTS)
    torch.manual_seed(seed)
    method: BaseMethod = module.Method(cfg, backbone)
    method.name_in_tests = name  # type: ignore[assignment]
    method.set_mode("train")
    return method


def views_for(method: BaseMethod, step: int = 0, batch_size: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (batch_size, 3, 40, 40), generator=generator)
    views = make_views(
        images.to(torch.uint8),
        method.views(IMAGE_SIZE),
        seed=0,
        step=step,
        samples=torch.arange(batch_size),
        output=Output(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
    )
    return [*views, labels_for(batch_size)] if method.needs_labels else views
