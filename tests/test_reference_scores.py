"""Real images, real weights: the scores that others measured, within 0.02 where the input is the same."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tarballs
import torch

from ssl_retrieval.data import cifar10, grocery, ukbench
from ssl_retrieval.evaluate import score
from ssl_retrieval.extractors import pixels, timm_model
from ssl_retrieval.representation import Representation
from ssl_retrieval.types import Report, Task

pytestmark = pytest.mark.slow

ARCHIVES = Path(__file__).parent.parent.parent / "shared" / "data"
ARCHIVE_OF = {
    "cifar10": "cifar10_jpg.tar.xz",
    "grocery": "grocery_all_192.tar",
    "ukbench": "ukbench1000_240.tar",
}
Unpacked = Callable[[str], Path]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Unpacked:
    folders: dict[str, Path] = {}

    def unpack(name: str) -> Path:
        archive = ARCHIVES / ARCHIVE_OF[name]
        if not archive.exists():
            pytest.skip(f"{archive.name} is not beside the repository (../shared/data)")
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            tarballs.unpack(archive, folders[name])
        inside = folders[name] / name
        return inside if inside.is_dir() else folders[name]

    return unpack


def lite0(pool: str, image_size: int | None = None, crop: float | None = None) -> timm_model.Config:
    return timm_model.Config(
        name="tf_efficientnet_lite0", weights="offline", pool=pool, image_size=image_size, crop=crop
    )


def load(name: str, unpacked: Unpacked) -> Task:
    dataset, _, kind = name.partition("-")
    root = str(unpacked(dataset))
    if dataset == "cifar10":
        return cifar10.load(cifar10.Config(root=root, limit_per_class=200))
    if dataset == "grocery":
        return grocery.load(grocery.Config(root=root, task=kind))
    return ukbench.load(ukbench.Config(root=root))


def report_of(cfg: object, task: Task, cache: Path) -> Report:
    made = Representation.make("tested", cfg, torch.device("cpu"))
    names = ["mAP", "hit_rate@1", *task.metrics]
    return score(made, task, cache=cache, names=names).report


@pytest.mark.parametrize(
    ("name", "cfg", "expected"),
    [
        ("cifar10", pixels.Config(), {"mAP": 0.152, "hit_rate@1": 0.292}),
        ("cifar10", lite0("avg", 96, 1.0), {"mAP": 0.294, "hit_rate@1": 0.569}),
        ("grocery-fine", pixels.Config(), {"mAP": 0.060, "hit_rate@1": 0.116}),
        ("grocery-iconic", pixels.Config(), {"mAP": 0.027, "hit_rate@1": 0.000}),
        # Measured on the full-size originals; on these 192 px copies hit_rate@1 is 0.60 instead of 0.57.
        ("grocery-fine", lite0("avg"), {"mAP": 0.359}),
        ("grocery-iconic", lite0("avg"), {"mAP": 0.231, "hit_rate@1": 0.370}),
        ("ukbench", pixels.Config(), {"mAP": 0.519}),
        ("ukbench", lite0("gem"), {"mAP": 0.988, "ns_score": 3.94}),
    ],
)
def test_scores(
    name: str, cfg: object, expected: dict[str, float], unpacked: Unpacked, tmp_path: Path
) -> None:
    report = report_of(cfg, load(name, unpacked), tmp_path)
    got = {metric: float(np.nanmean(report.per_query[metric])) for metric in expected}
    assert got == pytest.approx(expected, abs=0.02)


def test_ns_score_is_the_same_whether_the_query_is_ranked_or_added(
    unpacked: Unpacked, tmp_path: Path
) -> None:
    root = str(unpacked("ukbench"))
    scores = []
    for rule in ("ignored", "counted"):
        task = ukbench.load(ukbench.Config(root=root, self_match=rule))
        scores.append(report_of(pixels.Config(), task, tmp_path).per_query["ns_score"])
    assert np.mean(scores[0]) == pytest.approx(2.41, abs=0.06)
    assert np.mean(scores[0] == scores[1]) > 0.99
