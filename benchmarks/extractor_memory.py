"""Memory and speed of every extractor of a compare config, each in a process of its own.

    python benchmarks/extractor_memory.py configs/compare/ladder.yaml --images photos --count 200

In one process the peak of a rung holds what the rungs before it left behind; here it is its own, imports
and network included. What learns first (a vocabulary) learns from the same images. Prints a Markdown table
and a last line of JSON: extractor -> MiB, so lower is better here.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from ssl_retrieval.images import list_images


def measure(model: dict[str, Any], folder: Path, work: Path) -> tuple[float, float]:
    """Embed a folder in a fresh process: -> peak MiB of its main process, images per second."""
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    job = {"out": str(out), "data": {"name": "folder", "root": str(folder)}, "model": model}
    (work / "job.yaml").write_text(yaml.safe_dump(job), "utf-8")
    subprocess.run(
        [sys.executable, "-m", "ssl_retrieval", "embed", str(work / "job.yaml")],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    meta = json.loads((out / "key.json").read_text("utf-8"))
    return float(meta["peak_rss_mib"]), float(meta["images_per_s"])


def main() -> None:
    """Measure one after the other and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, help="a config of ssl-retrieval compare")
    parser.add_argument("--images", type=Path, required=True, help="a folder of images")
    parser.add_argument("--count", type=int, default=200, help="how many of them")
    args = parser.parse_args()
    cfg = yaml.safe_load(args.config.read_text("utf-8"))
    network = cfg.get("network", {})
    models = {label: keys if "name" in keys else {**network, **keys} for label, keys in cfg["models"].items()}
    peaks = {}
    print("| extractor | peak MiB | images/s |\n| :-- | --: | --: |")
    with tempfile.TemporaryDirectory() as work:
        chosen = Path(work) / "images"
        chosen.mkdir()
        for number, path in enumerate(list_images(args.images)[: args.count]):
            shutil.copy(args.images / path, chosen / f"{number:05d}{Path(path).suffix}")
        for label, model in models.items():
            peaks[label], speed = measure(model, chosen, Path(work))
            print(f"| {label} | {peaks[label]:,.0f} | {speed:,.0f} |", flush=True)
    print(json.dumps({"peak_mib": {label: round(peak) for label, peak in peaks.items()}}))


if __name__ == "__main__":
    main()
