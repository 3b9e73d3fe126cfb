"""LARS against lightly's, parameter by parameter and step by step."""

import pytest
import torch
from lightly.utils import lars as lars_of_lightly
from torch import Tensor, nn

from ssl_retrieval.lars import LARS


def parameters() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((5, 3), (4,), (2, 3, 3, 3), (6, 6), (3, 3))
    made: list[Tensor] = [nn.Parameter(torch.randn(size, generator=generator)) for size in sizes]
    with torch.no_grad():
        made[3].zero_()
    return made


def groups(made: list[Tensor]) -> list[dict]:
    return [
        {"params": [made[0], made[2], made[3], made[4]], "weight_decay": 1e-2},
        {"params": [made[1]], "weight_decay": 0.0, "lr": 0.05},
    ]


@pytest.mark.parametrize("momentum", [0.9, 0.5])
def test_lars_is_lightlys(momentum: float) -> None:
    ours, theirs = parameters(), parameters()
    mine = LARS(groups(ours), lr=0.3, momentum=momentum)
    other = lars_of_lightly.LARS(groups(theirs), lr=0.3, momentum=momentum)
    generator = torch.Generator().manual_seed(1)
    for step in range(6):
        for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            gradient = torch.randn(a.shape, generator=generator)
            # One weight without a gradient now and then, one whose gradient is 0.
            if number == 4:
                gradient = torch.zeros_like(gradient)
            skipped = number == 2 and step in (0, 3)
            a.grad, b.grad = (None, None) if skipped else (gradient, gradient.clone())
        for optimizer in (mine, other):
            optimizer.param_groups[0]["lr"] = 0.3 * (step + 1) / 6
            optimizer.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_a_stored_state_goes_on_to_the_same_weights() -> None:
    straight, broken = parameters(), parameters()
    generator = torch.Generator().manual_seed(2)
    gradients = [[torch.randn(p.shape, generator=generator) for p in straight] for _ in range(4)]
    first, second = LARS(groups(straight), lr=0.1), LARS(groups(broken), lr=0.1)
    for step, row in enumerate(gradients):
        for optimizer, weights in ((first, straight), (second, broken)):
            for weight, gradient in zip(weights, row, strict=True):
                weight.grad = gradient
            optimizer.step()
        if step == 1:
            state = second.state_dict()
            second = LARS(groups(broken), lr=0.1)
            second.load_state_dict(state)
    for a, b in zip(straight, broken, strict=True):
        assert torch.equal(a, b)
