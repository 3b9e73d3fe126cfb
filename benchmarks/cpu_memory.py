"""What `ssl_retrieval.memory.keep_freed` is worth: the same network with and without it, in turn.

Run ``python benchmarks/cpu_memory.py``; the last line is JSON, ours over the default, higher is better.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch

from ssl_retrieval import backbones
from ssl_retrieval.memory import keep_freed

NETWORK, BATCH = "tf_efficientnet_lite0", 32


def images_per_s(keep: bool, image_size: int, seconds: float) -> float:
    """Time forward passes in this process, whose allocator the choice changes for good."""
    if keep and not keep_freed(torch.device("cpu")):
        raise SystemExit("this system's allocator has no such choice")
    model = backbones.make(NETWORK).to(memory_format=torch.channels_last)
    batch = torch.zeros(BATCH, 3, image_size, image_size).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        model(batch)
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            model(batch)
            count += BATCH
        return count / (time.perf_counter() - start)


def main() -> None:
    """Measure both sides in turn, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--one", choices=("keep", "default"), help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, default=224, help=argparse.SUPPRESS)
    args = parser.parse_args()
    seconds = 2.0 if args.quick else 4.0
    if args.one:
        print(images_per_s(args.one == "keep", args.size, seconds))
        return
    ratios = {}
    for size in (96, 224):
        rates: dict[str, list[float]] = {"keep": [], "default": []}
        for _ in range(1 if args.quick else 3):
            for side, found in rates.items():
                command = [sys.executable, __file__, "--one", side, "--size", str(size)]
                command += ["--quick"] if args.quick else []
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found.append(float(done.stdout))
        ours, theirs = (statistics.median(rates[side]) for side in ("keep", "default"))
        print(f"{NETWORK} at {size} px: {ours:.0f} images/s kept, {theirs:.0f} by default")
        ratios[f"{size}px"] = round(ours / theirs, 2)
    print(json.dumps({"ratios": ratios}))


if __name__ == "__main__":
    main()
