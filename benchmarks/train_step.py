"""Images per second of SimCLR training end to end: ours against lightly's benchmark loop and our limit.

Run ``python benchmarks/train_step.py [--quick]``. The last line is JSON, ours over the other: higher is
better. Each side trains ResNet-18 on the same files in a process of its own, in turn: on a GPU at 32 px
with the stem for it, on a CPU, which would take minutes, at 64 px with the usual stem.

- ``lightly``: LightlyDataset, its SimCLR transform in a DataLoader, NT-Xent, SGD; fp32, as in its benchmark.
- ``lightly bf16``: the same under autocast.
- ``ours``: ``ssl_retrieval.train.pretrain`` with what it chooses for itself, the monitor off.
- ``limit``: our step on one batch of views that lies on the device: no views are made, nothing is read.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any

import torch
from lightly.data import LightlyDataset
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms.simclr_transform import SimCLRTransform
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from ssl_retrieval import backbones, defaults, feed, memory, optim, precision, run_folder, train
from ssl_retrieval.augment import Output
from ssl_retrieval.config import load
from ssl_retrieval.methods import simclr
from ssl_retrieval.packing import pack
from ssl_retrieval.train_config import PretrainConfig
from ssl_retrieval.train_step import Stepper
from ssl_retrieval.types import ImageSet

SIZES = {"cuda": 32, "cpu": 64}
CONFIG = Path(__file__).parents[1] / "configs" / "pretrain" / "simclr_cifar10.yaml"


def write_images(folder: Path, count: int, size: int) -> None:
    """Write smooth random colour fields as files: plain noise has no neutral pixels."""
    folder.mkdir(parents=True)
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    fine = nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    for number, image in enumerate((fine * 255).to(torch.uint8).permute(0, 2, 3, 1)):
        Image.fromarray(image.numpy()).save(folder / f"{number:05d}.png")


def network(device: torch.device) -> nn.Module:
    """Build what all sides train."""
    return backbones.make("resnet18", stem="small" if SIZES[device.type] == 32 else "standard")


def lightly_rate(folder: Path, batch: int, steps: int, device: torch.device, bf16: bool) -> float:
    """Train as lightly's CIFAR-10 benchmark does."""
    transform = SimCLRTransform(input_size=SIZES[device.type], cj_strength=0.5, gaussian_blur=0.0)
    loader = DataLoader(
        LightlyDataset(str(folder), transform=transform),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=os.cpu_count() or 1,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )
    encoder: Any = network(device)
    encoder.reset_classifier(0)
    model = nn.Sequential(encoder, SimCLRProjectionHead(512, 512, 128)).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4)
    criterion = NTXentLoss()
    done, start = 0, 0.0
    while True:
        for views, *_ in loader:
            first, second = (view.to(device, non_blocking=True) for view in views)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss = criterion(model(first), model(second))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            # The first step starts workers and fills caches.
            if done in (1, steps + 1) and device.type == "cuda":
                torch.cuda.synchronize()
            if done == 1:
                start = time.perf_counter()
            if done == steps + 1:
                return steps * batch / (time.perf_counter() - start)


def settings(folder: Path, out: Path, batch: int, epochs: int, device: torch.device) -> PretrainConfig:
    """Fill the config of a SimCLR run."""
    overrides = {
        "data": "{name: folder, labels: none, root: " + json.dumps(str(folder)) + "}",
        "model.image_size": SIZES[device.type],
        "out": json.dumps(str(out)),
        "batch_size": batch,
        "epochs": epochs,
        "device": device.type,
        "save_every_s": 1e9,
        "log_every": 2,
        "monitor.every_epochs": 0,
        "source": "packed",
        "method.temperature": 0.5,
    }
    return load(PretrainConfig, CONFIG, [f"{key}={value}" for key, value in overrides.items()])


def our_rate(folder: Path, out: Path, batch: int, steps: int, device: torch.device) -> float:
    """Train by the product's own function and read the pace between its log's lines."""
    count = len(list(folder.iterdir()))
    epochs = -(-(steps + 3) // (count // batch))
    train.pretrain(settings(folder, out, batch, epochs, device))
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    # images_per_s counts from the start of training, so the time of a line follows from it.
    seconds = {row["step"]: row["step"] * batch / row["images_per_s"] for row in rows if row["step"] >= 2}
    return statistics.median(
        (b - a) * batch / (seconds[b] - seconds[a]) for a, b in pairwise(sorted(seconds))
    )


def limit_rate(folder: Path, out: Path, batch: int, steps: int, device: torch.device) -> float:
    """Take the product's own steps on one batch of views."""
    memory.keep_freed(device)
    cfg = settings(folder, out, batch, 1, device)
    cfg, _ = defaults.fill(cfg, run_folder.stored_choices(out.parent / "ours") or {})
    paths = tuple(sorted(file.name for file in folder.iterdir()))
    packed = pack(ImageSet(folder, paths), cfg.model.image_size, out / "images.npy", "fail")
    method = simclr.Method(cfg.method, network(device)).to(device)
    optimizer = optim.make(cfg.optimizer, method, batch, device.type)
    made, _ = feed.make(packed, method.views(cfg.model.image_size), 0, device)
    numbers = torch.arange(batch)
    runtime = precision.Runtime(**json.loads((out.parent / "ours" / "runtime.json").read_text()))
    views = next(made.batches([(0, numbers)], Output(memory_format=runtime.layout)))
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    stepper = Stepper(cfg, method, optimizer, scaler, runtime, device)
    endless = repeat(views)
    rates = []
    stepper.run(endless, 0, steps + 1)
    for step in range(steps):
        start = time.perf_counter()
        loss, _ = stepper.run(endless, step, steps + 1)
        float(loss)
        rates.append(batch / (time.perf_counter() - start))
    return statistics.median(rates)


def one(side: str, work: Path, batch: int, steps: int, device: torch.device) -> float:
    """Measure one side in this process."""
    folder, out = work / "images", work / side
    if side == "ours":
        return our_rate(folder, out, batch, steps, device)
    if side == "limit":
        out.mkdir(exist_ok=True)
        return limit_rate(folder, out, batch, steps, device)
    return lightly_rate(folder, batch, steps, device, bf16=side == "lightly bf16")


def main() -> None:
    """Measure all sides in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round, about a minute on two cores")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, help="images per step (default 512 on a GPU, 64 on a CPU)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = torch.device(args.device)
    on_gpu = device.type == "cuda"
    batch = args.batch or (512 if on_gpu else 32 if args.quick else 64)
    steps = args.steps or (60 if on_gpu else 4 if args.quick else 12)
    if args.one:
        print(one(args.one, args.work, batch, steps, device))
        return
    rates: dict[str, list[float]] = {side: [] for side in ("lightly", "lightly bf16", "ours", "limit")}
    for _ in range(1 if args.quick else 3):
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            write_images(work / "images", 8 * batch, SIZES[device.type])
            for side, found in rates.items():
                command = [sys.executable, __file__, "--one", side, "--work", folder]
                command += ["--device", device.type, "--batch", str(batch), "--steps", str(steps)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found.append(float(done.stdout.split()[-1]))
    middle: dict[str, Any] = {side: statistics.median(found) for side, found in rates.items()}
    ratios = {side: round(middle["ours"] / rate, 2) for side, rate in middle.items() if side != "ours"}
    print(f"ResNet-18, {SIZES[device.type]} px, batch {batch}, {device}")
    for side, rate in middle.items():
        print(
            f"{side:>14} {rate:>9.1f} images/s" + (f"   ours / it {ratios[side]}" if side in ratios else "")
        )
    print(json.dumps({"ratios": ratios}))


if __name__ == "__main__":
    main()
