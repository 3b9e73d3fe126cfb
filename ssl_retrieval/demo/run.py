"""The whole story on shipped images: train two networks, compare six representations on three tasks."""

import json
import time
from pathlib import Path

from ssl_retrieval import config
from ssl_retrieval.compare import Comparison
from ssl_retrieval.console import say
from ssl_retrieval.grid import CompareConfig, run_grid
from ssl_retrieval.train import PretrainConfig, pretrain

HERE = Path(__file__).parent
TRAINED = ("simclr_scratch", "simclr_imagenet")


def run_demo(out: Path) -> Comparison:
    """Train, embed, search, compare; everything lands under ``out``, and a second run resumes.

    Args:
        out: Folder for pictures, runs, tables and the page.

    Returns:
        The comparison on the tasks ``emoji-instance``, ``emoji-moved`` and ``emoji-category``.
    """
    out = out.expanduser().resolve()
    start = time.monotonic()
    images = f"data.root={json.dumps(str(out / 'emoji'))}"
    for number, name in enumerate(TRAINED, start=1):
        say(f"[{number}/3] train {name}, a minute or three, no labels")
        place = f"out={json.dumps(str(out / name))}"
        pretrain(config.load(PretrainConfig, HERE / f"{name}.yaml", [images, place]))
    say("[3/3] embed, search and compare")
    cfg = config.load(CompareConfig, HERE / "compare.yaml", [images, f"out={json.dumps(str(out))}"])
    comparison = run_grid(cfg)
    say(f"the demo took {(time.monotonic() - start) / 60:.1f} minutes")
    return comparison
