"""Folded batch normalisation: the same outputs, fewer layers, the original untouched."""

import pytest
import torch
from torch import Tensor, nn

from ssl_retrieval import backbones
from ssl_retrieval.folding import fold

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def with_statistics(model: nn.Module) -> nn.Module:
    """Give batch normalisation something to do: statistics and factors that are not 0 and 1."""
    draw = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            for values, low in ((module.running_mean, -0.1), (module.running_var, 0.5)):
                values.copy_(torch.rand(values.shape, generator=draw) + low)
            module.weight.data.copy_(torch.rand(module.weight.shape, generator=draw) + 0.5)
            module.bias.data.copy_(torch.rand(module.bias.shape, generator=draw) - 0.5)
    return model


@pytest.mark.parametrize(
    "name", ["resnet10t", "tf_efficientnet_lite0", "mobilenetv3_small_050", "regnetx_002"]
)
def test_all_normalisation_goes_and_the_output_stays(name: str) -> None:
    model = with_statistics(backbones.make(name, "random"))
    folded = fold(model, IMAGES[:1])
    assert norms(model) > 5
    assert norms(folded) == 0
    with torch.inference_mode():
        ours, theirs = folded(IMAGES), model(IMAGES)
    assert float((ours - theirs).abs().max()) < 1e-4 * float(theirs.abs().max())


@pytest.mark.parametrize("name", ["convnext_atto", "test_vit"])
def test_a_network_without_it_is_given_back(name: str) -> None:
    model = backbones.make(name, "random", image_size=64 if name == "test_vit" else None)
    assert fold(model, IMAGES[:1]) is model


class Shared(nn.Module):
    """One convolution before two normalisations, and its output used once more."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.twice = twice

    def forward(self, images: Tensor) -> Tensor:
        raw = self.conv(images)
        one: Tensor = self.one(raw)
        return one + (self.two(self.conv(images)) if self.twice else raw)


@pytest.mark.parametrize("twice", [False, True])
def test_a_convolution_that_others_need_is_left_alone(twice: bool) -> None:
    model = with_statistics(Shared(twice)).eval()
    assert fold(model, IMAGES) is model


def test_a_network_in_training_is_left_alone() -> None:
    model = backbones.make("resnet10t", "random").train()
    assert fold(model, IMAGES) is model
