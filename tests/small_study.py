"""A study of adaptation that takes seconds: a tiny network, few emoji, two steps."""

from pathlib import Path
from typing import Any

import pytest

from ssl_retrieval import backbones, checkpoint, config
from ssl_retrieval.adaptation.study_config import StudyConfig
from ssl_retrieval.network_input import InputSpec

NETWORK = "test_resnet"
SPEC = InputSpec(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with weights of its own, as if pretrained here."""
    file = tmp_path_factory.mktemp("start") / "checkpoint.safetensors"
    model = backbones.make(NETWORK, "random", seed=3)
    checkpoint.save(model, checkpoint.Card(NETWORK, "standard", SPEC.to_dict()), file)
    return file


def small(out: Path, start: Path, **changes: Any) -> dict[str, Any]:
    """The smallest study: the demo's emoji, two steps."""
    photos = {"name": "emoji", "split": "train"}
    copies = {
        "name": "copies",
        "root": "",
        "of": {"name": "emoji", "split": "test"},
        "copies": str(out / "copies"),
        "num_originals": 4,
        "transformations": ["crop", "gray"],
    }
    tasks = {"instance": {"task": "instance"}, "category": {"task": "category"}, "copies": copies}
    emojis = {"photos": photos, "tasks": tasks, "max_photos": 40, "max_queries": 30, "max_gallery": 80}
    return {
        "out": str(out),
        "sets": {"emoji": emojis},
        "starts": {"own": {"name": NETWORK, "weights": str(start)}},
        "jitter": [False],
        "anchors": [0],
        "seeds": [0, 1],
        "image_size": 32,
        "steps": 2,
        "batch_size": 8,
        "probe_photos": 16,
        **changes,
    }


def settings(out: Path, start: Path, **changes: Any) -> StudyConfig:
    return config.load(StudyConfig, None, settings=small(out, start, **changes))
