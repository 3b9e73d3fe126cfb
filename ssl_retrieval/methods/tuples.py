"""What objectives on tuples share: a query, a positive that a pair names, hard negatives of other clusters.

The set-up of Radenović, Tolias, Chum, TPAMI 2019 (arXiv 1711.02512): whoever knows which images match, from
geometric verification, clicks or known duplicates, needs no classes. With mined pairs nobody needs to know.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from ssl_retrieval import distributed
from ssl_retrieval.console import say
from ssl_retrieval.defaults import Facts, gentle
from ssl_retrieval.errors import UserError
from ssl_retrieval.hard_negatives import hard_negatives
from ssl_retrieval.methods.base import StepOutput
from ssl_retrieval.methods.one_view import OneViewConfig, OneViewMethod
from ssl_retrieval.mined_pairs import hard_positives, mutual_neighbours
from ssl_retrieval.neighbours import among_themselves
from ssl_retrieval.pairs import clusters, read_pairs
from ssl_retrieval.rounds import Round, Seen, Signal
from ssl_retrieval.types import Choices, IntArray

MINED = {"neighbours": mutual_neighbours, "diffusion": hard_positives}

SKIPPED_SHARE, MOST_SKIPPED = 20, 100
"""Of mined pairs: a 20th of the images, at most a hundred, stand too near to be called different."""


@dataclass
class TuplesConfig(OneViewConfig):
    """What every objective on tuples can be told.

    Attributes:
        pairs: A CSV or Parquet file with the columns ``path_a`` and ``path_b``; or how pairs are found
            without labels: ``neighbours`` (among each other's ``k`` nearest) or ``diffusion`` (reached along
            a chain of such neighbours, and not among the ``k`` nearest).
        negatives: Per query, each of another cluster.
        pool_size: Negatives come from so many images, drawn anew in each round; 0 = from all.
        skip: So many of a query's nearest images are never its negatives; -1 = 0 with pairs from a file, and
            else a 20th of the images, 100 at most.
        k: Neighbours per image, for mined pairs.
        remine: Find pairs anew in each round, as the network sees by then; false = those of the start stay.
            Negatives are always found anew.
    """

    pairs: str = "???"
    negatives: int = 5
    pool_size: int = 0
    skip: int = -1
    k: int = 5
    remine: bool = True


def tuple_defaults(facts: Facts) -> Choices:
    """Choose what objectives on tuples leave open."""
    return gentle() if facts.pretrained else {}


class TuplesMethod(OneViewMethod):
    """A backbone, an `EmbeddingHead` and a loss of triplets: each tuple's query, its positive, its negatives.

    Subclasses set ``criterion``, a loss of pytorch-metric-learning that takes indices of triplets. What
    stands in which place of a batch is fixed, so the labels that come with it (clusters) are not needed.
    """

    needs_labels = True
    family = "fine-tuned"
    advice = "a larger method.skip, a lower optimizer.lr, or model.freeze"
    criterion: nn.Module

    def __init__(self, cfg: TuplesConfig, backbone: nn.Module) -> None:
        """Check the numbers.

        Args:
            cfg: The method's config.
            backbone: A network from `backbones.make`.
        """
        super().__init__(cfg, backbone)
        _check(cfg)
        self.cfg = cfg
        self.length = 2 + cfg.negatives

    @classmethod
    def signal(cls, cfg: Any) -> Signal:
        """Say that tuples are made by the run itself; only with a file does anybody say what matches.

        Raises:
            UserError: A number is wrong, or ``pairs`` is neither a way to find some nor a file.
        """
        _check(cfg)
        if cfg.pairs in MINED:
            return Signal(False, True, "self-supervised", together=2 + cfg.negatives)
        if not Path(cfg.pairs).expanduser().is_file():
            raise UserError(
                f"method.pairs={cfg.pairs!r}: there is no such file: give a CSV or Parquet file, or use "
                f"{' or '.join(MINED)}"
            )
        return Signal(False, True, "fine-tuned", together=2 + cfg.negatives)

    def renew(self, seen: Seen) -> Round:
        """Find the pairs, unless they stay, and for each the negatives of one of its images.

        Which of the two is the query changes from round to round while the pairs stay. Where a later round
        finds too little, what the last one found stays.

        Args:
            seen: What the network makes of the training images.

        Raises:
            UserError: The first round finds no pairs, or too few negatives.
        """
        try:
            return self._found(seen)
        except UserError as error:
            if seen.last is None:
                raise
            say(f"  {error}. What the last round found stays")
            return seen.last

    def _found(self, seen: Seen) -> Round:
        pairs, spared = self._pairs(seen)
        if len(pairs) == 0:
            raise UserError(
                f"method.pairs={self.cfg.pairs}: no pair was found among {len(seen.paths)} images: raise "
                "method.k, or give pairs of readable images"
            )
        groups = clusters(pairs, len(seen.paths))
        sizes = np.bincount(groups)
        say(
            f"  {len(pairs)} pairs of {len(np.unique(pairs))} images, in {(sizes > 1).sum()} clusters of "
            f"{sizes.max()} images at most"
        )
        queries, row_of = np.unique(pairs[:, 0], return_inverse=True)
        negatives = hard_negatives(
            seen.vectors,
            queries,
            groups,
            self.cfg.negatives,
            pool=self._pool(seen),
            spared=None if spared is None else spared[queries],
        )
        tuples = np.concatenate([pairs, negatives[row_of]], axis=1)
        return Round(torch.from_numpy(groups), torch.from_numpy(tuples))

    def step(self, views: list[Tensor], progress: float) -> StepOutput:
        """Compute the loss.

        Args:
            views: float [B, 3, S, S], tuple by tuple, then int64 [B], clusters. What is no whole tuple, as in
                a trial of speed, is left out.
            progress: Share of the training done.
        """
        images = views[0][: len(views[0]) // self.length * self.length]
        vectors = self.head(self.encoder, images)
        # Differences of similarities near 1 vanish in half types: fp32, whatever came before.
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = nnf.normalize(distributed.gather(vectors.float()), dim=1)
            triplets = triplets_of(len(vectors) // self.length, self.cfg.negatives, vectors.device)
            return StepOutput(loss=self.criterion(vectors, indices_tuple=triplets))

    def _pairs(self, seen: Seen) -> tuple[IntArray, IntArray | None]:
        """Give int64 [M, 2], the query first, and int64 [N, S], what is spared from being a negative."""
        cfg = self.cfg
        earlier = None if seen.last is None else seen.last.tuples
        if cfg.pairs in MINED:
            usual = min(MOST_SKIPPED, len(seen.paths) // SKIPPED_SHARE)
            found = MINED[cfg.pairs](seen.vectors, cfg.k, usual if cfg.skip < 0 else cfg.skip)
            if earlier is None or cfg.remine:
                return _in_turns(found.pairs), found.nearest
            return _turned(earlier), found.nearest
        spared = among_themselves(seen.vectors, cfg.skip).indices if cfg.skip > 0 else None
        if earlier is None:
            return read_pairs(Path(cfg.pairs), seen.paths, seen.left_out), spared
        return _turned(earlier), spared

    def _pool(self, seen: Seen) -> IntArray | None:
        if not 0 < self.cfg.pool_size < len(seen.paths):
            return None
        draw = np.random.default_rng([seen.seed % 2**64, seen.number])
        return np.sort(draw.permutation(len(seen.paths))[: self.cfg.pool_size])


def _check(cfg: TuplesConfig) -> None:
    for name, least in (("negatives", 1), ("pool_size", 0), ("skip", -1), ("k", 1)):
        value = getattr(cfg, name)
        if value < least:
            raise UserError(f"method.{name}={value}: must be at least {least}")


def _in_turns(pairs: IntArray) -> IntArray:
    """Turn every other pair round: the image of the lower number stands first in all of them."""
    turned = pairs.copy()
    turned[1::2] = turned[1::2, ::-1]
    return turned


def _turned(tuples: Tensor) -> IntArray:
    """Take the pairs of tuples, the positive as the query."""
    return tuples[:, [1, 0]].numpy()


def triplets_of(count: int, negatives: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Say where queries, positives and negatives stand in a batch of tuples.

    Args:
        count: Tuples.
        negatives: Per tuple, behind its query and its positive.
        device: Where the indices are needed.

    Returns:
        Three int64 [count · negatives].

    >>> [places.tolist() for places in triplets_of(2, 2, torch.device("cpu"))]
    [[0, 0, 4, 4], [1, 1, 5, 5], [2, 3, 6, 7]]
    """
    places = torch.arange(count * (2 + negatives), device=device).view(count, 2 + negatives)
    queries, positives = (places[:, role].repeat_interleave(negatives) for role in (0, 1))
    return queries, positives, places[:, 2:].flatten()
