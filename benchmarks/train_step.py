"""Images per second of SimCLR training end to end: ours against lightly's benchmark loop and our limit.

Run ``python benchmarks/train_step.py [--quick]``. The last line is JSON, ours over the other: higher is
better. Each side trains ResNet-18 on the same files: on a GPU at 32 px with the stem for it, on a CPU, which
would take minutes, at 64 px with the usual stem.

- ``lightly``: LightlyDataset, its SimCLR transform in a DataLoader, NT-Xent, SGD; fp32, as in its benchmark.
- ``lightly bf16``: the same under autocast.
- ``ours``: ``ssl_retrieval.train.pretrain`` with what it chooses for itself, the monitor off.
- ``limit``: our step on one batch of views that lies on the device: no views are made, nothing is read.

Every side stays in a process of its own, since our allocator settings must not help the others, and waits
while another one works. They take turns in rounds, after one that is not counted; in each, ours stands
between two measurements of the limit. A rate is the mean over all steps but the first, a ratio the median
over the rounds of ours over what was measured beside it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import chain, count, repeat
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

from ssl_retrieval import backbones, defaults, feed, optim, precision, run_folder, train
from ssl_retrieval.augment import Output
from ssl_retrieval.config import load
from ssl_retrieval.methods import simclr
from ssl_retrieval.packed import open_pack
from ssl_retrieval.train_config import PretrainConfig
from ssl_retrieval.train_step import Stepper

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


def lightly_rounds(folder: Path, batch: int, steps: int, device: torch.device, bf16: bool) -> Iterator[float]:
    """Train as lightly's CIFAR-10 benchmark does; give images/s of some steps whenever asked."""
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
    while True:
        for done, (views, *_) in enumerate(chain.from_iterable(repeat(loader))):
            first, second = (view.to(device, non_blocking=True) for view in views)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss = criterion(model(first), model(second))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if done in (0, steps):
                float(loss.detach())
            if done == 0:
                # The first batch of a round had to wait for the workers.
                start = time.perf_counter()
            if done == steps:
                yield steps * batch / (time.perf_counter() - start)
                break


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
        "log_every": 1 if device.type == "cpu" else 10,
        "monitor.every_epochs": 0,
        "source": "packed",
        "method.temperature": 0.5,
    }
    return load(PretrainConfig, CONFIG, [f"{key}={value}" for key, value in overrides.items()])


def our_rate(folder: Path, out: Path, batch: int, steps: int, device: torch.device) -> float:
    """Train by the product's own function and read the pace from its log; the first run chooses how."""
    num_images, first = len(list(folder.iterdir())), out.parent / "first"
    epochs = -(-(steps + 1) // (num_images // batch))
    cfg = settings(folder, out, batch, epochs, device)
    if (first / run_folder.RUNTIME).is_file():
        chosen = runtime_of(first)
        cfg.precision, cfg.memory_format = chosen.precision, chosen.memory_format
    train.pretrain(cfg)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    # images_per_s counts from the start of training, so the time of a line follows from it.
    steps_done, seconds = zip(
        *((r["step"], r["step"] * batch / r["images_per_s"]) for r in rows), strict=True
    )
    return (steps_done[-1] - steps_done[0]) * batch / (seconds[-1] - seconds[0])


def our_rounds(folder: Path, work: Path, batch: int, steps: int, device: torch.device) -> Iterator[float]:
    """Give images/s of one run after the other."""
    for number in count():
        yield our_rate(folder, work / ("first" if number == 0 else f"run{number}"), batch, steps, device)


def runtime_of(out: Path) -> precision.Runtime:
    """Read what a run has chosen."""
    return precision.Runtime(**json.loads((out / run_folder.RUNTIME).read_text()))


def limit_rounds(folder: Path, work: Path, batch: int, steps: int, device: torch.device) -> Iterator[float]:
    """Take the product's own steps on one batch of views, as the first run takes them."""
    cfg = settings(folder, work / "limit", batch, 1, device)
    cfg, _ = defaults.fill(cfg, run_folder.stored_choices(work / "first") or {})
    packed = open_pack(work / "first" / run_folder.IMAGES)
    method = simclr.Method(cfg.method, network(device)).to(device)
    optimizer = optim.make(cfg.optimizer, method, batch, device.type)
    made, _ = feed.make(packed, method.views(cfg.model.image_size), 0, device)
    runtime = runtime_of(work / "first")
    views = next(made.batches([(0, torch.arange(batch))], Output(memory_format=runtime.layout)))
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    stepper = Stepper(cfg, method, optimizer, scaler, runtime, device)
    endless = repeat(views)
    while True:
        for done in range(steps + 1):
            loss, _ = stepper.run(endless, done, steps + 1)
            if done in (0, steps) or device.type == "cpu":
                float(loss)
            if done == 0:
                start = time.perf_counter()
        yield steps * batch / (time.perf_counter() - start)


def serve(side: str, work: Path, batch: int, steps: int, device: torch.device) -> None:
    """Print a rate for each line read: that of the side, or, of ours, also that of the limit."""
    folder = work / "images"
    if side == "ours":
        rounds = {
            "ours": our_rounds(folder, work, batch, 2 * steps, device),
            "limit": limit_rounds(folder, work, batch, steps, device),
        }
    else:
        rounds = {side: lightly_rounds(folder, batch, steps, device, bf16=side == "lightly bf16")}
    for line in sys.stdin:
        print(next(rounds[line.strip()]), flush=True)


class Side:
    """A process that measures when it is told to."""

    def __init__(self, side: str, arguments: Sequence[str]) -> None:
        """Start it."""
        command = [sys.executable, __file__, "--one", side, *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def measure(self, what: str) -> float:
        """Give images/s of one round."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(what, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {what} ended: {self.process.wait()}")
        return float(line)

    def end(self) -> None:
        """Let it go."""
        self.process.terminate()
        self.process.wait()


TURNS = ("lightly", "lightly bf16", "limit", "ours", "limit")
"""What a round measures."""


def measure(work: Path, arguments: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Let the sides take turns; give images/s by side, of the limit twice as many."""
    ours = Side("ours", arguments)
    processes = {"ours": ours, "limit": ours}
    processes |= {side: Side(side, arguments) for side in ("lightly", "lightly bf16")}
    try:
        # Not counted: everything is slow at first, and our first run tries out how to compute.
        for side in ("ours", "limit", "lightly", "lightly bf16"):
            processes[side].measure(side)
        rates: dict[str, list[float]] = {side: [] for side in TURNS}
        for _ in range(rounds):
            for side in TURNS:
                rates[side].append(processes[side].measure(side))
        return rates
    finally:
        for process in processes.values():
            process.end()


def ratios_of(rates: dict[str, list[float]]) -> dict[str, float]:
    """Compare ours with what was measured in the same round; the median of the rounds.

    Args:
        rates: Images/s by side in the order measured: of ``limit`` two to a round, before and after ours.
    """
    limits = rates["limit"]
    beside = rates | {"limit": [(a + b) / 2 for a, b in zip(limits[::2], limits[1::2], strict=True)]}
    return {
        side: round(statistics.median(o / t for o, t in zip(rates["ours"], theirs, strict=True)), 2)
        for side, theirs in beside.items()
        if side != "ours"
    }


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
        serve(args.one, args.work, batch, steps, device)
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        # As many steps an epoch as a round of ours has on a CPU; lightly's workers then never run dry.
        write_images(work / "images", (2 * steps + 1 if not on_gpu else 16) * batch, SIZES[device.type])
        arguments = ["--work", folder, "--device", device.type, "--batch", str(batch), "--steps", str(steps)]
        rates = measure(work, arguments, 3 if args.quick else 7)
    ratios = ratios_of(rates)
    print(f"ResNet-18, {SIZES[device.type]} px, batch {batch}, {device}; median of the rounds (all of them)")
    for side, found in rates.items():
        ratio = f"ours / it {ratios[side]:.2f}" if side in ratios else ""
        each = ", ".join(f"{rate:.1f}" for rate in found)
        print(f"{side:>14} {statistics.median(found):>9.1f} images/s   {ratio:>14}   ({each})")
    print(json.dumps({"ratios": ratios}))


if __name__ == "__main__":
    main()
