"""WiSE-FT: between the weights that training began with and those that it ended with.

Wortsman, Ilharco, Kim et al.: Robust Fine-Tuning of Zero-Shot Models, CVPR 2022 (arXiv 2109.01903).
"""

import torch
from torch import nn

from ssl_retrieval import backbones


@torch.no_grad()
def interpolated(start: nn.Module, trained: nn.Module, share: float) -> nn.Module:
    """Give ``(1 − share) · start + share · trained``, in eval mode.

    Args:
        start: The network that training began with.
        trained: The same network with other weights.
        share: In [0, 1]; counts of batches (whole numbers) are the trained network's.
    """
    between = backbones.copied(start).eval()
    theirs = trained.state_dict()
    for name, tensor in between.state_dict().items():
        if tensor.is_floating_point():
            tensor.lerp_(theirs[name].to(tensor.dtype), share)
        else:
            tensor.copy_(theirs[name])
    return between
