"""Teachers: copied at the start, moved by the formula, never in a student's mode."""

import pytest
import torch
from timm.layers.drop import DropPath
from torch import nn

from ssl_retrieval import ema


def student() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), DropPath(0.5))


def test_a_teacher_is_a_copy_that_nothing_trains() -> None:
    network = student()
    teacher = ema.copy_of(network)
    for own, other in zip(teacher.parameters(), network.parameters(), strict=True):
        assert torch.equal(own, other)
        assert not own.requires_grad
        assert other.requires_grad
    with torch.no_grad():
        next(network.parameters()).add_(1)
    assert not torch.equal(next(teacher.parameters()), next(network.parameters()))


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.996, 1.0])
def test_an_update_follows_the_formula(momentum: float) -> None:
    network = student()
    teacher = ema.copy_of(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    pairs = zip(teacher.parameters(), network.parameters(), strict=True)
    expected = [momentum * own + (1 - momentum) * other.detach() for own, other in pairs]
    ema.update(teacher, network, momentum)
    for own, wanted in zip(teacher.parameters(), expected, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-5, atol=1e-7)


def test_a_teachers_statistics_are_those_of_its_own_activations() -> None:
    network = student()
    teacher = ema.copy_of(network)
    network.train()
    ema.mirror_mode(teacher, network)
    inputs = torch.randn(64, 3)
    with torch.no_grad():
        teacher(inputs)
        mean = teacher[0](inputs).mean(0)
    before = teacher.get_buffer("1.running_mean").clone()
    torch.testing.assert_close(before, 0.1 * mean)
    ema.update(teacher, network, 0.5)
    assert torch.equal(teacher.get_buffer("1.running_mean"), before)
    assert torch.equal(network.get_buffer("1.running_mean"), torch.zeros(4))


def test_a_teacher_drops_nothing_and_keeps_statistics_as_its_student_does() -> None:
    network = student()
    teacher = ema.copy_of(network)
    network.train()
    ema.mirror_mode(teacher, network)
    assert [module.training for module in teacher] == [False, True, False, False]
    network[1].eval()
    ema.mirror_mode(teacher, network)
    assert not any(module.training for module in teacher)
