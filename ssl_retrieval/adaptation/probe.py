"""What a network makes of some photos, as they are and altered: all that the label-free rule ever sees.

Two networks are compared on the same photos, altered in the same way. Photos with exactly the same pixels
count once: a copy of a photo says nothing that the photo does not, and could be found in its place.
"""

import hashlib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ssl_retrieval import backbones
from ssl_retrieval.alterations import altered
from ssl_retrieval.atomic import atomic_path
from ssl_retrieval.errors import ImageError, UserError
from ssl_retrieval.evaluation_mode import as_in_search
from ssl_retrieval.images import load_image, shrink
from ssl_retrieval.network_input import InputSpec, Normalize
from ssl_retrieval.packed import Packed
from ssl_retrieval.postprocess import l2_normalize
from ssl_retrieval.types import BoolArray, ImageSet, VectorArray

IDENTITY = "identity"

FAMILIES: dict[str, dict[str, float]] = {
    "geometric": {"rotate": 20, "collage": 0.4},
    "photometric": {"jpeg": 8, "blur": 2, "text": 8},
    "colour": {"gray": 1, "color": 0.15},
    "framing": {"crop": 0.4},
}
"""Family -> transformation of `copy_transformations` -> strength. Training never shows the first two
families. It shows crops always, and other colours where told to: the last two say what became of them."""

HELD_OUT = ("geometric", "photometric")

BATCH_SIZE = 64
_SHORT_SIDE = 256
_FILE = "probe.npz"
_IDS = "ids"


@dataclass(frozen=True, eq=False)
class Probe:
    """Vectors of the same photos, as they are and altered.

    Attributes:
        vectors: ``identity`` and names of transformations -> float32 [N, D], rows of length 1 (or 0, or not
            finite where the network is broken).
        ids: The N photos; empty where they are not known.
    """

    vectors: dict[str, VectorArray]
    ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that every alteration has as many vectors as the photos themselves."""
        assert IDENTITY in self.vectors
        shape = self.photos.shape
        assert len(self.ids) in (0, shape[0])
        for vectors in self.vectors.values():
            assert vectors.dtype == np.float32
            assert vectors.ndim == 2
            assert vectors.shape == shape

    def __len__(self) -> int:
        """Count the photos."""
        return len(self.photos)

    @property
    def photos(self) -> VectorArray:
        """The photos as they are: float32 [N, D]."""
        return self.vectors[IDENTITY]

    @property
    def is_finite(self) -> bool:
        """Tell whether all values are numbers."""
        return all(bool(np.isfinite(vectors).all()) for vectors in self.vectors.values())

    def family(self, name: str) -> list[str]:
        """List the alterations of a family that were made."""
        return [of for of in FAMILIES[name] if of in self.vectors]

    def take(self, rows: BoolArray) -> "Probe":
        """Keep the photos at which ``rows`` (bool [N]) is true."""
        ids = tuple(photo for photo, kept in zip(self.ids, rows, strict=True) if kept) if self.ids else ()
        return Probe({name: vectors[rows] for name, vectors in self.vectors.items()}, ids)

    def save(self, folder: Path) -> None:
        """Write ``probe.npz`` into a folder, whole or not at all; values become float16."""
        halves = {name: vectors.astype(np.float16) for name, vectors in self.vectors.items()}
        with atomic_path(folder / _FILE) as partial, partial.open("wb") as file:
            np.savez(file, **{_IDS: np.array(self.ids, np.str_)}, **halves)  # type: ignore[arg-type]

    @classmethod
    def load(cls, folder: Path) -> "Probe":
        """Read what `save` wrote; vectors have length 1 again.

        Raises:
            UserError: It is missing or damaged.
        """
        file = folder / _FILE
        try:
            with np.load(file, allow_pickle=False) as stored:
                ids = tuple(str(photo) for photo in stored[_IDS])
                vectors = {
                    name: l2_normalize(stored[name].astype(np.float32)) for name in stored if name != _IDS
                }
        except FileNotFoundError:
            raise UserError(f"no probe {str(file)!r}: check the folder") from None
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            raise UserError(f"{str(file)!r} is damaged: make it again") from None
        return cls(vectors, ids)


def take(
    embed: Callable[[Tensor], Tensor] | nn.Module,
    spec: InputSpec,
    photos: ImageSet | Packed,
    *,
    limit: int = 1000,
    seed: int,
    device: str | torch.device,
) -> Probe:
    """Embed some photos, as they are and altered by every transformation of `FAMILIES`.

    Args:
        embed: float [B, 3, size, size], normalised, -> [B, D]; a timm network is pooled as it pools itself.
            A module is run in eval mode and left in the mode that it had.
        spec: The network's input.
        photos: Files, of which those that cannot be read are left out, or packed pixels.
        limit: At most so many photos are drawn.
        seed: Of the draw. The same photos, limit and seed give the same photos for every network.
        device: Where ``embed`` runs.

    Raises:
        UserError: No photo can be read.
    """
    assert limit >= 1
    pictures, ids = _distinct(photos, limit, seed)
    if not pictures:
        raise UserError("none of the photos can be read: a probe needs at least one")
    normalize = Normalize(spec.mean, spec.std).to(device)
    strengths = {name: strength for family in FAMILIES.values() for name, strength in family.items()}
    vectors = {}
    at_rest = as_in_search(embed, torch.device(device)) if isinstance(embed, nn.Module) else torch.no_grad()
    with at_rest:
        for name in (IDENTITY, *strengths):
            rows = []
            for start in range(0, len(pictures), BATCH_SIZE):
                batch = pictures[start : start + BATCH_SIZE]
                if name != IDENTITY:
                    batch = [altered(picture, name, strengths[name]) for picture in batch]
                pixels = torch.stack([spec.pixels(picture) for picture in batch]).to(device)
                inputs = normalize(pixels.contiguous(memory_format=torch.channels_last))
                rows.append(_pooled(embed, inputs).float().cpu())
            vectors[name] = _units(torch.cat(rows).numpy())
    return Probe(vectors, tuple(ids))


def _units(vectors: VectorArray) -> VectorArray:
    with np.errstate(invalid="ignore", over="ignore"):
        return l2_normalize(vectors)


def _pooled(embed: Callable[[Tensor], Tensor] | nn.Module, inputs: Tensor) -> Tensor:
    if isinstance(embed, nn.Module) and hasattr(embed, "forward_features"):
        return backbones.own_pooling(embed, inputs)
    return embed(inputs)


def _distinct(photos: ImageSet | Packed, limit: int, seed: int) -> tuple[list[Image.Image], list[str]]:
    """Draw readable photos that differ in their pixels, in the order of the set."""
    order = np.random.default_rng(seed % 2**32).permutation(len(photos.paths))
    found: dict[int, Image.Image] = {}
    seen: set[bytes] = set()
    for index in order.tolist():
        if len(found) == limit:
            break
        try:
            picture = _picture(photos, index)
        except ImageError:
            continue
        digest = hashlib.blake2b(picture.tobytes(), digest_size=16).digest() + bytes(
            str(picture.size), "ascii"
        )
        if digest not in seen:
            seen.add(digest)
            found[index] = picture
    rows = sorted(found)
    return [found[row] for row in rows], [photos.paths[row] for row in rows]


def _picture(photos: ImageSet | Packed, index: int) -> Image.Image:
    if isinstance(photos, Packed):
        return Image.fromarray(np.asarray(photos.pixels[index]))
    return shrink(load_image(photos.file(index), at_least=_SHORT_SIDE), _SHORT_SIDE)
