"""What a probe holds: the same photos for every network, whole files, networks left as they were."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from ssl_retrieval.adaptation.probe import FAMILIES, IDENTITY, Probe, take
from ssl_retrieval.backbones import own_pooling
from ssl_retrieval.errors import UserError
from ssl_retrieval.images import list_images
from ssl_retrieval.network_input import InputSpec
from ssl_retrieval.packing import pack
from ssl_retrieval.types import ImageSet

SPEC = InputSpec(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NAMES = {IDENTITY, *(name for family in FAMILIES.values() for name in family)}


def pixels(batch: Tensor) -> Tensor:
    return nn.functional.adaptive_avg_pool2d(batch, 4).flatten(1)


@pytest.fixture
def photos(tmp_path: Path) -> ImageSet:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        coarse = Image.fromarray(rng.integers(256, size=(5, 5, 3), dtype=np.uint8))
        coarse.resize((48, 40)).save(folder / f"{number}.png")
    return ImageSet(folder, tuple(list_images(folder)))


def test_every_alteration_of_every_photo_is_embedded(photos: ImageSet) -> None:
    probe = take(pixels, SPEC, photos, seed=0, device="cpu")
    assert probe.vectors.keys() == NAMES
    assert probe.ids == photos.paths
    for vectors in probe.vectors.values():
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    with Image.open(photos.file(2)) as image:
        expected = pixels(SPEC(image.convert("RGB"))[None])[0].numpy()
    np.testing.assert_allclose(probe.photos[2], expected / np.linalg.norm(expected), atol=1e-5)
    assert not np.allclose(probe.vectors["gray"], probe.photos)


def test_two_networks_see_the_same_photos_altered_alike(photos: ImageSet) -> None:
    first = take(pixels, SPEC, photos, limit=4, seed=3, device="cpu")
    second = take(lambda batch: 2 * pixels(batch), SPEC, photos, limit=4, seed=3, device="cpu")
    assert first.ids == second.ids
    assert len(first) == 4
    for name in NAMES:
        np.testing.assert_allclose(first.vectors[name], second.vectors[name], atol=1e-6)


def test_packed_photos_are_taken_as_they_are(photos: ImageSet, tmp_path: Path) -> None:
    packed = pack(photos, 40, tmp_path / "packed.npy", "skip")
    probe = take(pixels, SPEC, packed, seed=0, device="cpu")
    assert probe.ids == packed.paths


def test_a_network_pools_as_it_does_and_is_left_as_it_was(photos: ImageSet) -> None:
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=0)
    network.train()
    first = network.get_submodule("layer1").eval()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    probe = take(network, SPEC, photos, seed=0, device="cpu")
    assert network.training
    assert not first.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    with Image.open(photos.file(0)) as image, torch.no_grad():
        expected = own_pooling(network.eval(), SPEC(image.convert("RGB"))[None])[0].numpy()
    np.testing.assert_allclose(probe.photos[0], expected / np.linalg.norm(expected), atol=1e-4)


def test_copies_of_a_photo_count_once_and_broken_files_not(photos: ImageSet) -> None:
    for number in range(12):
        (photos.root / f"copy{number}.png").write_bytes(photos.file(0).read_bytes())
    (photos.root / "broken.jpg").write_bytes(b"nothing")
    every = ImageSet(photos.root, tuple(list_images(photos.root)))
    assert len(take(pixels, SPEC, every, seed=0, device="cpu")) == 6


def test_only_broken_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    with pytest.raises(UserError, match="none of the photos can be read"):
        take(pixels, SPEC, ImageSet(tmp_path, ("broken.jpg",)), seed=0, device="cpu")


def test_a_broken_network_gives_a_probe_that_says_so(photos: ImageSet) -> None:
    probe = take(lambda batch: pixels(batch) * float("nan"), SPEC, photos, seed=0, device="cpu")
    assert not probe.is_finite


def test_a_probe_is_read_back(photos: ImageSet, tmp_path: Path) -> None:
    probe = take(pixels, SPEC, photos, seed=0, device="cpu")
    probe.save(tmp_path / "probe")
    found = Probe.load(tmp_path / "probe")
    assert found.ids == probe.ids
    assert found.vectors.keys() == probe.vectors.keys()
    for name, vectors in probe.vectors.items():
        np.testing.assert_allclose(found.vectors[name], vectors, atol=1e-3)
        assert found.vectors[name].dtype == np.float32
    assert [file.name for file in (tmp_path / "probe").iterdir()] == ["probe.npz"]


def test_missing_and_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no probe"):
        Probe.load(tmp_path)
    (tmp_path / "probe.npz").write_bytes(b"PK nothing")
    with pytest.raises(UserError, match="damaged"):
        Probe.load(tmp_path)
    np.savez(tmp_path / "probe.npz", ids=np.array(["a"], object))  # pickled, as a foreign file may be
    with pytest.raises(UserError, match="damaged"):
        Probe.load(tmp_path)
