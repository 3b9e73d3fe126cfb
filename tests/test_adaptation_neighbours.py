"""What two networks find for some photos, side by side."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_retrieval import backbones, checkpoint
from ssl_retrieval.adaptation import neighbours
from ssl_retrieval.adaptation.neighbours import examples
from ssl_retrieval.images import list_images
from ssl_retrieval.network_input import InputSpec
from ssl_retrieval.packed import Packed
from ssl_retrieval.packing import pack
from ssl_retrieval.types import ImageSet

CPU = torch.device("cpu")


@pytest.fixture
def packed(photos: Path, tmp_path: Path) -> Packed:
    return pack(ImageSet(photos, tuple(list_images(photos))), 40, tmp_path / "photos.npy", "skip")


def network(file: Path, seed: int) -> Path:
    spec = InputSpec(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    model = backbones.make("test_resnet", seed=seed)
    checkpoint.save(model, checkpoint.Card("test_resnet", "standard", spec.to_dict()), file)
    return file


def test_the_same_network_finds_the_same(packed: Packed, tmp_path: Path) -> None:
    start = network(tmp_path / "a.safetensors", 1)
    shown = examples(packed, start, start, 0, CPU)
    assert [one.before for one in shown] == [one.after for one in shown]
    assert len(shown) == neighbours.NUM_RANDOM + neighbours.NUM_CHANGED
    assert len({one.photo for one in shown}) == len(shown)


def test_neighbours_are_others_and_the_most_changed_come_first(packed: Packed, tmp_path: Path) -> None:
    start, other = (network(tmp_path / f"{seed}.safetensors", seed) for seed in (1, 2))
    shown = examples(packed, start, other, 0, CPU)
    for one in shown:
        assert one.photo not in one.before + one.after
        assert len(set(one.before)) == len(set(one.after)) == neighbours.NUM_SHOWN
    kept = [len(set(one.before) & set(one.after)) for one in shown if "changed most" in one.why]
    assert kept == sorted(kept)
    assert examples(packed, start, other, 0, CPU) == shown


def test_two_photos_find_each_other(packed: Packed, tmp_path: Path) -> None:
    two = Packed(np.asarray(packed.pixels[:2]), packed.paths[:2], ())
    start = network(tmp_path / "a.safetensors", 1)
    shown = examples(two, start, start, 0, CPU)
    assert {one.photo: one.before for one in shown} == {
        packed.paths[0]: (packed.paths[1],),
        packed.paths[1]: (packed.paths[0],),
    }
