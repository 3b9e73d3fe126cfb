"""Search an embedded collection with one picture."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssl_retrieval import config, devices, learning
from ssl_retrieval.embed import embed_image
from ssl_retrieval.embedding_files import LEARNED, read
from ssl_retrieval.errors import UserError
from ssl_retrieval.features import similarity_of
from ssl_retrieval.representation import Representation
from ssl_retrieval.search import top_k


@dataclass(frozen=True)
class Hit:
    """One result.

    Attributes:
        file: The image.
        score: Similarity to the query: the cosine, in [-1, 1], unless the features have another.
    """

    file: Path
    score: float


def find(embeddings: Path, query: Path, k: int, device: str = "auto") -> list[Hit]:
    """Find the images of an EmbeddingSet folder that are most similar to a picture.

    The picture is embedded exactly as the collection was; its config is stored beside the vectors.

    Args:
        embeddings: What `embed` left.
        query: An image file.
        k: How many results, at least 1.
        device: Where the query is embedded.

    Raises:
        UserError: No embeddings there, no readable image, or a model that is not the one of the folder.
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
    scores = similarity_of(representation.extractor, vector, np.asarray(stored.vectors))
    ranking = top_k(scores, None, min(k, len(stored.ids)))
    root = Path(stored.meta["images"]["root"])
    return [
        Hit(root / stored.ids[index], float(score))
        for index, score in zip(ranking.indices[0], ranking.scores[0], strict=True)
    ]
