"""Teachers: exponential moving averages of a network in training."""

import copy
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

Module = TypeVar("Module", bound=nn.Module)


def copy_of(student: Module) -> Module:
    """Copy a student at the start: the same weights and buffers, but nothing for an optimizer."""
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher's weights: ``teacher = momentum · teacher + (1 − momentum) · student``.

    Buffers stay the teacher's own: its batch normalisation sees its own activations (see `mirror_mode`),
    and statistics of the student would not fit its weights.

    Args:
        teacher: From `copy_of`.
        student: The network in training, after the optimizer's step.
        momentum: In [0, 1].
    """
    theirs = [parameter.detach() for parameter in teacher.parameters()]
    ours = [parameter.detach() for parameter in student.parameters()]
    if theirs:
        torch._foreach_lerp_(theirs, ours, 1.0 - momentum)


def mirror_mode(teacher: nn.Module, student: nn.Module) -> None:
    """Let the teacher's batch normalisation do as the student's does; all else goes to eval mode.

    Dropout and stochastic depth are for students alone.
    """
    for own, other in zip(teacher.modules(), student.modules(), strict=True):
        own.training = other.training and isinstance(other, _BatchNorm)
