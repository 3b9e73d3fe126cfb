"""Search an embedded collection with one picture."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssl_retrieval import config, devices, index_files, learning
from ssl_retrieval.console import say
from ssl_retrieval.embed import embed_image
from ssl_retrieval.embedding_files import LEARNED, read
from ssl_retrieval.errors import UserError
from ssl_retrieval.features import similarity_of
from ssl_retrieval.index import build, search
from ssl_retrieval.index_syntax import parse
from ssl_retrieval.postprocess import l2_normalize
from ssl_retrieval.representation import Representation
from ssl_retrieval.search import top_k
from ssl_retrieval.types import EmbeddingSet, Ranking, VectorArray

BLOCK_ROWS = 16_384


@dataclass(frozen=True)
class Hit:
    """One result.

    Attributes:
        file: The image.
        score: Similarity to the query: the cosine, in [-1, 1], unless the features have another.
    """

    file: Path
    score: float


def find(embeddings: Path, query: Path, k: int, device: str = "auto", index: str = "") -> list[Hit]:
    """Find the images of an EmbeddingSet folder that are most similar to a picture.

    The picture is embedded exactly as the collection was; its config is stored beside the vectors.

    Args:
        embeddings: What `embed` left.
        query: An image file.
        k: How many results, at least 1.
        device: Where the query is embedded.
        index: Empty = search exactly. Otherwise approximately: an index file, or a factory string and
            settings, whose index is built into the folder unless it is there.

    Raises:
        UserError: No embeddings there, no readable image, a model that is not the one of the folder, or an
            index that is wrong or of other vectors.
    """
    if k < 1:
        raise UserError(f"--k {k}: must be at least 1")
    stored = read(embeddings)
    if not query.is_file():
        raise UserError(f"no query image {str(query)!r}: give the path of an image file")
    cfg = config.plugin_config("extractor", stored.meta["config"], f"{embeddings}: config")
    representation = Representation.make(cfg.name, cfg, devices.pick(device))
    if learning.learns(representation):
        learning.recall(representation, embeddings / LEARNED)
    identity = representation.identity()
    if identity["dim"] != stored.dim:
        raise UserError(
            f"{embeddings}: its vectors have {stored.dim} dimensions, its model {cfg.name!r} now gives "
            f"{identity['dim']}: run `embed` again"
        )
    if identity["weights"] != stored.meta["weights"]:
        raise UserError(f"{embeddings}: the weights of {cfg.name!r} have changed since: run `embed` again")
    precision = stored.meta.get("precision", "fp32")
    vector = embed_image(representation, query, stored.meta["image_size"], precision)
    k = min(k, len(stored.ids))
    if index:
        if hasattr(representation.extractor, "similarity"):
            raise UserError(
                f"{cfg.name!r} has a similarity of its own, which no index has: leave --index out"
            )
        ranking = _approximately(embeddings, stored, l2_normalize(vector), k, index)
    elif hasattr(representation.extractor, "similarity"):
        ranking = top_k(similarity_of(representation.extractor, vector, np.asarray(stored.vectors)), None, k)
    else:
        ranking = nearest(l2_normalize(vector), stored.vectors, k)
    root = Path(stored.meta["images"]["root"])
    return [
        Hit(root / stored.ids[row], float(score))
        for row, score in zip(ranking.indices[0], ranking.scores[0], strict=True)
        if row >= 0
    ]


def nearest(queries: VectorArray, vectors: VectorArray, k: int, rows: int = BLOCK_ROWS) -> Ranking:
    """Find the nearest by cosine among vectors of any length that need not fit in memory.

    Args:
        queries: float32 [Q, D], rows of length 1 or 0.
        vectors: float32 [N, D]; may be an ``np.memmap``: it is read and normalised in blocks.
        k: How many results, at most N.
        rows: Vectors of a block.
    """
    indices, scores = np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
    for start in range(0, len(vectors), rows):
        block = l2_normalize(vectors[start : start + rows])
        found = top_k(queries, block, min(k, len(block)))
        indices = np.concatenate([indices, found.indices + start], axis=1)
        scores = np.concatenate([scores, found.scores], axis=1)
        # Stable, and earlier blocks come first: equal scores stay in the order of the gallery.
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        indices = np.take_along_axis(indices, best, axis=1)
        scores = np.take_along_axis(scores, best, axis=1)
    return Ranking(indices, scores)


def _approximately(embeddings: Path, stored: EmbeddingSet, query: VectorArray, k: int, asked: str) -> Ranking:
    """Search with an index, and say how good it is known to be."""
    of = index_files.vectors_key(stored.key, stored.ids, stored.dim)
    if asked.split()[0].endswith(index_files.SUFFIX):
        found = index_files.load(Path(asked).expanduser(), of)
        spec = found.built.spec
    else:
        spec = parse(asked)
        file = index_files.index_file(embeddings / index_files.FOLDER, spec.built_as)
        if not index_files.is_current(file, of):
            say(f"building {spec.built_as} of {len(stored.ids):,} images")
            built = build(spec, stored.vectors)
            index_files.save(built, file, of)
            for note in built.notes:
                say(f"{spec.built_as}: {note}")
        found = index_files.load(file, of)
    ranking = search(found.built, spec, query, k, vectors=stored.vectors)
    say(f"approximate search by {spec.name}: {_how_good(found.audits.get(spec.name))}")
    return ranking


def _how_good(audit: dict[str, Any] | None) -> str:
    if audit is None:
        return "its recall is not known; `ssl-retrieval index` measures it"
    found = f"recall@{audit['k']} {audit['recall']:.3f}"
    return f"{found} against exact search, over {audit['num_queries']:,} queries"
