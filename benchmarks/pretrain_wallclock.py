"""Time to the published kNN accuracy on CIFAR-10: ResNet-18, 200 epochs, batch 512, by one command on a GPU.

Run ``python benchmarks/pretrain_wallclock.py --data DIR --out DIR [--methods simclr byol dino] [--quick]``.
The configs are those of ``configs/pretrain``; kNN is lightly's (k = 200, temperature 0.1, test images in
training images). The last line is JSON: lightly's published minutes over ours, or 0 where its accuracy is
not reached. A run that was stopped goes on.

``--profile`` instead takes some steps of the first method and prints where their time goes, and the network's
arithmetic per second against what a large bf16 matrix product reaches on the same device.

``--quick`` trains 1,000 images for two epochs: it shows that everything runs, no more.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ssl_retrieval import checkpoint, config, devices, feed, memory, metrics_knn, optim, plugins, precision
from ssl_retrieval.augment import Output
from ssl_retrieval.evaluate import ProtocolOptions, load_task, score
from ssl_retrieval.representation import Representation
from ssl_retrieval.search import top_k
from ssl_retrieval.train import pretrain
from ssl_retrieval.train_config import PretrainConfig
from ssl_retrieval.train_images import open_images
from ssl_retrieval.train_setup import build_backbone, settle
from ssl_retrieval.train_step import Stepper

CONFIGS = Path(__file__).parents[1] / "configs" / "pretrain"
PUBLISHED = {"simclr": (84.8, 87.0), "byol": (86.8, 108.0), "dino": (84.0, 120.0)}
"""kNN accuracy in percent and minutes (one A6000) in lightly's table of CIFAR-10 benchmarks."""


def job_of(method: str, args: argparse.Namespace) -> PretrainConfig:
    """Read a method's CIFAR config and point it at the data."""
    overrides = [f"data.root={args.data}", f"out={args.out / method}", f"device={args.device}"]
    overrides += ["monitor.every_epochs=0", "save_every_s=120"]
    if args.quick:
        overrides += ["epochs=2", "batch_size=64", "data.limit_per_class=100", "model.name=resnet10t"]
    return config.load(PretrainConfig, CONFIGS / f"{method}_cifar10.yaml", overrides)


def knn(file: Path, args: argparse.Namespace) -> float:
    """Classify the test images by their neighbours among the training images; percent."""
    limit = {"limit_per_class": 100} if args.quick else {}
    data = {"name": "cifar10", "root": str(args.data), "mode": "test_to_train"} | limit
    task = load_task(config.plugin_config("dataset", data, "data"), ProtocolOptions())
    section = config.plugin_config("extractor", {"name": "checkpoint", "path": str(file)}, "model")
    representation = Representation.make(file.parent.name, section, devices.pick(args.device))
    result = score(representation, task, cache=args.out / "embeddings")
    ranking = top_k(result.similarity, None, min(200, len(task.gallery)), device=args.device)
    assert task.queries.labels is not None
    assert task.gallery.labels is not None
    votes = metrics_knn.knn_accuracy(
        ranking, task.queries.labels, task.gallery.labels, k=200, temperature=0.1
    )
    return 100 * float(votes.mean())


def steps_under_the_profiler(method: str, args: argparse.Namespace) -> None:
    """Print what the step's time goes into, and its arithmetic per second."""
    device = devices.pick(args.device)
    memory.keep_freed(device)
    cfg, out = job_of(method, args), args.out / "profile"
    out.mkdir(parents=True, exist_ok=True)
    source, _ = open_images(cfg, out)
    module = plugins.find("method", method)
    backbone, _ = build_backbone(cfg, module)
    cfg = settle(cfg, module, len(source.paths), backbone, out)
    made = module.Method(cfg.method, backbone).to(device)
    runtime = precision.without_trial(cfg.precision, cfg.memory_format, device)
    images, _ = feed.make(source, made.views(cfg.model.image_size), cfg.seed, device)
    optimizer = optim.make(cfg.optimizer, made, cfg.batch_size, device.type)
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    stepper = Stepper(cfg, made, optimizer, scaler, runtime, device)
    total = 4 if args.quick else 60
    requests = ((step, torch.arange(cfg.batch_size)) for step in range(4 * total))
    compiled = device.type == "cuda"
    views = images.batches(requests, Output(memory_format=runtime.layout, compiled=compiled))

    def take(count: int) -> float:
        start = time.perf_counter()
        for step in range(count):
            loss, _ = stepper.run(views, step, total)
        float(loss)
        return (time.perf_counter() - start) / count

    take(2)
    with FlopCounterMode(display=False) as counter:
        take(1)
    seconds = take(total)
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if compiled else [])
    with profile(activities=kinds) as found:
        take(min(total, 10))
    order = "self_cuda_time_total" if compiled else "self_cpu_time_total"
    print(found.key_averages().table(sort_by=order, row_limit=15, max_name_column_width=50))
    rate, ceiling = counter.get_total_flops() / seconds, matmul_rate(device)
    print(
        f"{cfg.batch_size / seconds:.0f} images/s; {rate / 1e12:.2f} TFLOP/s in the network, "
        f"{100 * rate / ceiling:.0f} % of the {ceiling / 1e12:.2f} that a bf16 matrix product reaches"
    )


def matmul_rate(device: torch.device) -> float:
    """Measure the device's bf16 ceiling in FLOP/s by a large square product."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        float((a @ b)[0, 0])
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def main() -> None:
    """Train, classify, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10 as images")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--methods", nargs="*", default=list(PUBLISHED), choices=list(PUBLISHED))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.profile:
        steps_under_the_profiler(args.methods[0], args)
        return
    found: dict[str, Any] = {}
    ratios = {}
    for method in args.methods:
        file = pretrain(job_of(method, args))
        minutes, accuracy = checkpoint.read_card(file).train_s / 60, knn(file, args)
        their_accuracy, their_minutes = PUBLISHED[method]
        print(f"{method}: kNN {accuracy:.1f} % after {minutes:.1f} min; published {their_accuracy} %")
        found[method] = {"knn": round(accuracy, 2), "minutes": round(minutes, 2)}
        # Being fast at less than the published accuracy is worth nothing.
        ratios[method] = round(their_minutes / minutes, 2) if accuracy >= their_accuracy else 0.0
    print(json.dumps({"ratios": ratios, "found": found}))


if __name__ == "__main__":
    main()
