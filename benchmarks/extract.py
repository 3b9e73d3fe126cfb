"""Embedding of JPEG files: ours, a plain timm + DataLoader loop, and the network alone on one batch.

Run ``python benchmarks/extract.py``; the last line is JSON, ours over the other, higher is better. ``limit``
is ours over timm's network alone (normalised pixels in memory, channels last, the same precision, threads and
allocator), ``own_limit`` ours over the network as `embed` runs it, with batch normalisation folded.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch.utils.data import DataLoader, Dataset

from ssl_retrieval import backbones, devices, images, precision
from ssl_retrieval.embed import EmbedOptions, embed
from ssl_retrieval.extractors import timm_model
from ssl_retrieval.representation import Representation
from ssl_retrieval.types import ImageSet

SIZE = (320, 240)
"""Width and height of the made-up photos, as in UKBench at half size."""

DISTINCT = 64

REPEATS = 3


def made_up_photo(seed: int) -> bytes:
    """Draw a JPEG of about 20 kB: noise on all scales, the coarser the stronger, as photos have it."""
    draw = np.random.default_rng(seed)
    values = np.full((SIZE[1], SIZE[0], 3), 128.0)
    for octave in range(7):
        noise = Image.fromarray(draw.integers(0, 256, (3 << octave, 4 << octave, 3), dtype=np.uint8))
        values += (np.asarray(noise.resize(SIZE, Image.Resampling.BICUBIC), float) - 128) * 0.7**octave / 2
    file = BytesIO()
    Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_photos(folder: Path, count: int) -> None:
    """Write ``count`` files of `DISTINCT` contents."""
    contents = [made_up_photo(seed) for seed in range(DISTINCT)]
    for number in range(count):
        (folder / f"{number:06d}.jpg").write_bytes(contents[number % DISTINCT])


class Photos(Dataset):
    """What a tutorial would write: open, convert, transform."""

    def __init__(self, image_set: ImageSet, transform: object) -> None:
        """Keep the files and timm's transform."""
        self.image_set, self.transform = image_set, transform

    def __len__(self) -> int:
        """Count the files."""
        return len(self.image_set)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Load one."""
        assert callable(self.transform)
        with Image.open(self.image_set.file(index)) as image:
            tensor: torch.Tensor = self.transform(image.convert("RGB"))
        return tensor


def plain(args: argparse.Namespace, image_set: ImageSet) -> float:
    """Give images/s of the plain loop: timm's transform, fp32, contiguous, a worker per core."""
    device = devices.pick(args.device)
    model = backbones.make(args.network, args.weights).to(device)
    data = resolve_model_data_config(model)
    transform = create_transform(**data, is_training=False)
    loader = DataLoader(
        Photos(image_set, transform),
        batch_size=args.batch,
        num_workers=os.cpu_count() or 1,
        pin_memory=device.type == "cuda",
    )
    with torch.inference_mode():
        model(torch.zeros(args.batch, 3, *data["input_size"][1:], device=device))
        start = time.perf_counter()
        vectors = torch.cat([model(batch.to(device)).cpu() for batch in loader])
        seconds = time.perf_counter() - start
    assert len(vectors) == len(image_set)
    return len(image_set) / seconds


def ours(args: argparse.Namespace, image_set: ImageSet) -> dict[str, list[float]]:
    """Give images/s of `embed` and, before and after each of its runs, of the networks alone."""
    cfg = timm_model.Config(name=args.network, weights=args.weights)
    representation = Representation.make(args.network, cfg, devices.pick(args.device))
    options = EmbedOptions(batch_size=args.batch, precision=args.precision)
    photos = [
        representation.extractor.preprocess_spec(images.load_image(image_set.file(i)))
        for i in range(min(args.batch, len(image_set)))
    ]
    batch = torch.stack([photos[i % len(photos)] for i in range(args.batch)])
    batch = batch.to(representation.device, memory_format=torch.channels_last)
    network = backbones.make(args.network, args.weights).to(representation.device)
    bare = dataclasses.replace(representation, extractor=network.to(memory_format=torch.channels_last))
    normalized = representation.extractor.normalize(batch)
    rates: dict[str, list[float]] = {"embed": [], "bare": [], "folded": []}

    def alone() -> None:
        rates["bare"].append(network_alone(bare, normalized, args))
        rates["folded"].append(network_alone(representation, batch, args))

    with tempfile.TemporaryDirectory() as folder:
        few = image_set.take(np.arange(len(photos)))
        embed(representation, few, Path(folder) / "warm", options=options)
        alone()
        for repeat in range(REPEATS):
            start = time.perf_counter()
            embed(representation, image_set, Path(folder) / str(repeat), options=options)
            rates["embed"].append(len(image_set) / (time.perf_counter() - start))
            alone()
    return rates


def network_alone(representation: Representation, batch: torch.Tensor, args: argparse.Namespace) -> float:
    """Give images/s on one batch that is on the device, normalised and laid out."""
    runtime = precision.without_trial(args.precision, "channels_last", representation.device)
    representation.embed_batch(batch, runtime)
    wait(representation.device)
    start, passes = time.perf_counter(), 0
    while time.perf_counter() - start < (0.8 if args.quick else 3.0):
        # A GPU is given some passes at a time, so that it is never waited for within them.
        for _ in range(1 if representation.device.type == "cpu" else 20):
            representation.embed_batch(batch, runtime)
            passes += 1
        wait(representation.device)
    return passes * len(batch) / (time.perf_counter() - start)


def wait(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def of_limit(embedded: list[float], alone: list[float]) -> float:
    """Compare each run with the mean of its two neighbours, since other programs come and go; the median."""
    pairs = zip(embedded, alone, alone[1:], strict=False)
    return statistics.median(2 * rate / (before + after) for rate, before, after in pairs)


def main() -> None:
    """Measure the sides in turn, each in a process of its own: our allocator settings must not leak."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--images", type=Path, help="folder of real photos; by default some are made up")
    parser.add_argument("--count", type=int, help="how many of them to embed")
    parser.add_argument("--network", default="tf_efficientnet_lite0", help="timm name")
    parser.add_argument("--weights", default="offline", help="as model.weights")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="fp32", help="of our side; the plain loop has fp32")
    parser.add_argument("--one", choices=("plain", "ours"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = devices.pick(args.device)
    count = args.count or (320 if args.quick else 1600) * (1 if device.type == "cpu" else 16)
    if args.one:
        image_set = ImageSet(args.images, tuple(images.list_images(args.images)[:count]))
        some = image_set.take(np.arange(min(len(image_set), 128))) if args.quick else image_set
        rates = plain(args, some) if args.one == "plain" else ours(args, image_set)
        print(json.dumps(rates))
        return
    print(f"{args.network} on {device}, {os.cpu_count()} cores, {count} JPEG files; images/s (median):")
    with tempfile.TemporaryDirectory() as folder:
        if args.images is None:
            args.images = Path(folder)
            write_photos(args.images, count)
        compare([sys.executable, *sys.argv, "--images", str(args.images)], 1 if args.quick else 3)


def compare(command: list[str], rounds: int) -> None:
    """Run both processes in turn; print the table and the ratios."""
    sides: dict[str, list[float]] = {"plain": [], "embed": [], "bare": [], "folded": []}
    limits: dict[str, list[float]] = {"bare": [], "folded": []}
    for _ in range(rounds):
        sides["plain"].append(measured([*command, "--one", "plain"]))
        rates = measured([*command, "--one", "ours"])
        for name, values in rates.items():
            sides[name] += values
        for name, values in limits.items():
            values.append(of_limit(rates["embed"], rates[name]))
    names = {
        "plain": "timm + DataLoader loop",
        "embed": "embed",
        "bare": "timm's network alone",
        "folded": "the same, folded",
    }
    median = {side: statistics.median(values) for side, values in sides.items()}
    for side, name in names.items():
        print(f"  {name:24s}{median[side]:8.1f}")
    ratios = {
        "plain": round(median["embed"] / median["plain"], 2),
        "limit": round(statistics.median(limits["bare"]), 3),
        "own_limit": round(statistics.median(limits["folded"]), 3),
    }
    print(json.dumps({"ratios": ratios}))


def measured(command: list[str]) -> Any:
    """Run one side and read what it prints."""
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


if __name__ == "__main__":
    main()
