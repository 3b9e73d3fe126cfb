"""An index on disk: the faiss file, and a json beside it that says what it is of and how good it is."""

import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssl_retrieval.atomic import atomic_path
from ssl_retrieval.errors import UserError
from ssl_retrieval.index import BuiltIndex
from ssl_retrieval.index_syntax import parse
from ssl_retrieval.types import digest_of

SCHEMA = 1
FOLDER = "indexes"
"""Beside the embeddings that the indexes are of."""

SUFFIX = ".faiss"
_CHUNK = 1 << 20


@dataclass(frozen=True, eq=False)
class StoredIndex:
    """An index from disk.

    Attributes:
        built: The index.
        audits: Spec's name -> what its audit found (see `index_audit`); empty = never audited.
    """

    built: BuiltIndex
    audits: dict[str, dict[str, Any]] = field(default_factory=dict)


def index_file(folder: Path, built_as: str) -> Path:
    """Name the file of an index: readable, and one of its own for every factory string.

    >>> index_file(Path("runs"), "IVF256,PQ16").name
    'IVF256_PQ16-5994c849.faiss'
    """
    readable = re.sub(r"[^A-Za-z0-9]+", "_", built_as)[:60].strip("_")
    return folder / f"{readable}-{digest_of(built_as)[:8]}{SUFFIX}"


def vectors_key(key: str, ids: tuple[str, ...], dim: int) -> str:
    """Give what an index must share with vectors to be of them.

    Args:
        key: Of the vectors (`EmbeddingSet.key`, `Features.key`).
        ids: N ids in the order of the rows.
        dim: Dimensions.
    """
    return digest_of([key, list(ids), dim])


def save(built: BuiltIndex, file: Path, of: str) -> None:
    """Write an index; the json goes last, so that a file without its json is no index.

    Args:
        built: The index.
        file: Where it goes (see `index_file`).
        of: What it is of (see `vectors_key`).
    """
    import faiss

    sidecar(file).unlink(missing_ok=True)
    with atomic_path(file) as partial:
        faiss.write_index(built.index, str(partial))
    content = {
        "schema": SCHEMA,
        "spec": built.spec.built_as,
        "of": of,
        "digest": _digest(file),
        "num_images": built.index.ntotal,
        "dim": built.index.d,
        "fixed_bytes": built.fixed_bytes,
        "num_bytes": built.num_bytes,
        "build_s": built.build_s,
        "peak_mib": built.peak_mib if math.isfinite(built.peak_mib) else None,
        "notes": list(built.notes),
        "faiss": faiss.__version__,
        "audits": {},
    }
    _write(file, content)


def add_audit(file: Path, name: str, found: dict[str, Any]) -> None:
    """Note beside a stored index what an audit found for a spec of this name."""
    content = _read(file)
    _write(file, {**content, "audits": {**content["audits"], name: found}})


def load(file: Path, of: str | None) -> StoredIndex:
    """Read an index that `save` wrote, after checking that it is the very file.

    Args:
        file: The faiss file.
        of: What it must be of (see `vectors_key`); None = nothing is checked.

    Raises:
        UserError: No such file, not one of ours, damaged, or of other vectors.
    """
    import faiss

    if not file.is_file():
        raise UserError(
            f"no index file {str(file)!r}: give a file that `index` left, or a factory string as HNSW32"
        )
    content = _read(file)
    if of is not None and content["of"] != of:
        raise UserError(
            f"{file}: this index is of other embeddings, or they have changed since: build it again with "
            f"--index '{content['spec']}'"
        )
    if content["digest"] != _digest(file):
        raise UserError(
            f"{file}: the index file is damaged (its digest is another): remove it and build it again"
        )
    try:
        index = faiss.read_index(str(file))
    except RuntimeError as error:
        raise UserError(
            f"{file}: faiss {faiss.__version__} cannot read what {content['faiss']} wrote: remove it and "
            "build it again"
        ) from error
    built = BuiltIndex(
        spec=parse(content["spec"]),
        index=index,
        fixed_bytes=content["fixed_bytes"],
        num_bytes=content["num_bytes"],
        build_s=content["build_s"],
        peak_mib=float("nan") if content["peak_mib"] is None else content["peak_mib"],
        notes=tuple(content["notes"]),
    )
    return StoredIndex(built, content["audits"])


def is_current(file: Path, of: str) -> bool:
    """Tell whether a stored index is there and is of these vectors."""
    try:
        return file.is_file() and _read(file)["of"] == of
    except UserError:
        return False


def sidecar(file: Path) -> Path:
    """Give the json beside an index."""
    return file.with_suffix(".json")


_KEYS = {f.name for f in dataclasses.fields(BuiltIndex)} - {"index"} | {"of", "digest", "faiss", "audits"}


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(sidecar(file).read_text(encoding="utf-8"))
        missing = _KEYS - content.keys()
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{file}: {sidecar(file).name}, which says of what this index is, is missing or damaged: "
            "build it again with `ssl-retrieval index`"
        ) from error
    if missing or content.get("schema") != SCHEMA:
        raise UserError(f"{file}: this index was written by another version: remove it and build it again")
    return dict(content)


def _write(file: Path, content: dict[str, Any]) -> None:
    with atomic_path(sidecar(file)) as partial:
        partial.write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")


def _digest(file: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
