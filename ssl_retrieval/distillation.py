"""Losses by which a small network learns a large one's vectors: the vectors themselves, or how they lie.

All take float32 [B, D] of the student and [B, E] of the teacher, of the same images in the same order, and
give a scalar. Gradients flow to both: give the teacher's without.
"""

import torch
from torch import Tensor
from torch.nn import functional as nnf

_LEAST_SQUARE = 1e-12
"""Squared distances below it count as it: the root has no slope at 0."""


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """Give 1 minus the cosine, on average; D = E.

    >>> cosine(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])).item()
    1.0
    """
    return 1 - nnf.cosine_similarity(student, teacher, dim=1).mean()


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Give the squared error as a share of the teacher's squared length; D = E, lengths count.

    >>> relative_error(torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 0.0]])).item()
    0.5
    """
    return (student - teacher).square().sum() / teacher.square().sum().clamp_min(_LEAST_SQUARE)


def similarity(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compare, for each image, the distributions of its similarity to the others: KL(teacher ‖ student).

    A distribution is the softmax of cosine / temperature over the other images of the batch. CompRess (Abbasi
    Koohpayegani, Tejankar, Pirsiavash, NeurIPS 2020, arXiv 2010.14713) and SEED (Fang et al., ICLR 2021,
    arXiv 2101.04731) take it over images of earlier batches too.

    Args:
        student: float32 [B, D], B at least 3: the distribution over a single other image is always 1.
        teacher: float32 [B, E].
        temperature: Positive; the smaller, the more the nearest count.
    """
    ours, theirs = (_log_shares(vectors, temperature) for vectors in (student, teacher))
    return nnf.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def distances(student: Tensor, teacher: Tensor) -> Tensor:
    """Compare all distances within the batch, each relative to their mean (RKD-D, Huber loss).

    Park, Kim, Lu, Cho: Relational Knowledge Distillation, CVPR 2019 (arXiv 1904.05068). Here vectors have
    length 1, as in the search, and the mean is over pairs of two different images.
    """
    pairs = _different(2, len(student), student.device)
    ours, theirs = (_relative_distances(vectors, pairs) for vectors in (student, teacher))
    return _mean_over(nnf.smooth_l1_loss(ours, theirs, reduction="none"), pairs)


def angles(student: Tensor, teacher: Tensor) -> Tensor:
    """Compare the cosines of all angles that three images of the batch make (RKD-A, Huber loss).

    As `distances`; over triplets of three different images. Memory grows with B³.
    """
    triplets = _different(3, len(student), student.device)
    ours, theirs = (_cosines_at_corners(vectors) for vectors in (student, teacher))
    return _mean_over(nnf.smooth_l1_loss(ours, theirs, reduction="none"), triplets)


def _log_shares(vectors: Tensor, temperature: float) -> Tensor:
    """Give log softmax over the others: [B, D] -> [B, B - 1]."""
    count = len(vectors)
    unit = nnf.normalize(vectors, dim=1)
    logits = unit @ unit.T / temperature
    # Without its diagonal, row i of the matrix, read on, is B - 1 values again, and nothing is looked up.
    others = logits.flatten()[1:].view(count - 1, count + 1)[:, :-1].reshape(count, count - 1)
    return nnf.log_softmax(others, dim=1)


def _squares(vectors: Tensor) -> Tensor:
    """Give squared distances between vectors scaled to length 1: [B, D] -> [B, B]."""
    unit = nnf.normalize(vectors, dim=1)
    return (2 - 2 * (unit @ unit.T)).clamp_min(_LEAST_SQUARE)


def _relative_distances(vectors: Tensor, pairs: Tensor) -> Tensor:
    found = _squares(vectors).sqrt()
    return found / _mean_over(found, pairs)


def _cosines_at_corners(vectors: Tensor) -> Tensor:
    """Give the cosine of the angle at j between i and k: [B, D] -> [B, B, B] as [j, i, k]."""
    squares = _squares(vectors)
    # The law of cosines, at a corner j: no tensor of B² · D differences is needed.
    sides = squares[:, :, None] + squares[:, None, :] - squares[None]
    roots = squares.sqrt()
    return sides / (2 * roots[:, :, None] * roots[:, None, :])


def _different(order: int, count: int, device: torch.device) -> Tensor:
    """Give 1.0 where all indices differ, else 0.0: [count, …] with ``order`` axes."""
    apart = 1 - torch.eye(count, device=device)
    if order == 2:
        return apart
    return apart[:, :, None] * apart[:, None, :] * apart[None]


def _mean_over(values: Tensor, chosen: Tensor) -> Tensor:
    return (values * chosen).sum() / chosen.sum().clamp_min(1)
