"""An EmbeddingSet as a folder that numpy, pandas and faiss can open."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from ssl_retrieval.atomic import atomic_path
from ssl_retrieval.errors import UserError
from ssl_retrieval.types import EmbeddingSet, ImageSet

SCHEMA = 1
PARTS = ".embed_parts"
"""Folder of rows that a killed run has finished; hidden, so that it is never a folder of the user's."""

LEARNED = "learned.safetensors"
"""What an extractor has learned before it embedded: vocabularies, whitenings."""

_KEYS = ("key", "dim", "config", "weights", "image_size", "images")


def write(embeddings: EmbeddingSet, folder: Path, image_set: ImageSet) -> None:
    """Write an EmbeddingSet folder.

    It holds ``vectors.npy`` (float32 [N, D]), ``items.parquet`` (row, id, label), ``skipped.csv``
    (path, reason) and, last of all, ``key.json``: a folder without it is not complete.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "key.json").unlink(missing_ok=True)
    skipped = pd.DataFrame(list(embeddings.skipped), columns=["path", "reason"])
    with atomic_path(folder / "vectors.npy") as partial, partial.open("wb") as stream:
        np.save(stream, embeddings.vectors)
    write_items(embeddings, folder, image_set)
    with atomic_path(folder / "skipped.csv") as partial:
        skipped.to_csv(partial, index=False)
    write_key(embeddings, folder)
    remove_parts(folder)


def remove_parts(folder: Path) -> None:
    """Remove what a killed run has left."""
    shutil.rmtree(folder / PARTS, ignore_errors=True)


def write_key(embeddings: EmbeddingSet, folder: Path) -> None:
    """Write ``key.json`` alone: the images may have moved while their content stays."""
    speed = embeddings.images_per_s
    stored = {
        **embeddings.meta,
        "key": embeddings.key,
        "images_per_s": speed if math.isfinite(speed) else None,
    }
    with atomic_path(folder / "key.json") as partial:
        partial.write_text(json.dumps(stored, indent=1), encoding="utf-8")


def write_items(embeddings: EmbeddingSet, folder: Path, image_set: ImageSet) -> None:
    """Write ``items.parquet`` alone: labels may change while the vectors stay."""
    labels: list[str | None] = [None] * len(embeddings.ids)
    if image_set.labels is not None:
        label_of = dict(zip(image_set.paths, image_set.labels.tolist(), strict=True))
        labels = [image_set.class_names[label_of[i]] for i in embeddings.ids]
    items = pd.DataFrame({"id": list(embeddings.ids), "label": pd.Series(labels, dtype="string")})
    with atomic_path(folder / "items.parquet") as partial:
        items.to_parquet(partial)


def read(folder: Path) -> EmbeddingSet:
    """Read an EmbeddingSet folder; the vectors stay on disk until they are used.

    Raises:
        UserError: Not such a folder, unfinished, or its files do not fit together.
    """
    if not (folder / "key.json").is_file():
        hint = "; an `embed` run here has not finished" if (folder / PARTS).is_dir() else ""
        raise UserError(f"no embeddings in {str(folder)!r} (key.json is missing{hint}): run `embed` first")
    try:
        meta = json.loads((folder / "key.json").read_text(encoding="utf-8"))
        key, dim, *_ = (meta[name] for name in _KEYS)
        vectors = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
        ids = tuple(pd.read_parquet(folder / "items.parquet")["id"].tolist())
        # A file called "NA" is no missing value.
        skipped = pd.read_csv(folder / "skipped.csv", dtype=str, keep_default_na=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder}: embeddings cannot be read ({reason}): run `embed` again") from error
    if vectors.ndim != 2 or vectors.dtype != np.float32 or len(vectors) != len(ids):
        shape = f"{vectors.dtype} {list(vectors.shape)}"
        raise UserError(
            f"{folder}: vectors.npy holds {shape}, items.parquet {len(ids)} ids: run `embed` again"
        )
    if vectors.shape[1] != dim:
        raise UserError(
            f"{folder}: vectors.npy has {vectors.shape[1]} dimensions, key.json says {dim}: run `embed` again"
        )
    return EmbeddingSet(
        ids=ids,
        vectors=vectors,
        key=key,
        skipped=tuple((str(p), str(r)) for p, r in skipped.itertuples(index=False)),
        images_per_s=float(meta.get("images_per_s") or "nan"),
        meta=meta,
    )


def stored_key(folder: Path) -> str | None:
    """Give the key of a finished EmbeddingSet folder, None when there is none."""
    try:
        return str(json.loads((folder / "key.json").read_text(encoding="utf-8"))["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
