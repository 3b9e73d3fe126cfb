"""Extractors that learn first: taught once, from what can be read, and recalled from a file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from made_up_photos import write_flat_photos
from PIL import Image
from safetensors import safe_open
from tiny_extractors import Learner, LearnerConfig, make, mean_colour
from torch import Tensor, nn

from ssl_retrieval import learning
from ssl_retrieval.errors import UserError
from ssl_retrieval.extractors import pixels
from ssl_retrieval.representation import Representation
from ssl_retrieval.types import ImageSet


@pytest.fixture
def photos(tmp_path: Path) -> ImageSet:
    root = write_flat_photos(tmp_path / "photos", 9)
    return ImageSet(root, tuple(f"{number}.png" for number in range(9)))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "learned.safetensors"


def taught(
    photos: ImageSet,
    file: Path,
    cfg: LearnerConfig | None = None,
    image_size: int | None = None,
    on_error: str = "skip",
) -> Learner:
    representation = make("words", cfg or LearnerConfig())
    learning.teach(representation, photos, file, image_size=image_size, on_error=on_error)
    extractor = representation.extractor
    assert isinstance(extractor, Learner)
    return extractor


def test_who_learns() -> None:
    assert learning.learns(make("words", LearnerConfig()))
    assert not learning.learns(make("words", LearnerConfig(learns=False)))
    assert not learning.learns(Representation.make("p", pixels.Config(), torch.device("cpu")))


def test_all_images_are_learned_from_in_order(photos: ImageSet, file: Path) -> None:
    extractor = taught(photos, file)
    (materials,) = extractor.lessons
    for number, material in enumerate(materials):
        with Image.open(photos.file(number)) as image:
            assert torch.equal(material[0], mean_colour(image))
    assert len(materials) == 9
    assert extractor.words is not None
    assert torch.equal(extractor.words, torch.cat(materials)[:4])
    assert extractor.dim == 4


def test_more_images_than_wait_at_once(tmp_path: Path, file: Path) -> None:
    root = write_flat_photos(tmp_path / "many", 70)
    many = ImageSet(root, tuple(f"{number}.png" for number in range(70)))
    (materials,) = taught(many, file, LearnerConfig(words=70)).lessons
    with Image.open(many.file(69)) as image:
        assert torch.equal(materials[69][0], mean_colour(image))


def test_the_second_time_it_is_read(photos: ImageSet, file: Path) -> None:
    first, second = taught(photos, file), taught(photos, file)
    assert [len(extractor.lessons) for extractor in (first, second)] == [1, 0]
    assert first.words is not None
    assert second.words is not None
    assert torch.equal(first.words, second.words)
    assert first.weights_digest == second.weights_digest
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_one_that_has_learned_before_reads_its_own_file(photos: ImageSet, file: Path) -> None:
    representation = make("words", LearnerConfig())
    for number in range(2):
        some = photos.take(np.arange(3 + number, dtype=np.int64))
        other = file.with_name(f"{number}.safetensors")
        for _ in range(2):
            learning.teach(representation, some, other, image_size=None, on_error="skip")
        assert representation.extractor.dim == 3 + number
        assert len(representation.extractor.lessons) == 1 + number, "its dimension is no part of the key"


def test_it_learns_again_when_anything_has_changed(photos: ImageSet, file: Path) -> None:
    taught(photos, file)
    assert len(taught(photos, file, LearnerConfig(words=3)).lessons) == 1
    assert len(taught(photos, file, LearnerConfig(words=3), image_size=8).lessons) == 1
    assert len(taught(photos, file, LearnerConfig(words=3), image_size=8).lessons) == 0
    fewer = photos.take(np.arange(5, dtype=np.int64))
    assert len(taught(fewer, file).lessons) == 1
    Image.new("RGB", (9, 9), "red").save(fewer.file(2))
    assert len(taught(fewer, file).lessons) == 1
    assert len(taught(fewer, file).lessons) == 0


def test_another_network_inside_is_another_lesson(photos: ImageSet, file: Path) -> None:
    representation = make("words", LearnerConfig())
    for digest, lessons in (("a", 1), ("a", 1), ("b", 2)):
        representation.extractor.network_digest = digest
        learning.teach(representation, photos, file, image_size=None, on_error="skip")
        assert len(representation.extractor.lessons) == lessons


def test_images_are_reduced_first(photos: ImageSet, file: Path) -> None:
    sizes = []

    class Looking(Learner):
        def material(self, image: Image.Image) -> Tensor:
            sizes.append(image.size)
            return super().material(image)

    cfg = LearnerConfig()
    representation = Representation("words", cfg, Looking(cfg), torch.device("cpu"))
    learning.teach(representation, photos, file, image_size=15, on_error="skip")
    assert set(sizes) == {(20, 15)}


@pytest.mark.parametrize("content", [b"", b"no tensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{"])
def test_a_damaged_file_is_written_anew(
    photos: ImageSet, file: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    taught(photos, file)
    whole = file.read_bytes()
    for damaged in (content, whole[:-4]):
        file.write_bytes(damaged)
        assert len(taught(photos, file).lessons) == 1
        assert "damaged; learning again" in capsys.readouterr().err
        assert file.read_bytes() == whole


def test_a_file_of_someone_elses_is_written_anew(photos: ImageSet, file: Path) -> None:
    from safetensors.torch import save_file

    file.parent.mkdir()
    save_file({"words": torch.ones(3, 2)}, file)
    assert len(taught(photos, file).lessons) == 1
    with safe_open(file, "pt") as content:
        assert content.metadata().keys() == {"key"}


def test_unreadable_images_are_left_out_and_told(
    photos: ImageSet, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos.file(0).write_bytes(b"")
    photos.file(4).write_text("no image")
    (materials,) = taught(photos, file).lessons
    assert len(materials) == 7
    told = capsys.readouterr().err
    assert "2 unreadable images left out of what words learns from" in told
    assert "4.png: not an image" in told


def test_unreadable_images_can_stop_it(photos: ImageSet, file: Path) -> None:
    photos.file(4).write_text("no image")
    with pytest.raises(UserError, match=r"cannot read .*4\.png': not an image") as caught:
        taught(photos, file, on_error="fail")
    assert "\n" not in str(caught.value)
    assert not file.exists()


def test_nothing_readable_is_refused(photos: ImageSet, file: Path) -> None:
    for number in range(len(photos)):
        photos.file(number).write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the 9 images .*'0\.png': empty file") as caught:
        taught(photos, file)
    assert "\n" not in str(caught.value)
    assert not file.exists()


def test_material_remembers_no_gradients(photos: ImageSet, file: Path) -> None:
    class Networked(Learner):
        def __init__(self, cfg: LearnerConfig) -> None:
            super().__init__(cfg)
            self.network = nn.Linear(3, 3)

        def material(self, image: Image.Image) -> Tensor:
            return self.network(super().material(image))

    cfg = LearnerConfig()
    extractor = Networked(cfg)
    representation = Representation("words", cfg, extractor, torch.device("cpu"))
    learning.teach(representation, photos, file, image_size=None, on_error="skip")
    assert not any(material.requires_grad for material in extractor.lessons[0])


def test_recall_gives_back_what_was_learned(photos: ImageSet, file: Path) -> None:
    words = taught(photos, file).words
    later = make("words", LearnerConfig(words=99))
    learning.recall(later, file)
    assert words is not None
    assert torch.equal(later.extractor.words, words)


def test_recall_of_nothing_is_one_line(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    representation = make("words", LearnerConfig())
    with pytest.raises(UserError, match=r"what 'words' has learned cannot be read: run `embed` again"):
        learning.recall(representation, file)
    file.parent.mkdir()
    file.write_text("no tensors")
    with pytest.raises(UserError, match=r"what 'words' has learned cannot be read"):
        learning.recall(representation, file)
    assert "learning again" not in capsys.readouterr().err
