"""Teaching signals that a run makes for itself, round after round, from what its network sees by then."""

from dataclasses import dataclass

from torch import Tensor

from ssl_retrieval.types import VectorArray


@dataclass(frozen=True)
class Signal:
    """Where what a method learns from comes from, as its config says.

    Attributes:
        given: From the labels of the data. They are taken away from all other methods.
        renewed: From the run itself: `BaseMethod.renew` is asked for it in each round.
        family: What its networks are called in tables.
        together: Images that must stand together in a batch; see `Round.tuples`.
    """

    given: bool
    renewed: bool
    family: str
    together: int = 1


@dataclass(frozen=True, eq=False)
class Seen:
    """What the network sees when a round begins.

    Attributes:
        vectors: float32 [N, D], of length 1: the training images without augmentation, as they are searched.
        paths: Their N ids.
        left_out: Ids of those that cannot be read.
        seed: The run's seed, and nothing else may drive what is drawn, or no run could be resumed.
        number: Of the round, from 0.
        last: The round before; None in the first one.
    """

    vectors: VectorArray
    paths: tuple[str, ...]
    left_out: tuple[str, ...]
    seed: int
    number: int
    last: "Round | None"


@dataclass(frozen=True, eq=False)
class Round:
    """What is learned from until the next round; part of a run's state.

    Attributes:
        labels: int64 [N], on the CPU: what `BaseMethod.step` gets of the images of its batch.
        tuples: int64 [T, L]: rows of image numbers that must stand together in a batch, in this order; None
            = batches are drawn by the labels, as from given ones.
        centres: float32 [C, D]: a vector per label for `BaseMethod.begin_round`; not kept.
    """

    labels: Tensor
    tuples: Tensor | None = None
    centres: Tensor | None = None
