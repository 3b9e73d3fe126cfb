"""Tasks in one gallery, against the tasks themselves; and through ``compare``."""

from pathlib import Path
from typing import Any

import look_alike_classes as made
import look_alikes
import numpy as np
import pytest
from command_line import Command
from made_up_photos import COLOURS, photo

from ssl_retrieval import config, metrics, plugins
from ssl_retrieval.data import merged
from ssl_retrieval.errors import UserError
from ssl_retrieval.search import relevant_ranks
from ssl_retrieval.types import Task


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Birds by class, landmarks by list, copies of which some match nothing, boxes with junk."""
    made.cub200(tmp_path / "birds")
    look_alikes.gldv2(tmp_path / "landmarks")
    look_alikes.oxford(tmp_path / "oxford")
    look_alikes.disc21(tmp_path / "copies")
    return tmp_path


PARTS: dict[str, dict[str, Any]] = {
    "birds": {"name": "cub200", "root": "birds"},
    "landmarks": {"name": "gldv2", "root": "landmarks"},
    "copies": {"name": "disc21", "root": "copies"},
    "oxford": {"name": "oxford_paris", "root": "oxford"},
}


def section(root: Path, parts: dict[str, Any] | None = None, **options: Any) -> Any:
    tree = {"name": "merged", "root": str(root), "parts": parts or PARTS} | options
    return config.plugin_config("dataset", tree, "data")


def alone(root: Path, label: str) -> Task:
    cfg = config.plugin_config("dataset", PARTS[label] | {"root": str(root / label)}, "data")
    task: Task = plugins.find("dataset", cfg.name).load(cfg)
    return task


def found(task: Task, lists: tuple) -> list[set[Path]]:
    return [{task.gallery.file(i).resolve() for i in indices} for indices in lists]


@pytest.mark.parametrize("domain", PARTS)
def test_a_domain_keeps_its_answers_in_the_gallery_of_all(root: Path, domain: str) -> None:
    task, own = merged.load(section(root, domain=domain)), alone(root, domain)
    files = [task.queries.file(i) for i in range(len(task.queries))]
    assert files == [own.queries.file(i).resolve() for i in range(len(own.queries))]
    assert found(task, task.relevant) == found(own, own.relevant)
    assert found(task, task.ignored) == found(own, own.ignored)
    assert len(task.gallery) == sum(len(alone(root, label).gallery) for label in PARTS)
    assert (task.level, task.protocol, task.metrics) == (own.level, own.protocol, ("mMP@5", *own.metrics))
    boxes = [(task.queries.box(i), own.queries.box(i)) for i in range(len(own.queries))]
    assert all(ours == theirs for ours, theirs in boxes)
    assert task.gallery.boxes is None
    assert task.name == f"{own.name}-among-4-sets"


def test_all_domains_share_ids_and_labels_that_never_collide(root: Path) -> None:
    domains = [merged.load(section(root, domain=domain)) for domain in PARTS]
    assert len({task.gallery.paths for task in domains}) == 1
    for task in domains:
        assert task.queries.class_names == task.gallery.class_names
        assert task.queries.labels is not None
        assert task.gallery.labels is not None
        part_of = [task.gallery.class_names[label].split("/")[0] for label in task.gallery.labels]
        assert part_of == [path.split("/")[0] for path in task.gallery.paths]
    assert domains[0].fit is not None
    assert {path.split("/")[0] for path in domains[0].fit.paths} == {"birds"}


def test_all_queries_search_together(root: Path) -> None:
    parts = {label: PARTS[label] for label in ("birds", "landmarks")}
    task = merged.load(section(root, parts))
    assert task.name == "all-among-2-sets"
    assert task.level == "instance"
    assert len(task.queries) == 6 + 1
    assert found(task, task.relevant) == [
        files for label in parts for files in found(alone(root, label), alone(root, label).relevant)
    ]
    own_metrics = [name for label in parts for name in alone(root, label).metrics]
    assert list(task.metrics) == ["mMP@5", *own_metrics]
    categories = {"birds": PARTS["birds"], "products": {"name": "stanford_online_products", "root": "sop"}}
    made.stanford_online_products(root / "sop")
    categories["products"]["task"] = "kind"
    assert merged.load(section(root, categories)).level == "category"


def test_images_are_those_for_training_of_all(root: Path) -> None:
    made.stanford_online_products(root / "sop")
    sop = {"name": "stanford_online_products", "root": str(root / "sop")}
    images = merged.images(section(root, {"birds": PARTS["birds"], "products": sop}))
    assert len(images) == 6 + 3
    assert images.labels is not None
    assert images.class_names[images.labels[0]] == "birds/001.Bird_1"
    assert images.class_names[images.labels[-1]] == "products/2"
    assert all(images.file(i).is_file() for i in range(len(images)))
    # Without a root of their own the parts' roots are taken as they are.
    birds = {"name": "cub200", "root": str(root / "birds")}
    bare = {"name": "merged", "parts": {"birds": birds, "products": sop}}
    same = merged.images(config.plugin_config("dataset", bare, "data"))
    assert (same.root, same.paths) == (images.root, images.paths)


def test_mistakes(root: Path, tmp_path: Path) -> None:
    birds = PARTS["birds"]
    nowhere = {"name": "cub200", "root": "no"}
    for parts, options, complaint in [
        ({"birds": birds}, {}, "data.parts: give two or more"),
        (None, {"domain": "bird"}, r"data.domain='bird': .*did you mean 'birds'"),
        (None, {}, "follow different protocols: set data.domain"),
        ({"birds": birds, "again": birds}, {}, r"image 'images/.*' is in the parts 'birds' and 'again'"),
        ({"birds": birds, "none": nowhere}, {}, r"part 'none': data.root=.*does not exist"),
    ]:
        with pytest.raises(UserError, match=complaint):
            merged.load(section(root, parts, **options))
    with pytest.raises(UserError, match=r"missing value for 'data.parts.x.root'"):
        section(root, {"birds": birds, "x": {"name": "cub200"}})
    with pytest.raises(UserError, match=r"'data.parts.x.splt'; did you mean 'data.parts.x.split'"):
        section(root, {"birds": birds, "x": {"name": "cub200", "root": "x", "splt": "official"}})
    with pytest.raises(UserError, match="does not exist"):
        merged.images(section(tmp_path / "nowhere"))


def test_comparing_domains_in_one_gallery(cli: Command, tmp_path: Path) -> None:
    for part, classes in {"warm": ("apple", "bear"), "cold": ("cloud", "door")}.items():
        for name in classes:
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(3):
                photo(COLOURS[name], seed=i).save(tmp_path / part / name / f"{i}.png")
    (tmp_path / "grid.yaml").write_text(
        "out: ???\n"
        "data:\n"
        "  name: merged\n"
        "  root: ???\n"
        "  parts:\n"
        "    warm: {name: folder, root: warm}\n"
        "    cold: {name: folder, root: cold}\n"
        "tasks: {warm: {domain: warm}, cold: {domain: cold}, all: {domain: ''}}\n"
        "models: {pixels: {name: pixels}, histogram: {name: color_histogram}}\n"
    )
    out = tmp_path / "out"
    done = cli("compare", tmp_path / "grid.yaml", f"data.root={tmp_path}", f"out={out}")
    assert done.code == 0, done.err
    table = (out / "table.md").read_text()
    assert all(name in table for name in ("pixels", "histogram"))
    # The gallery is the same, so each representation has embedded it once.
    assert len(list((out / "reports").glob("*.json"))) == 6


@pytest.mark.parametrize("domain", PARTS)
def test_other_domains_are_only_ever_in_the_way(root: Path, domain: str) -> None:
    task, own = merged.load(section(root, domain=domain)), alone(root, domain)
    rng = np.random.default_rng(0)
    vector_of = {task.gallery.file(i): rng.normal(size=8) for i in range(len(task.gallery))}
    queries = rng.normal(size=(len(task.queries), 8)).astype(np.float32)

    def scores(of: Task) -> np.ndarray:
        vectors = [vector_of[of.gallery.file(i).resolve()] for i in range(len(of.gallery))]
        ranks = relevant_ranks(queries, np.array(vectors, np.float32), of.relevant, of.ignored)
        return metrics.compute("mAP", ranks)

    among_all, among_own = scores(task), scores(own)
    assert (np.isnan(among_all) == np.isnan(among_own)).all()
    assert (np.nan_to_num(among_all) <= np.nan_to_num(among_own)).all()
    assert np.nanmean(among_all) < np.nanmean(among_own)
