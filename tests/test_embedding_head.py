"""The head between a network's map and the vector to search with."""

from pathlib import Path

import pytest
import torch

from ssl_retrieval import backbones, checkpoint, pooling, regions
from ssl_retrieval.embedding_head import POOLS, EmbeddingHead
from ssl_retrieval.errors import UserError


def inputs() -> tuple[torch.nn.Module, torch.Tensor]:
    images = torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    return backbones.make("test_resnet", seed=1), images


def test_poolings_are_those_of_the_library() -> None:
    network, images = inputs()
    maps = network.forward_features(images)  # type: ignore[operator]
    wanted = {
        "avg": pooling.avg(maps),
        "gem": pooling.gem(maps, 4.0),
        "rmac": regions.rmac(maps),
        "model": backbones.own_pooling(network, images),
    }
    assert wanted.keys() | {"cls"} == set(POOLS)
    for pool, vectors in wanted.items():
        torch.testing.assert_close(EmbeddingHead(network, pool, 4.0)(network, images), vectors)


def test_a_trained_exponent_gets_the_gradient_of_a_difference_quotient() -> None:
    network, images = inputs()
    head = EmbeddingHead(network, "gem", 3.0, learn_gem_p=True)
    head(network, images).sum().backward()
    step, sums = 1e-2, []
    for p in (3.0 - step, 3.0 + step):
        sums.append(float(EmbeddingHead(network, "gem", p)(network, images).detach().double().sum()))
    assert head.exponent.grad is not None
    assert float(head.exponent.grad) == pytest.approx((sums[1] - sums[0]) / (2 * step), rel=1e-2)


def test_a_trained_exponent_is_exported(tmp_path: Path) -> None:
    network, images = inputs()
    head = EmbeddingHead(network, "gem", 3.0, dim=4, learn_gem_p=True)
    torch.nn.init.constant_(head.exponent, 5.5)
    spec = {"size": 96, "mean": [0.5] * 3, "std": [0.5] * 3}
    card = checkpoint.Card("test_resnet", "standard", spec)
    checkpoint.save(network, card, tmp_path / "c.safetensors", head)
    stored = checkpoint.read_card(tmp_path / "c.safetensors")
    again = checkpoint.load_head(tmp_path / "c.safetensors", network, stored)
    assert again is not None
    assert again.exponent.item() == 5.5
    with torch.inference_mode():
        torch.testing.assert_close(again(network, images), head(network, images))


def test_an_exponent_without_gem_is_refused() -> None:
    with pytest.raises(UserError, match=r"method\.pool=gem, not for method\.pool=rmac"):
        EmbeddingHead(inputs()[0], "rmac", learn_gem_p=True)
