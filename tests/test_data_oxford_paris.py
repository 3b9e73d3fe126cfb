"""Oxford5k and Paris6k: look-alikes, then the real ground truth of Oxford5k where it is at hand."""

from pathlib import Path

import look_alikes
import numpy as np
import pytest
import tarballs
from look_alikes import OXFORD as NAMES
from look_alikes import lists
from made_up_photos import photo
from sklearn.metrics import average_precision_score

from ssl_retrieval import metrics
from ssl_retrieval.data import oxford_paris
from ssl_retrieval.data.oxford_paris import Config
from ssl_retrieval.errors import UserError
from ssl_retrieval.evaluate import EvaluateConfig, evaluate
from ssl_retrieval.extractors import pixels
from ssl_retrieval.search import relevant_ranks
from ssl_retrieval.types import Task

ARCHIVE = Path(__file__).parents[2] / "shared" / "data" / "oxford5k_groundtruth.tar.xz"


@pytest.fixture
def oxford(tmp_path: Path) -> Path:
    root = look_alikes.oxford(tmp_path / "oxford5k")
    for number, name in enumerate(NAMES):
        photo((40 * number, 90, 160), seed=number, size=(80, 60)).save(root / "jpg" / f"{name}.jpg")
    return root


def test_good_and_ok_are_relevant_and_junk_is_ignored(oxford: Path) -> None:
    task = oxford_paris.load(Config(root=str(oxford)))
    assert task.name == "oxford5k"
    assert task.queries.paths == ("jpg/all_souls_000001.jpg", "jpg/balliol_000005.jpg")
    at = {path: i for i, path in enumerate(task.gallery.paths)}
    first, second, third, fourth, fifth = (at[f"jpg/{name}.jpg"] for name in NAMES)
    assert lists(task.relevant) == [sorted([first, second]), sorted([fourth, fifth])]
    assert lists(task.ignored) == [[third], []]
    assert task.queries.box(0) == (10.5, 5, 60, 50)
    assert task.gallery.boxes is None
    assert (task.protocol.query_crop, task.protocol.self_match) == ("box", "counted")
    assert "mAP_trapezoid" in task.metrics
    assert len(oxford_paris.images(Config(root=str(oxford)))) == 5


def test_the_query_can_be_left_out_and_whole(oxford: Path) -> None:
    task = oxford_paris.load(Config(root=str(oxford), self_match="ignored", query_crop="none"))
    for query, relevant, ignored in zip(task.queries.paths, task.relevant, task.ignored, strict=True):
        itself = task.gallery.paths.index(query)
        assert itself in ignored
        assert itself not in relevant
    assert list(map(len, task.relevant)) == [1, 1]
    assert list(map(len, task.ignored)) == [2, 1]
    assert task.queries.boxes is None
    assert (task.protocol.query_crop, task.protocol.self_match) == ("none", "ignored")


def test_distractors_join_and_keep_boxes(oxford: Path, tmp_path: Path) -> None:
    extra = tmp_path / "oxford100k"
    (extra / "a").mkdir(parents=True)
    (extra / "a" / "1.jpg").touch()
    plain = oxford_paris.load(Config(root=str(oxford)))
    task = oxford_paris.load(Config(root=str(oxford), distractors=str(extra)))
    assert task.name == "oxford5k-1-distractors"
    assert task.gallery.paths[-1] == "oxford100k/a/1.jpg"
    assert task.queries.paths[0] == "oxford5k/jpg/all_souls_000001.jpg"
    assert task.queries.box(0) == plain.queries.box(0)
    assert lists(task.relevant) == lists(plain.relevant)
    assert all(task.queries.file(i).is_file() for i in range(2))
    with pytest.raises(UserError, match="images of the dataset too"):
        oxford_paris.load(Config(root=str(oxford), distractors=str(oxford / "jpg")))


def test_a_damaged_photo_follows_on_error(oxford: Path, tmp_path: Path) -> None:
    (oxford / "jpg" / "all_souls_000002.jpg").write_bytes(b"damaged")
    cfg = EvaluateConfig(out=str(tmp_path / "out"), data=Config(root=str(oxford)), model=pixels.Config())
    report = evaluate(cfg)
    assert report.info["skipped"][0][0] == "jpg/all_souls_000002.jpg"
    assert report.info["num_gallery"] == 4
    assert "mAP_trapezoid" in report.per_query
    cfg.data.on_error = "fail"
    with pytest.raises(UserError, match="cannot read"):
        evaluate(cfg)


def test_mistakes(oxford: Path, tmp_path: Path) -> None:
    def load(**options: str) -> Task:
        return oxford_paris.load(Config(root=str(oxford), **options))

    for options, complaint in [
        ({"set": "oxford"}, "did you mean 'oxford5k'"),
        ({"query_crop": "x"}, "query_crop='x'"),
        ({"self_match": "x"}, "self_match='x'"),
        ({"ground_truth": str(tmp_path / "nowhere")}, "data.ground_truth=.*does not exist"),
        ({"ground_truth": str(tmp_path)}, r"no \*_query.txt"),
    ]:
        with pytest.raises(UserError, match=complaint):
            load(**options)
    (oxford / "jpg" / "all_souls_000002.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 5 images .* \(all_souls_000002\): unpack"):
        load()
    photo((1, 2, 3), 1).save(oxford / "oxford_000004.jpg")
    with pytest.raises(UserError, match=r"two images .* have the same name"):
        load()


@pytest.mark.parametrize(
    ("kind", "text", "complaint"),
    [
        ("query", "oxc1_all_souls_000001 1 2 3", "an image name and four numbers"),
        ("query", "oxc1_all_souls_000001 9 2 3 4", "left below right"),
        ("query", "", "an image name and four numbers"),
        ("junk", "all_souls_000002", "both as junk and as good or ok"),
    ],
)
def test_a_wrong_list_is_named(oxford: Path, kind: str, text: str, complaint: str) -> None:
    (oxford / "gt" / f"all_souls_1_{kind}.txt").write_text(text)
    with pytest.raises(UserError, match=complaint):
        oxford_paris.load(Config(root=str(oxford)))


def test_a_missing_list_is_named(oxford: Path) -> None:
    (oxford / "gt" / "all_souls_1_ok.txt").unlink()
    with pytest.raises(UserError, match=r"all_souls_1_ok.txt': No such file"):
        oxford_paris.load(Config(root=str(oxford)))
    for file in (oxford / "gt").iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"no \*_query.txt"):
        oxford_paris.load(Config(root=str(oxford)))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not ARCHIVE.exists():
        pytest.skip("oxford5k_groundtruth.tar.xz is not beside the repository (../shared/data)")
    root = tmp_path_factory.mktemp("oxford5k")
    tarballs.unpack(ARCHIVE, root)
    (root / "jpg").mkdir()
    for query in oxford_paris.read_ground_truth(root / "oxford5k-groundtruth"):
        for name in (query.image, *query.good, *query.ok, *query.junk):
            (root / "jpg" / f"{name}.jpg").touch()
    for number in range(200):
        (root / "jpg" / f"other_{number:06d}.jpg").touch()
    return root


def test_the_real_ground_truth_is_read_whole(real: Path) -> None:
    queries = oxford_paris.read_ground_truth(real / "oxford5k-groundtruth")
    assert len(queries) == 55
    assert len({query.name.rpartition("_")[0] for query in queries}) == 11
    assert sum(len(query.good) for query in queries) == 1361
    assert sum(len(query.ok) for query in queries) == 1480
    assert sum(len(query.junk) for query in queries) == 1495
    assert queries[0].image == "all_souls_000013"
    assert queries[0].box == (136.5, 34.1, 648.5, 955.7)
    # The classical protocol counts the query's own image, for the lists do.
    assert all(query.image in query.good + query.ok for query in queries)


@pytest.mark.parametrize("self_match", ["counted", "ignored"])
def test_made_up_scores_are_scored_as_by_a_naive_loop(real: Path, self_match: str) -> None:
    task = oxford_paris.load(Config(root=str(real), self_match=self_match))
    queries = oxford_paris.read_ground_truth(real / "oxford5k-groundtruth")
    scores = np.random.default_rng(0).normal(size=(55, len(task.gallery))).astype(np.float32)
    for row, relevant in zip(scores, task.relevant, strict=True):
        row[relevant[::2]] += 2
    ranks = relevant_ranks(scores, np.eye(scores.shape[1], dtype=np.float32), task.relevant, task.ignored)
    trapezoid, standard = (metrics.compute(name, ranks) for name in ("mAP_trapezoid", "mAP"))
    names = [Path(path).stem for path in task.gallery.paths]
    for i, query in enumerate(queries):
        positive = {*query.good, *query.ok}
        junk = set(query.junk)
        if self_match == "ignored":
            positive.discard(query.image)
            junk.add(query.image)
        ranked = [name for _, name in sorted(zip(-scores[i], names, strict=True)) if name not in junk]
        assert trapezoid[i] == pytest.approx(classical_average_precision(ranked, positive))
        kept = np.array([name not in junk for name in names])
        truth = np.array([name in positive for name in names])
        oracle = average_precision_score(truth[kept], scores[i][kept])
        assert standard[i] == pytest.approx(oracle)


def classical_average_precision(ranked: list[str], positive: set[str]) -> float:
    """Walk down the list and add the trapezoids under the precision-recall curve."""
    area, found, recall, precision = 0.0, 0, 0.0, 1.0
    for place, name in enumerate(ranked, start=1):
        found += name in positive
        new_recall, new_precision = found / len(positive), found / place
        area += (new_recall - recall) * (precision + new_precision) / 2
        recall, precision = new_recall, new_precision
    return area
