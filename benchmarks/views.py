"""Views per second: ours, made in batches on the device, against lightly's SimCLR transform in a DataLoader.

Run ``python benchmarks/views.py [--quick]``. The last line is JSON, ours over lightly's: higher is better.
Both make the full SimCLR recipe (crop, flip, colour jitter with hue, grayscale; blur at 96 and 224 px, none
at 32 px as the paper has it for CIFAR) from decoded images in memory, so that neither reads files.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from lightly.transforms.simclr_transform import SimCLRTransform
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssl_retrieval import memory
from ssl_retrieval.augment import Augment, Output, View, make_views

BATCH = {32: 512, 96: 256, 224: 64}
"""Images per batch, two views each."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Pictures(Dataset[list[Tensor]]):
    """Decoded images that go through a transform of lightly's."""

    def __init__(self, pixels: Tensor, transform: Callable[[Image.Image], Any], count: int) -> None:
        """Take uint8 [N, H, W, 3]."""
        self.images = [Image.fromarray(image.numpy()) for image in pixels]
        self.transform, self.count = transform, count

    def __len__(self) -> int:
        """Count the items, as many as the clock may need."""
        return self.count

    def __getitem__(self, number: int) -> list[Tensor]:
        """Make both views."""
        return self.transform(self.images[number % len(self.images)])


def photos(count: int, size: int) -> Tensor:
    """Draw smooth random colour fields, uint8 [count, size, size, 3]: plain noise has no neutral pixels."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
    return (fine * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def lightly_rate(size: int, seconds: float) -> float:
    """Count lightly's views per second with a worker per core, after the workers have started."""
    jitter = 0.5 if size == 32 else 1.0
    transform = SimCLRTransform(input_size=size, cj_strength=jitter, gaussian_blur=0.0 if size == 32 else 0.5)
    batch = BATCH[size] // 4
    loader = DataLoader(
        Pictures(photos(batch, size), transform, 10_000_000 // size),
        batch_size=batch,
        num_workers=os.cpu_count() or 1,
        pin_memory=torch.cuda.is_available(),
    )
    batches = iter(loader)
    next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        views = next(batches)
        count += len(views) * batch
    return count / (time.perf_counter() - start)


def our_rate(size: int, seconds: float, device: torch.device, compiled: bool) -> float:
    """Count our views per second, compilation apart."""
    width = 0.4 if size == 32 else 0.8
    augment = Augment(
        brightness=width,
        contrast=width,
        saturation=width,
        hue=0.1 if size == 32 else 0.2,
        blur=0.0 if size == 32 else 0.5,
    )
    images = photos(BATCH[size], size).to(device).permute(0, 3, 1, 2)
    samples = torch.arange(BATCH[size], device=device)
    output = Output(MEAN, STD, compiled=compiled)

    def make(step: int) -> None:
        make_views(images, [View(augment, size)] * 2, seed=0, step=step, samples=samples, output=output)
        if device.type == "cuda":
            torch.cuda.synchronize()

    for step in range(3 if compiled else 1):
        make(step)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        make(count)
        count += 2 * BATCH[size]
    return count / (time.perf_counter() - start)


def main() -> None:
    """Measure both sides in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round, within a minute on two cores")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    memory.keep_freed(device)
    seconds, rounds = (0.8, 1) if args.quick else (5.0, 3)
    ratios = {}
    print(f"{'size':>6} {'lightly':>10} {'ours, plain':>12} {'ours':>10} {'ratio':>6}   views/s, {device}")
    for size in BATCH:
        rates: dict[str, list[float]] = {"lightly": [], "plain": [], "ours": []}
        for _ in range(rounds):
            rates["lightly"].append(lightly_rate(size, seconds))
            if not args.quick:
                rates["plain"].append(our_rate(size, seconds / 2, device, compiled=False))
            rates["ours"].append(our_rate(size, seconds, device, compiled=True))
        middle = {side: statistics.median(found) for side, found in rates.items() if found}
        plain = f"{middle['plain']:.0f}" if rates["plain"] else "–"
        ratios[f"{size}px"] = round(middle["ours"] / middle["lightly"], 2)
        print(
            f"{size:>4}px {middle['lightly']:>10.0f} {plain:>12} {middle['ours']:>10.0f} "
            f"{ratios[f'{size}px']:>6.1f}",
            flush=True,
        )
    print(json.dumps({"ratios": ratios}))


if __name__ == "__main__":
    main()
