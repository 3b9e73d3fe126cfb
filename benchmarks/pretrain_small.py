"""Every method on the same small budget: 10,000 CIFAR-10 images, a small network, a few CPU minutes each.

Run ``python benchmarks/pretrain_small.py --data DIR --out DIR [--methods simclr byol …]``, where ``--data``
holds ``train/<class>/*`` and ``test/<class>/*``. Finished runs are kept, and a killed one goes on. The table
goes to ``OUT/pretrain_small.md``; the last line is JSON: each method's mAP over that of its own network's
random start.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ssl_retrieval import config, plugins
from ssl_retrieval.checkpoint import read_card
from ssl_retrieval.evaluate import ProtocolOptions, load_task, score
from ssl_retrieval.representation import Representation
from ssl_retrieval.statistics import bootstrap_mean, paired_test
from ssl_retrieval.train import PretrainConfig, pretrain
from ssl_retrieval.types import Report, Task

CNN: dict[str, Any] = {"name": "resnet10t", "image_size": 48}
VIT: dict[str, Any] = {"name": "test_vit", "image_size": 48, "patch_size": 6}
"""48 px under the standard stem: a sixth of the computation of the small stem at 32 px."""

BASE: dict[str, Any] = {
    "data": {"name": "cifar10", "limit_per_class": 1000},
    "pack_size": 32,
    "optimizer": {"name": "adamw", "lr": 3e-3, "weight_decay": 1e-4, "warmup": 0.1},
    "epochs": 6,
    "batch_size": 256,
    "monitor": {"every_epochs": 3, "max_images": 500},
}
"""One recipe for all; what a method needs otherwise on so few steps stands in `SETTINGS`."""

VIEW: dict[str, Any] = {"crop_min": 0.2, "blur": 0.0, "solarize": 0.0, "interpolation": "bilinear"}
BOTH = {"augment": VIEW, "augment_2": VIEW}
TEACHER = {"momentum": 0.97}
"""A few hundred steps need a teacher that follows soon."""

SETTINGS: dict[str, dict[str, Any]] = {
    "barlow_twins": {"method": BOTH},
    "byol": {"method": BOTH | TEACHER},
    "dcl": {"method": {"augment": VIEW}},
    "dino": {"method": BOTH | TEACHER, "optimizer": {"lr": 1e-3}},
    "ibot": {
        "model": VIT,
        # Thousands of masked patches go through the head: at its full width that is half an hour of CPU.
        "method": {"hidden_dim": 256, "output_dim": 512} | BOTH | TEACHER,
        "optimizer": {"lr": 1e-3, "weight_decay": 0.04},
    },
    "lejepa": {"method": {"augment": VIEW}},
    "mae": {"model": VIT, "optimizer": {"lr": 1e-3, "weight_decay": 0.05}},
    "moco_v2": {"method": {"augment": VIEW, "symmetric": True} | TEACHER},
    "moco_v3": {"method": {"temperature": 0.2} | BOTH | TEACHER},
    "simclr": {"method": {"temperature": 0.2, "augment": VIEW}},
    "simsiam": {"method": {"augment": VIEW}, "optimizer": {"lr": 1e-3}},
    "swav": {"method": {"augment": VIEW}, "optimizer": {"lr": 1e-3}},
    "vicreg": {"method": {"augment": VIEW}, "optimizer": {"lr": 1e-3}},
    "visreg": {"method": {"augment": VIEW}},
}

FLOORS = {"resnet10t": CNN, "test_vit": VIT}


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    name: str
    network: str
    minutes: float | None
    report: Report
    floor: Report | None


def job_of(name: str, data: Path, out: Path) -> PretrainConfig:
    """Put a method's job together."""
    special = SETTINGS.get(name, {})
    job = BASE | {"out": str(out / name), "model": special.get("model", CNN)}
    job["optimizer"] = BASE["optimizer"] | special.get("optimizer", {})
    job["data"] = BASE["data"] | {"root": str(data)}
    job["method"] = {"name": name} | special.get("method", {})
    return config.build(PretrainConfig, job)


def evaluated(label: str, section: dict[str, Any], task: Task, out: Path) -> Report:
    """Search with one representation."""
    cfg = config.plugin_config("extractor", section, "model")
    representation = Representation.make(label, cfg, torch.device("cpu"))
    return score(representation, task, cache=out / "embeddings").report


def table(rows: list[Row]) -> str:
    """Write the rows as markdown, best mAP first."""
    lines = [
        "| method | network | mAP [95 %] | hit_rate@1 | knn@20 | gain over random start [95 %] | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: -bootstrap_mean(row.report.per_query["mAP"]).mean):
        values = row.report.per_query
        precision = bootstrap_mean(values["mAP"])
        cells = [
            row.name,
            row.network,
            f"{precision.mean:.3f} [{precision.low:.3f}–{precision.high:.3f}]",
            f"{values['hit_rate@1'].mean():.3f}",
            f"{values['knn@20'].mean():.3f}",
        ]
        if row.floor is None or row.minutes is None:
            cells += ["", ""]
        else:
            gain = paired_test(values["mAP"], row.floor.per_query["mAP"])
            cells += [f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]", f"{row.minutes:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train, search, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10 as images")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and the table")
    parser.add_argument("--methods", nargs="*", default=plugins.known("method"))
    args = parser.parse_args()
    data = {"name": "cifar10", "root": str(args.data), "mode": "test_to_train", "limit_per_class": 1000}
    task = load_task(config.plugin_config("dataset", data, "data"), ProtocolOptions())
    floors = {
        name: evaluated(f"random {name}", {**model, "weights": "random", "crop": 1.0}, task, args.out)
        for name, model in FLOORS.items()
    }
    rows = [Row("random start", name, None, report, None) for name, report in floors.items()]
    rows.append(Row("pixels", "", None, evaluated("pixels", {"name": "pixels"}, task, args.out), None))
    for name in args.methods:
        job = job_of(name, args.data, args.out)
        file = pretrain(job)
        report = evaluated(name, {"name": "checkpoint", "path": str(file)}, task, args.out)
        network = job.model.name
        rows.append(Row(name, network, read_card(file).train_s / 60, report, floors[network]))
        (args.out / "pretrain_small.md").write_text(table(rows))
        print(table(rows), flush=True)
    ratios = {
        row.name: round(row.report.per_query["mAP"].mean() / row.floor.per_query["mAP"].mean(), 3)
        for row in rows
        if row.floor is not None
    }
    print(json.dumps({"ratios": ratios}))


if __name__ == "__main__":
    main()
