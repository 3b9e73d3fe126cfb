"""Drawn pictures: what they show is known, so the answers are too."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssl_retrieval.data import synthetic
from ssl_retrieval.data.synthetic import COLORS, PATTERNS, SHAPES, Config
from ssl_retrieval.errors import UserError
from ssl_retrieval.evaluate import EvaluateConfig, evaluate
from ssl_retrieval.extractors import color_histogram, hog, pixels


def small(root: Path, **options: object) -> Config:
    return replace(Config(root=str(root), objects=20, views=3, size=32), **options)  # type: ignore[arg-type]


def parts_of(path: str) -> tuple[str, str, str]:
    shape, color, pattern = path.split("/")[2].split("-")
    return shape, color, pattern


def mean_ap(cfg: Config, model: object, out: Path) -> float:
    report = evaluate(EvaluateConfig(out=str(out), data=cfg, model=model))
    return float(np.nanmean(report.per_query["mAP"]))


@pytest.mark.parametrize(("task_name", "part"), [("shape", 0), ("color", 1), ("pattern", 2)])
def test_answers_are_what_the_names_say(tmp_path: Path, task_name: str, part: int) -> None:
    task = synthetic.load(small(tmp_path, task=task_name))
    for i, query in enumerate(task.queries.paths):
        relevant, ignored = [], []
        for j, other in enumerate(task.gallery.paths):
            if parts_of(query) == parts_of(other):
                ignored.append(j)
            elif parts_of(query)[part] == parts_of(other)[part]:
                relevant.append(j)
        assert task.relevant[i].tolist() == relevant
        assert task.ignored[i].tolist() == ignored
    assert task.level == "category"


def test_an_object_has_its_views(tmp_path: Path) -> None:
    task = synthetic.load(small(tmp_path))
    assert task.level == "instance"
    assert len(task.queries) == 60
    assert Counter(map(len, task.relevant)) == {2: 60}
    for path, relevant in zip(task.queries.paths, task.relevant, strict=True):
        assert {parts_of(task.gallery.paths[i]) for i in relevant} == {parts_of(path)}


def test_training_shows_other_objects(tmp_path: Path) -> None:
    for seed in range(3):
        task = synthetic.load(small(tmp_path, seed=seed, objects=54, views=2))
        assert task.fit is not None
        train, test = ({parts_of(path) for path in images.paths} for images in (task.fit, task.gallery))
        assert len(train) == len(test) == 54
        assert not train & test
    assert synthetic.images(small(tmp_path)).paths[0].split("/")[1] == "train"
    assert (
        synthetic.images(small(tmp_path, split="test")).paths == synthetic.load(small(tmp_path)).gallery.paths
    )


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    first, again = (synthetic.images(small(tmp_path / name)) for name in ("a", "b"))
    assert first.paths == again.paths
    assert all(first.file(i).read_bytes() == again.file(i).read_bytes() for i in range(len(first)))
    other = synthetic.images(small(tmp_path / "a", seed=1))
    assert other.paths[0].split("/")[0] != first.paths[0].split("/")[0]
    stamp = first.file(0).stat().st_mtime_ns
    assert synthetic.images(small(tmp_path / "a")).file(0).stat().st_mtime_ns == stamp


def test_without_nuisance_the_answers_are_perfect(tmp_path: Path) -> None:
    plain = small(tmp_path / "plain", nuisance=0.0)
    assert mean_ap(plain, pixels.Config(), tmp_path / "1") == 1
    assert mean_ap(replace(plain, task="shape"), hog.Config(), tmp_path / "2") > 0.95
    hard = small(tmp_path / "hard", nuisance=1.0)
    assert mean_ap(hard, pixels.Config(), tmp_path / "3") < 0.6


def test_each_feature_sees_what_it_is_made_for(tmp_path: Path) -> None:
    cfg = small(tmp_path / "pictures", nuisance=0.2)
    scores = {
        (task, model.name): mean_ap(replace(cfg, task=task), model, tmp_path / task / model.name)
        for task in ("color", "shape")
        for model in (color_histogram.Config(), hog.Config())
    }
    assert scores["color", "color_histogram"] > scores["color", "hog"] + 0.1
    assert scores["shape", "hog"] > scores["shape", "color_histogram"] + 0.1


def test_all_views_are_alike_only_without_nuisance() -> None:
    for shape in SHAPES:
        same = [synthetic.draw(shape, "red", "dots", 0.0, 32, [seed]) for seed in range(2)]
        assert np.array_equal(same[0], same[1])
        other = [synthetic.draw(shape, "red", "dots", 0.3, 32, [seed]) for seed in range(2)]
        assert not np.array_equal(other[0], other[1])


def test_shapes_have_the_same_area() -> None:
    for corners in SHAPES.values():
        x, y = corners.T
        assert abs(sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2 == pytest.approx(math.pi)
    inked = [(synthetic.draw(shape, "blue", "plain", 0.0, 64, [0])[..., 0] < 120).sum() for shape in SHAPES]
    assert max(inked) < 1.1 * min(inked)
    assert len(COLORS) == len(set(COLORS.values()))
    assert set(PATTERNS) == {"plain", "stripes", "dots"}


def test_pictures_are_files_of_the_size(tmp_path: Path) -> None:
    images = synthetic.images(small(tmp_path))
    with Image.open(images.file(0)) as image:
        assert (image.size, image.mode) == ((32, 32), "RGB")


def test_mistakes(tmp_path: Path) -> None:
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"task": "colour"}, "did you mean 'color'"),
        ({"objects": 55}, "data.objects=55: from 2 to 54"),
        ({"views": 1}, "data.views=1"),
        ({"nuisance": 1.5}, "data.nuisance=1.5: from 0 to 1"),
        ({"nuisance": math.nan}, "data.nuisance=nan"),
        ({"size": 8}, "data.size=8"),
        ({"on_error": "x"}, "on_error='x'"),
    ]
    for options, complaint in mistakes:
        with pytest.raises(UserError, match=complaint):
            synthetic.load(small(tmp_path, **options))
    with pytest.raises(UserError, match=r"data.split='x'"):
        synthetic.images(small(tmp_path, split="x"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot draw to .*set data.root"):
        synthetic.load(small(tmp_path / "file"))
