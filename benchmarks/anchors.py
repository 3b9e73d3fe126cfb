"""What anchors cost per step of SimCLR: seconds of processor time, each beside the free step.

Run ``python benchmarks/anchors.py [--steps 5] [--batch 96]``. The network is the one of
``configs/pretrain/simclr_grocery.yaml``, at its size and with its frozen stages; views are random numbers,
since anchors do not make any. Variants take turns, so that whatever else the machine does slows down a step
of each; the median step is shown, and its ratio to the free one.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ssl_retrieval import adapters, backbones, defaults, ema
from ssl_retrieval.anchor import AnchorConfig, Anchored
from ssl_retrieval.config import load
from ssl_retrieval.methods import simclr
from ssl_retrieval.train_config import PretrainConfig

CONFIG = Path(__file__).parents[1] / "configs" / "pretrain" / "simclr_grocery.yaml"

VARIANTS: dict[str, tuple[AnchorConfig, str]] = {
    "free": (AnchorConfig(), "none"),
    "anchor.similarity": (AnchorConfig(similarity=1.0), "none"),
    "anchor.feature": (AnchorConfig(feature=1.0), "none"),
    "anchor.weights": (AnchorConfig(weights=1.0), "none"),
    "model.adapter=lora": (AnchorConfig(), "lora"),
}


def stepper(cfg: PretrainConfig, anchor: AnchorConfig, adapter: str) -> Callable[[list[Tensor]], None]:
    """Give forward and backward of one variant."""
    model = cfg.model
    backbone = backbones.make(model.name, model.weights, image_size=model.image_size)
    backbones.freeze(backbone, model.freeze)
    start = ema.copy_of(backbone)
    adapters.add(backbone, adapter, model.adapter_rank)
    method = simclr.Method(
        defaults.fill_method(simclr, cfg.method, defaults.Facts(pretrained=True)), backbone
    )
    method.to(memory_format=torch.channels_last)
    module: nn.Module = method
    if anchor.has_loss:
        module = Anchored(method, start.to(memory_format=torch.channels_last), anchor, model.image_size)

    def step(views: list[Tensor]) -> None:
        method.zero_grad(set_to_none=True)
        method.set_mode(model.batchnorm)
        module(views, 0.0)[0].backward()

    return step


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5, help="counted steps of each, after one that is not")
    parser.add_argument("--batch", type=int, default=96)
    options = parser.parse_args()
    cfg = load(PretrainConfig, CONFIG, ["data.root=unused", "out=unused"])
    steps = {name: stepper(cfg, anchor, adapter) for name, (anchor, adapter) in VARIANTS.items()}
    size = cfg.model.image_size
    views = [
        torch.randn(options.batch, 3, size, size).contiguous(memory_format=torch.channels_last) for _ in "ab"
    ]
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.steps + 1):
        for name, step in steps.items():
            begun = time.process_time()
            step(views)
            seconds[name].append(time.process_time() - begun)
    medians = {name: statistics.median(found[1:]) for name, found in seconds.items()}
    print("| step | processor seconds | times the free step |\n|---|---|---|")
    for name, found in medians.items():
        print(f"| {name} | {found:.2f} | {found / medians['free']:.2f} |")


if __name__ == "__main__":
    main()
