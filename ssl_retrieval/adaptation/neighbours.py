"""What the start and the adapted network find for some photos, side by side, for people to look at."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ssl_retrieval.adaptation.views import nearest_others, shared
from ssl_retrieval.extractors import checkpoint as trained
from ssl_retrieval.packed import Packed
from ssl_retrieval.picture_vectors import embed_pictures
from ssl_retrieval.representation import Representation
from ssl_retrieval.types import IntArray, VectorArray

MOST_PHOTOS = 2_000
"""Photos among which neighbours are sought: enough to look at, soon embedded."""

NUM_RANDOM, NUM_CHANGED, NUM_SHOWN = 6, 4, 7


@dataclass(frozen=True)
class Example:
    """A photo with what both networks find for it.

    Attributes:
        photo: Its id.
        why: Why it is shown.
        before: Ids that the start finds, best first.
        after: Ids that the other network finds.
    """

    photo: str
    why: str
    before: tuple[str, ...]
    after: tuple[str, ...]


def examples(photos: Packed, start: Path, other: Path, seed: int, device: torch.device) -> list[Example]:
    """Show photos drawn at random, and those whose neighbours changed most.

    Args:
        photos: Packed photos, at least 2.
        start: Checkpoint of the start.
        other: Checkpoint of the network that it is set against.
        seed: Of the draw.
        device: Where networks run.
    """
    rows = np.unique(np.linspace(0, len(photos.paths) - 1, min(len(photos.paths), MOST_PHOTOS)).round())
    places = rows.astype(np.int64)
    before, after = (_found(photos, places, file, device) for file in (start, other))
    drawn = np.random.default_rng(seed).permutation(len(places))[:NUM_RANDOM]
    by_change = np.argsort(shared(before, after), kind="stable")
    changed = [row for row in by_change if row not in drawn][:NUM_CHANGED]
    ids = [photos.paths[place] for place in places]
    return [
        Example(ids[row], why, *(tuple(ids[i] for i in found[row]) for found in (before, after)))
        for why, some in (("drawn at random", drawn), ("its neighbours changed most", changed))
        for row in some
    ]


def _found(photos: Packed, places: IntArray, file: Path, device: torch.device) -> IntArray:
    network = Representation.make("network", trained.Config(path=str(file)), device)
    pictures = (Image.fromarray(np.asarray(photos.pixels[place])) for place in places)
    vectors: VectorArray = embed_pictures(network, pictures)
    return nearest_others(vectors, vectors, NUM_SHOWN)
