"""Speed of a student against its teacher's: both networks in one process, turn by turn, each at its own size.

Run ``python benchmarks/distill.py RUN``, the folder of a ``method.name=distill`` run, or compare any two
models: ``--teacher name=tf_efficientnet_lite2 weights=offline --student name=tf_efficientnet_lite0
weights=offline image_size=112``. On one thread of a CPU its own time counts, not what other programs take.
The last line is JSON, the student's images/s over the teacher's.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from ssl_retrieval import checkpoint, config, devices, precision
from ssl_retrieval.errors import UserError
from ssl_retrieval.representation import Representation
from ssl_retrieval.run_folder import CHECKPOINT


def sections_of(run: Path) -> dict[str, dict[str, Any]]:
    """Read who taught a run's student."""
    card = checkpoint.read_card(run / CHECKPOINT if run.is_dir() else run)
    teacher = card.recipe.get("method", {}).get("teacher")
    if teacher is None:
        raise UserError(f"{run}: its method is {card.method!r}: give a run of method.name=distill")
    return {"teacher": teacher, "student": {"name": "checkpoint", "path": str(run)}}


def section_from(texts: list[str]) -> dict[str, Any]:
    """Read ``key=value`` texts."""
    pairs = (text.partition("=") for text in texts)
    return {key: yaml.safe_load(value) for key, _, value in pairs}


def rate(
    representation: Representation, batch: torch.Tensor, chosen: precision.Runtime, span: float
) -> float:
    """Give images/s of one model on a batch that is on its device."""
    is_alone = representation.device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if is_alone else time.perf_counter
    start, passes = clock(), 0
    while clock() - start < span:
        representation.embed_batch(batch, chosen)
        passes += 1
        if representation.device.type == "cuda":
            torch.cuda.synchronize(representation.device)
    return passes * len(batch) / (clock() - start)


def main() -> None:
    """Measure both in turn, so that what else the machine does slows down both; print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", help="folder of a run of method.name=distill")
    parser.add_argument("--teacher", nargs="+", help="keys of its section, as name=tf_efficientnet_lite2")
    parser.add_argument("--student", nargs="+", help="likewise")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="per model and round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="fp32")
    args = parser.parse_args()
    if args.run is None and not (args.teacher and args.student):
        parser.error("give a run, or both --teacher and --student")
    torch.set_num_threads(args.threads)
    device = devices.pick(args.device)
    sections = sections_of(args.run) if args.run else {}
    sections |= {"teacher": section_from(args.teacher)} if args.teacher else {}
    sections |= {"student": section_from(args.student)} if args.student else {}
    models = {
        name: Representation.make(name, config.plugin_config("extractor", section, name), device)
        for name, section in sections.items()
    }
    chosen = precision.without_trial(args.precision, "channels_last", device)
    batches = {}
    for name, model in models.items():
        size = model.extractor.preprocess_spec.size
        pixels = torch.randint(0, 256, (args.batch, 3, size, size), dtype=torch.uint8)
        batches[name] = pixels.to(device, memory_format=torch.channels_last)
        model.embed_batch(batches[name], chosen)
    rates: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(args.rounds):
        for name, model in models.items():
            rates[name].append(rate(model, batches[name], chosen, args.seconds))
    ratios = [s / t for s, t in zip(rates["student"], rates["teacher"], strict=True)]
    print(f"{device}, {args.threads} threads, batches of {args.batch}, {args.precision}; images/s (median):")
    for name, model in models.items():
        size = model.extractor.preprocess_spec.size
        print(f"  {name:8s}{statistics.median(rates[name]):9.1f}   {size} px, {model.extractor.dim} values")
    print(json.dumps({"ratios": {"student_over_teacher": round(statistics.median(ratios), 2)}}))


if __name__ == "__main__":
    main()
