"""Looking at a network in the middle of its training without a trace."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def as_in_search(encoder: nn.Module, device: torch.device) -> Iterator[None]:
    """Open a region in which a network is evaluated in fp32, and after which nothing has changed.

    Not ``inference_mode``: a network that keeps a tensor for later calls, as some do, could then no longer
    be trained with it.
    """
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.no_grad(),
            # The search multiplies matrices too, wherever that is done.
            torch.autocast(device.type, enabled=False),
            torch.autocast("cpu", enabled=False),
        ):
            yield
    finally:
        for module, training in modes:
            module.training = training
