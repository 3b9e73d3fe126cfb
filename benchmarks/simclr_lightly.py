"""SimCLR by us and by lightly's own example loop: same images, network, start, epochs, batch and seed.

lightly's side is its documented PyTorch example: ``SimCLRTransform`` in a ``DataLoader``,
``SimCLRProjectionHead``, ``NTXentLoss``, plain SGD at 0.06. Because its optimizer alone could explain a
difference, its loop runs a second time with our optimizer, schedule and temperature. All networks then
search in one harness: CIFAR-10 test images in training images.

Run ``python benchmarks/simclr_lightly.py --data DIR --out DIR [--quick]``. The last line is JSON: our kNN
accuracy over lightly's; ``seconds`` are training times.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms.simclr_transform import SimCLRTransform
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ssl_retrieval import backbones, checkpoint, config, optim, plugins
from ssl_retrieval.defaults import given
from ssl_retrieval.evaluate import ProtocolOptions, load_task, score
from ssl_retrieval.memory import keep_freed
from ssl_retrieval.network_input import InputSpec
from ssl_retrieval.representation import Representation
from ssl_retrieval.statistics import paired_test
from ssl_retrieval.train import PretrainConfig, pretrain
from ssl_retrieval.types import ImageSet, Report, Task

JOB = Path(__file__).parent.parent / "configs/pretrain/simclr_cifar10_small.yaml"


class Views(Dataset):
    """lightly's two views of each image file."""

    def __init__(self, images: ImageSet, transform: SimCLRTransform) -> None:
        """Hold the list and the transform."""
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        """Count the images."""
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        """Decode and transform in a worker: two float tensors [3, S, S]."""
        return self.transform(Image.open(self.images.file(index)).convert("RGB"))


def train_lightly(cfg: PretrainConfig, images: ImageSet, file: Path, ours: bool) -> float:
    """Run lightly's loop and save its network in our format; give the seconds it took.

    Args:
        cfg: Our job; its network, size, epochs, batch and seed are taken over.
        images: The training images.
        file: Where the network goes.
        ours: Take our optimizer, schedule and temperature too.
    """
    torch.manual_seed(cfg.seed)
    backbone = backbones.make(cfg.model.name, image_size=cfg.model.image_size, seed=cfg.seed).train()
    dim = backbones.feature_dim(backbone)
    head = SimCLRProjectionHead(dim, dim, 128)
    model = nn.Sequential(backbone, head).to(memory_format=torch.channels_last)
    stored: Any = backbone.pretrained_cfg
    normal = {key: list(stored[key]) for key in ("mean", "std")}
    transform = SimCLRTransform(input_size=cfg.model.image_size, gaussian_blur=0.0, normalize=normal)
    loader = DataLoader(Views(images, transform), cfg.batch_size, shuffle=True, drop_last=True, num_workers=2)
    criterion = NTXentLoss(temperature=cfg.method.temperature) if ours else NTXentLoss()
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
    if ours:
        decay = given(cfg.optimizer.weight_decay)
        optimizer = torch.optim.AdamW(model.parameters(), given(cfg.optimizer.lr), weight_decay=decay)
    start, step, total = time.perf_counter(), 0, given(cfg.epochs) * len(loader)
    for _ in range(given(cfg.epochs)):
        for first, second in loader:
            if ours:
                factor = optim.lr_factor(step / total, given(cfg.optimizer.warmup))
                optimizer.param_groups[0]["lr"] = given(cfg.optimizer.lr) * factor
            loss = criterion(model(first), model(second))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    seconds = time.perf_counter() - start
    spec = InputSpec(cfg.model.image_size, tuple(normal["mean"]), tuple(normal["std"]))
    card = checkpoint.Card(cfg.model.name, "standard", spec.to_dict(), train_s=seconds)
    checkpoint.save(backbone.eval(), card, file)
    return seconds


def evaluated(label: str, file: Path, task: Task, out: Path) -> Report:
    """Search with one network."""
    cfg = config.plugin_config("extractor", {"name": "checkpoint", "path": str(file)}, "model")
    return score(Representation.make(label, cfg, torch.device("cpu")), task, cache=out / "embeddings").report


def main() -> None:
    """Train all three, search, print the differences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10 as images")
    parser.add_argument("--out", type=Path, required=True, help="folder for the networks")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="1 epoch on 1,000 images")
    args = parser.parse_args()
    limit, epochs = (100, 1) if args.quick else (1000, args.epochs)
    keys = [
        f"data.root={args.data}",
        f"data.limit_per_class={limit}",
        f"epochs={epochs}",
        f"seed={args.seed}",
    ]
    cfg = config.load(PretrainConfig, JOB, [*keys, f"out={args.out / 'ours'}"])
    images = plugins.find("dataset", "cifar10").images(cfg.data)
    section = {"name": "cifar10", "root": str(args.data), "mode": "test_to_train", "limit_per_class": limit}
    task = load_task(config.plugin_config("dataset", section, "data"), ProtocolOptions())
    keep_freed(torch.device("cpu"))
    files = {"ours": pretrain(cfg)}
    seconds = {"ours": checkpoint.read_card(files["ours"]).train_s}
    for name, as_ours in (("lightly", False), ("lightly, our optimizer", True)):
        files[name] = args.out / f"{name.replace(', ', '_').replace(' ', '_')}.safetensors"
        seconds[name] = train_lightly(cfg, images, files[name], as_ours)
    reports = {name: evaluated(name, file, task, args.out) for name, file in files.items()}
    ratios = {}
    for name, report in reports.items():
        values = report.per_query
        means = ", ".join(f"{metric} {values[metric].mean():.3f}" for metric in ("knn@20", "mAP"))
        line = f"{name}: {means}, {seconds[name]:.0f} s"
        if name != "ours":
            gain = paired_test(reports["ours"].per_query["knn@20"], values["knn@20"])
            line += f"; ours better by {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] knn@20"
            ratios[name] = round(reports["ours"].per_query["knn@20"].mean() / values["knn@20"].mean(), 3)
        print(line)
    print(json.dumps({"ratios": ratios, "seconds": {name: round(s, 1) for name, s in seconds.items()}}))


if __name__ == "__main__":
    main()
