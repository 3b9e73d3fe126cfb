"""Vectors of earlier batches: more negatives, and positives, than a batch can hold."""

import torch
from torch import Tensor, nn

from ssl_retrieval.errors import UserError


class CrossBatchMemory(nn.Module):
    """A ring of the latest vectors and their labels.

    Wang, Zhang, Huang, Scott: Cross-Batch Memory for Embedding Learning, CVPR 2020 (arXiv 1912.06798):
    vectors drift slowly, so that those of past steps still tell what is hard. All of it is buffers, and so
    goes on exactly where a run was stopped; pytorch-metric-learning's keeps its place outside of them.
    """

    vectors: Tensor
    labels: Tensor
    num_added: Tensor

    def __init__(self, length: int, dim: int) -> None:
        """Begin empty.

        Args:
            length: Vectors to keep, at least 1.
            dim: Their dimension.
        """
        super().__init__()
        self.register_buffer("vectors", torch.zeros(length, dim))
        self.register_buffer("labels", torch.zeros(length, dtype=torch.int64))
        self.register_buffer("num_added", torch.zeros((), dtype=torch.int64))

    def content(self) -> tuple[Tensor, Tensor]:
        """Give float [M, D] and int64 [M], without gradient; M grows up to the length."""
        filled = min(int(self.num_added), len(self.vectors))
        return self.vectors[:filled].clone(), self.labels[:filled].clone()

    @torch.no_grad()
    def add(self, vectors: Tensor, labels: Tensor) -> None:
        """Put vectors in the place of the oldest ones.

        Args:
            vectors: float [B, D].
            labels: int64 [B].

        Raises:
            UserError: The memory is shorter than a batch.
        """
        if len(vectors) > len(self.vectors):
            raise UserError(
                f"method.memory={len(self.vectors)} is shorter than a batch of {len(vectors)}: lengthen it"
            )
        places = (torch.arange(len(vectors), device=vectors.device) + self.num_added) % len(self.vectors)
        self.vectors[places] = vectors.detach()
        self.labels[places] = labels
        self.num_added += len(vectors)

    def clear(self) -> None:
        """Begin empty again."""
        self.num_added.zero_()
