"""LARS without a look at a single norm on the host: a GPU need not stop for any parameter.

You, Gitman, Ginsburg: Large Batch Training of Convolutional Networks, 2017 (arXiv 1708.03888). lightly's does
the same arithmetic, but asks for two norms per parameter before it goes on.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose rate follows, per weight, the ratio of the norms of weight and gradient.

    Groups without weight decay (biases, normalisation) are updated by plain SGD, as SimCLR and BYOL do.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        eps: float = 1e-8,
    ) -> None:
        """Take parameters or groups of them.

        Args:
            params: As for any optimizer of torch.
            lr: Learning rate.
            momentum: Share of the last update that is kept.
            weight_decay: Added to the gradient, times the weight.
            trust_coefficient: η of the paper.
            eps: Keeps the ratio finite.
        """
        usual = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, usual | {"trust_coefficient": trust_coefficient, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient; ``closure`` is not used."""
        assert closure is None
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if weights:
                self._update(group, weights)

    def _update(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        changes = [p.grad for p in weights if p.grad is not None]
        decay = group["weight_decay"]
        if decay != 0:
            sizes, slopes = torch._foreach_norm(weights), torch._foreach_norm(changes)
            rates = [
                # Where either is 0 there is no ratio: lightly's takes the gradient as it is, without decay.
                torch.where((w > 0) & (g > 0), w / (g + decay * w + group["eps"]), 0.0)
                for w, g in zip(sizes, slopes, strict=True)
            ]
            adapted = torch._foreach_add(changes, weights, alpha=decay)
            torch._foreach_mul_(adapted, rates)
            torch._foreach_mul_(adapted, group["trust_coefficient"])
            changes = [
                torch.where(rate > 0, new, old)
                for rate, new, old in zip(rates, adapted, changes, strict=True)
            ]
        states = [self.state[p] for p in weights]
        new = [(state, change) for state, change in zip(states, changes, strict=True) if not state]
        old = [
            (state["momentum_buffer"], change) for state, change in zip(states, changes, strict=True) if state
        ]
        if old:
            buffers, latest = map(list, zip(*old, strict=True))
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, latest)
        for state, change in new:
            state["momentum_buffer"] = change.clone()
        torch._foreach_add_(weights, [state["momentum_buffer"] for state in states], alpha=-group["lr"])
