"""ROxford5k and RParis6k: look-alikes, and a pickle that would run something."""

import os
import pickle
from pathlib import Path
from typing import Any

import look_alikes
import numpy as np
import pytest
from look_alikes import REVISITED as GROUND_TRUTH
from look_alikes import REVISITED_GALLERY as GALLERY
from look_alikes import REVISITED_QUERIES as QUERIES
from look_alikes import lists

from ssl_retrieval import metrics
from ssl_retrieval.data import revisited
from ssl_retrieval.data.revisited import Config
from ssl_retrieval.errors import UserError
from ssl_retrieval.search import relevant_ranks


def write(root: Path, content: Any, protocol: int = 4) -> None:
    (root / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(content, protocol))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return look_alikes.revisited(tmp_path / "roxford5k")


@pytest.mark.parametrize(
    ("difficulty", "relevant", "ignored"),
    [
        ("easy", [[0, 4], []], [[1, 2], [3]]),
        ("medium", [[0, 1, 4], [3]], [[2], []]),
        ("hard", [[1], [3]], [[0, 2, 4], []]),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_difficulties(root: Path, protocol: int, difficulty: str, relevant: Any, ignored: Any) -> None:
    write(root, GROUND_TRUTH, protocol)
    task = revisited.load(Config(root=str(root), difficulty=difficulty))
    assert task.name == f"roxford5k-{difficulty}"
    assert task.gallery.paths == tuple(f"jpg/{name}.jpg" for name in GALLERY)
    assert task.queries.paths == tuple(f"jpg/{name}.jpg" for name in QUERIES)
    assert lists(task.relevant) == relevant
    assert lists(task.ignored) == ignored
    assert task.queries.box(0) == (1.5, 2, 30, 40)
    assert {"mAP_trapezoid", "precision_revisited@5", "precision_revisited@10"} <= set(task.metrics)
    assert difficulty in task.description


def test_scores_follow_the_benchmark(root: Path) -> None:
    task = revisited.load(Config(root=str(root), difficulty="hard"))
    # Item 1 is fourth, behind two easy and one junk one, all of which are deleted before ranking.
    scores = np.array([[0.9, 0.6, 0.8, 0.1, 0.7, 0.0], [0.1, 0.2, 0.9, 0.8, 0, 0]], np.float32)
    ranks = relevant_ranks(scores, np.eye(6, dtype=np.float32), task.relevant, task.ignored)
    assert metrics.compute("mAP_trapezoid", ranks).tolist() == [1.0, 0.25]
    easy = revisited.load(Config(root=str(root), difficulty="easy"))
    ranks = relevant_ranks(scores, np.eye(6, dtype=np.float32), easy.relevant, easy.ignored)
    assert np.isnan(metrics.compute("mAP_trapezoid", ranks)).tolist() == [False, True]


def test_the_query_can_stay_whole(root: Path) -> None:
    task = revisited.load(Config(root=str(root), query_crop="none"))
    assert task.queries.boxes is None
    assert task.protocol.query_crop == "none"
    assert revisited.images(Config(root=str(root))).paths == task.gallery.paths


def test_a_million_distractors_join(root: Path, tmp_path: Path) -> None:
    (tmp_path / "revisitop1m").mkdir()
    (tmp_path / "revisitop1m" / "1.jpg").touch()
    task = revisited.load(Config(root=str(root), distractors=str(tmp_path / "revisitop1m")))
    assert task.name == "roxford5k-medium-1-distractors"
    assert task.gallery.paths[-1] == "revisitop1m/1.jpg"
    assert lists(task.relevant) == [[0, 1, 4], [3]]


@pytest.mark.parametrize("difficulty", ["easy", "medium", "hard"])
def test_a_query_that_stands_in_the_gallery_is_ignored_there(root: Path, difficulty: str) -> None:
    # Number 4 is easy for the first query; number 5 is in no list of the second.
    write(root, GROUND_TRUTH | {"qimlist": [GALLERY[4], GALLERY[5]]})
    before = {"easy": [[0], []], "medium": [[0, 1], [3]], "hard": [[1], [3]]}[difficulty]
    task = revisited.load(Config(root=str(root), difficulty=difficulty))
    assert lists(task.relevant) == before
    assert 4 in task.ignored[0]
    assert 5 in task.ignored[1]


class Malice:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


def test_a_pickle_is_never_run(root: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for content in (Malice(trace), GROUND_TRUTH | {"gnd": [Malice(trace)]}):
        write(root, content)
        with pytest.raises(UserError, match="refused, it calls"):
            revisited.load(Config(root=str(root)))
    assert not trace.exists()


def changed(**changes: Any) -> dict[str, Any]:
    entry = {"bbx": [0, 0, 1, 1], "easy": [0], "hard": [1], "junk": [2]} | changes
    return {"imlist": GALLERY, "qimlist": QUERIES[:1], "gnd": [entry]}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (changed(easy=[6]), "whole numbers from 0 to 5"),
        (changed(easy=[-1]), "whole numbers from 0 to 5"),
        (changed(easy=[0.5]), "whole numbers from 0 to 5"),
        (changed(easy=[True]), "whole numbers from 0 to 5"),
        (changed(easy=[2**80]), "whole numbers from 0 to 5"),
        (changed(easy=["a"]), "whole numbers from 0 to 5"),
        (changed(easy=[[0], [1, 2]]), "is no ground truth of revisitop"),
        (changed(easy=[1]), "lists of query 'oxford_000100' overlap"),
        (changed(bbx=[1, 2, 3]), "is no ground truth of revisitop"),
        (changed(bbx=[5, 0, 1, 1]), "left below right"),
        (changed() | {"gnd": []}, "is no ground truth of revisitop"),
        (changed() | {"imlist": "text"}, "no list of texts"),
        ({"imlist": GALLERY}, "KeyError: 'qimlist'"),
        ([1, 2], "is no ground truth of revisitop"),
    ],
)
def test_other_content_is_named(root: Path, content: Any, complaint: str) -> None:
    write(root, content)
    with pytest.raises(UserError, match=complaint):
        revisited.load(Config(root=str(root)))


def test_mistakes(root: Path) -> None:
    for options, complaint in [
        ({"set": "roxford"}, "did you mean 'roxford5k'"),
        ({"set": "rparis6k"}, r"no ground truth .*gnd_rparis6k.pkl'"),
        ({"difficulty": "middle"}, "data.difficulty='middle'"),
        ({"query_crop": "x"}, "query_crop='x'"),
        ({"ground_truth": "nowhere.pkl"}, r"no ground truth 'nowhere.pkl'"),
        ({"root": str(root.parent)}, f"data.root='{root}' has it"),
    ]:
        with pytest.raises(UserError, match=complaint):
            revisited.load(Config(**({"root": str(root)} | options)))
    (root / "jpg" / "all_souls_000005.jpg").unlink()
    (root / "jpg" / "oxford_000100.jpg").unlink()
    with pytest.raises(UserError, match=r"2 of 8 images .*\(all_souls_000005, oxford_000100\)"):
        revisited.load(Config(root=str(root)))
