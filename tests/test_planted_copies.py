"""Copies that are made to see whether they would be found."""

import numpy as np
import pytest
from PIL import Image
from test_perceptual_hash import scene

from ssl_retrieval.perceptual_hash import hash_image
from ssl_retrieval.planted_copies import COPIES, copied, found_shares
from ssl_retrieval.postprocess import l2_normalize
from ssl_retrieval.types import ImageSet, VectorArray


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    root = tmp_path_factory.mktemp("planted")
    for seed in range(6):
        scene(seed).save(root / f"{seed}.png")
    (root / "broken.png").write_bytes(b"no image")
    return ImageSet(root, (*(f"{seed}.png" for seed in range(6)), "broken.png"))


def mean_colour(pictures: list[Image.Image]) -> VectorArray:
    return l2_normalize(np.array([np.asarray(p, np.float32).mean(axis=(0, 1)) for p in pictures]))


def test_shares_are_those_of_a_plain_loop(images: ImageSet) -> None:
    table = found_shares(images, 100, max_hamming=6, min_cosine=0.9999, embed=mean_colour)
    originals = [scene(seed) for seed in range(6)]
    assert table["copy"].tolist() == list(COPIES)
    assert set(table["num_images"]) == {6}
    for row, steps in zip(table.to_dict("records"), COPIES.values(), strict=True):
        by_hash, by_embedding = [], []
        generator = np.random.default_rng(0)
        for original in originals:
            copy = copied(original, steps, generator)
            codes, of_copy = hash_image(original), hash_image(copy)
            assert codes is not None
            assert of_copy is not None
            bits = [int(np.bitwise_count(codes[0] ^ code).sum()) for code in of_copy]
            by_hash.append(min(bits) <= 6)
            cosine = float((mean_colour([original]) @ mean_colour([copy]).T)[0, 0])
            by_embedding.append(cosine >= 0.9999)
        assert row["hash"] == pytest.approx(np.mean(by_hash))
        assert row["embedding"] == pytest.approx(np.mean(by_embedding))
        assert row["either"] == pytest.approx(np.mean(np.array(by_hash) | np.array(by_embedding)))


def test_without_vectors_only_the_hash_counts(images: ImageSet) -> None:
    table = found_shares(images, 3, max_hamming=8, min_cosine=0.9)
    assert table["embedding"].isna().all()
    assert table["either"].tolist() == table["hash"].tolist()
    assert (table.loc[:3, "hash"] == 1).all()


def test_steps_follow_one_another() -> None:
    image = scene(1, (100, 60))
    copy = copied(image, {"flip": 1, "scale": 0.5}, np.random.default_rng(0))
    wanted = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((50, 30), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(np.asarray(copy), np.asarray(wanted))
