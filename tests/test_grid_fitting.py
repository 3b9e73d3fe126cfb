"""What comparisons and evaluations fit, where, and what they refuse."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from command_line import Command
from made_up_photos import COLOURS, photo, write_flat_photos
from PIL import Image
from small_grids import (
    HISTOGRAM,
    TINY_PIXELS,
    below_table,
    evaluation,
    grid,
    markdown_table,
    mean_of,
    mistake,
    report_of,
    split,
)
from tiny_extractors import tiny_extractors

from ssl_retrieval.errors import UserError
from ssl_retrieval.evaluate import evaluate
from ssl_retrieval.grid import run_grid

__all__ = ["split", "tiny_extractors"]


def test_what_cannot_be_fitted_is_left_out_with_a_note(photos: Path, tmp_path: Path) -> None:
    derived = {
        "white": {"of": ["histogram"], "steps": ["pca_whiten:8"]},
        "white, ranked": {"of": ["white", "pixels"], "fuse": "reciprocal_rank"},
        "signs": {"of": ["pixels"], "steps": ["sign"]},
    }
    comparison = run_grid(grid(tmp_path, photos, derived=derived))
    assert comparison.representations == ("histogram", "pixels", "signs")
    first, second = comparison.notes
    assert first.startswith("'white' is left out on 'photos': task 'photos' has no images to fit on")
    assert second.startswith("'white, ranked' is left out on 'photos': it is made of 'white'")
    for file in ("table.md", "report.html"):
        text = (tmp_path / file).read_text().replace("&#39;", "'")
        assert first in text
        assert second in text
    assert "white" not in (tmp_path / "table.csv").read_text()


def test_what_cannot_be_fitted_can_stop_it(photos: Path, tmp_path: Path) -> None:
    derived = {"white": {"of": ["histogram"], "steps": ["pca_whiten:8"]}}
    line = mistake(grid(tmp_path, photos, derived=derived, on_missing_fit="fail"))
    assert line.startswith("task 'photos' has no images to fit on")
    assert not (tmp_path / "embeddings").exists(), "before anything is embedded"
    line = mistake(grid(tmp_path, photos, derived=derived, on_missing_fit="sometimes"))
    assert line == "on_missing_fit='sometimes': use leave_out or fail"


def test_other_images_to_fit_on(photos: Path, split: Path, tmp_path: Path) -> None:
    derived = {"white": {"of": ["histogram"], "steps": ["pca_whiten:8"]}}
    fit = {"name": "folder", "root": str(split), "queries": "val", "gallery": "train"}
    run_grid(grid(tmp_path, photos, derived=derived, fit=fit))
    assert report_of(tmp_path, "white", "photos").representation["fitted"] == {
        "source": "another set",
        "num_images": 24,
        "num_in_gallery": 0,
        "num_in_queries": 0,
    }
    assert "white: fitted on 24 images: another set (photos)." in below_table(tmp_path)


def test_other_images_that_are_queries_are_refused_at_once(photos: Path, tmp_path: Path) -> None:
    derived = {"white": {"of": ["histogram"], "steps": ["pca_whiten:8"]}}
    fit = {"name": "folder", "root": str(photos)}
    line = mistake(grid(tmp_path, photos, derived=derived, fit=fit))
    assert "40 of the 40 images to fit on are queries" in line
    assert not (tmp_path / "embeddings").exists()
    run_grid(grid(tmp_path, photos, fit=fit))


def test_unlabelled_images_leave_out_what_needs_pairs(photos: Path, tmp_path: Path) -> None:
    derived = {
        "learned": {"of": ["histogram"], "steps": ["learned_whiten:8"]},
        "white": {"of": ["histogram"], "steps": ["pca_whiten:8"]},
    }
    fit = {"name": "folder", "root": str(write_flat_photos(tmp_path / "flat", 12))}
    comparison = run_grid(grid(tmp_path / "out", photos, derived=derived, fit=fit))
    assert comparison.representations == ("histogram", "pixels", "white")
    (note,) = comparison.notes
    assert "'learned' is left out on 'photos': learned_whiten needs images that match" in note


def test_fitting_on_the_test_images_is_said_everywhere(photos: Path, tmp_path: Path, cli: Command) -> None:
    job = tmp_path / "job.yaml"
    derived = {"white": {"of": ["histogram"], "steps": ["pca_whiten:8"]}}
    models = {"histogram": HISTOGRAM, "pixels": TINY_PIXELS}
    tree = {"data": {"name": "folder", "root": str(photos)}, "models": models, "derived": derived}
    job.write_text(yaml.safe_dump(tree))
    out = tmp_path / "out"
    done = cli("compare", job, f"out={out}", "fit_on_test=true", "fit_limit=30")
    assert done.code == 0, done.err
    fitted = report_of(out, "white", "photos").representation["fitted"]
    assert fitted == {
        "source": "the gallery (forced)",
        "num_images": 30,
        "num_in_gallery": 30,
        "num_in_queries": 30,
    }
    warning = "Fitted on queries of photos, which flatters: white."
    assert warning in " ".join(done.out.split())
    assert warning in below_table(out)
    assert "30 OF THEM ARE QUERIES" in below_table(out)
    page = (out / "report.html").read_text()
    assert f'<p class="warning" role="note">{warning}</p>' in page
    assert "30 OF THEM ARE QUERIES" in page
    late = cli("compare", *sorted((out / "reports").glob("*.json")), "--out", tmp_path / "late")
    assert late.code == 0, late.err
    assert warning in below_table(tmp_path / "late")


def test_tasks_with_and_without_images_to_fit_on(photos: Path, split: Path, tmp_path: Path) -> None:
    derived = {"white": {"of": ["pixels"], "steps": ["pca_whiten:8"]}}
    tasks = {
        "loose": {"root": str(photos), "queries": "", "gallery": ""},
        "split": {"root": str(split)},
    }
    comparison = run_grid(grid(tmp_path, split, derived=derived, tasks=tasks))
    by_name = {task.task: task for task in comparison.tasks}
    assert by_name["photos"].entry("white") is None
    assert by_name["toys"].entry("white") is not None
    row = markdown_table(tmp_path).loc["white"]
    assert row["photos (category-level) mAP"] == "–"
    assert row["toys (category-level) mAP"] != "–"


def test_a_task_on_which_nothing_is_left_is_named(
    tiny_extractors: None, photos: Path, tmp_path: Path
) -> None:
    single = tmp_path / "single"
    for number, (name, colour) in enumerate(COLOURS.items()):
        for i, side in enumerate(("val", "train")):
            (single / side / name).mkdir(parents=True)
            photo(colour, seed=10 * number + i).save(single / side / name / "0.png")
    tasks = {
        "some": {"root": str(single)},
        "nothing": {"root": str(photos), "queries": "", "gallery": ""},
    }
    models, derived = {"words": {"name": "learner"}}, {"w": {"of": ["words"], "steps": ["learned_whiten"]}}
    line = mistake(grid(tmp_path / "out", single, tasks=tasks, models=models, derived=derived))
    assert line.startswith("nothing could be evaluated on task 'photos': 'words' is left out on 'photos'")
    assert report_of(tmp_path / "out", "words", "single").representation["dim"] == 4
    assert not (tmp_path / "out" / "reports" / "single--w.json").exists()


def test_extractors_that_learn(
    tiny_extractors: None, split: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = {"words": {"name": "learner", "words": 9}, "pixels": TINY_PIXELS}
    derived = {"words, white": {"of": ["words"], "steps": ["pca_whiten:4"]}}
    cfg = grid(tmp_path, split, models=models, derived=derived)
    run_grid(cfg)
    report = report_of(tmp_path, "words")
    assert report.representation["dim"] == 9
    assert report.representation["fitted"]["num_images"] == 24
    assert mean_of(report) > 0.8
    assert "words; words, white: fitted on 24 images" in below_table(tmp_path)
    assert len(list((tmp_path / "embeddings").glob("words-learned-*.safetensors"))) == 1
    key = report.representation["key"]
    capsys.readouterr()
    run_grid(cfg)
    assert "embedding takes about 0 s" in capsys.readouterr().err
    assert report_of(tmp_path, "words").representation["key"] == key


def test_an_extractor_that_learns_learns_for_each_task(
    tiny_extractors: None, split: Path, photos: Path, tmp_path: Path
) -> None:
    """Its derived representations come last, when it knows the words of the last task."""
    other = tmp_path / "others"
    for side, numbers in (("val", range(2)), ("train", range(2, 6))):
        for number, (name, colour) in enumerate(COLOURS.items()):
            (other / side / name).mkdir(parents=True)
            for i in numbers:
                photo(colour, seed=9000 + 10 * number + i).save(other / side / name / f"{i}.png")
    models = {"words": {"name": "learner", "words": 9}}
    derived = {"white": {"of": ["words"], "steps": ["pca_whiten:4"]}}
    tasks = {"one": {"root": str(split)}, "other": {"root": str(other)}}
    fit = {"fit": {"name": "folder", "root": str(photos)}}
    for keys in ({}, fit):
        out = tmp_path / f"both {len(keys)}"
        run_grid(grid(out, split, tasks=tasks, models=models, derived=derived, **keys))
        for root in (split, other):
            alone = tmp_path / f"{root.name} {len(keys)}"
            run_grid(grid(alone, root, models=models, derived=derived, **keys))
            for name in ("words", "white"):
                together, single = (report_of(place, name, root.name) for place in (out, alone))
                assert together.representation == single.representation
                np.testing.assert_array_equal(together.per_query["mAP"], single.per_query["mAP"])


def test_images_without_features_are_reported(tiny_extractors: None, photos: Path, tmp_path: Path) -> None:
    models = {"blind": {"name": "blind"}, "pixels": TINY_PIXELS}
    derived = {"late": {"of": ["blind", "pixels"], "fuse": "score_sum"}}
    run_grid(grid(tmp_path, photos, models=models, derived=derived))
    numbers = {
        name: report_of(tmp_path, name, "photos").info["num_images_without_features"]
        for name in ("blind", "pixels", "late")
    }
    assert numbers == {"blind": 30, "pixels": 0, "late": 0}
    note = "blind: 30 images have no features and score 0 with everything (photos)."
    assert note in below_table(tmp_path)
    assert note in (tmp_path / "report.html").read_text()


def test_what_has_only_scores(tiny_extractors: None, split: Path, tmp_path: Path) -> None:
    models = {"scorer": {"name": "scorer"}, "histogram": HISTOGRAM}
    late = {"late": {"of": ["scorer", "histogram"], "fuse": "reciprocal_rank"}}
    run_grid(grid(tmp_path / "good", split, models=models, derived=late))
    assert mean_of(report_of(tmp_path / "good", "late")) > 0.8
    assert markdown_table(tmp_path / "good").loc["scorer", "bytes/image"] == "1.5"
    for number, (name, recipe) in enumerate(
        [("joined", {"of": ["histogram", "scorer"]}), ("w", {"of": ["scorer"], "steps": ["center"]})]
    ):
        out = tmp_path / str(number)
        line = mistake(grid(out, split, models=models, derived={name: recipe}))
        assert line.startswith(f"{name!r}: 'scorer' has scores and no vectors")
        assert not (out / "embeddings").exists()
    nested = late | {"white": {"of": ["late"], "steps": ["center"]}}
    line = mistake(grid(tmp_path / "nested", split, models=models, derived=nested))
    assert line.startswith("'white': 'late' has scores and no vectors")


@pytest.mark.parametrize(
    ("derived", "expected"),
    [
        ({"x": {"of": ["histogramm"]}}, "derived.x.of: no representation 'histogramm' before it"),
        ({"x": {"of": ["y"]}, "y": {"of": ["pixels"]}}, "derived.x.of: no representation 'y' before it"),
        ({"x": {"of": ["x"]}}, "derived.x.of: no representation 'x' before it"),
        ({"x": {"steps": ["l2"]}}, "derived.x.of is empty"),
        ({"x": {"of": ["pixels"], "steps": ["pca_witen:8"]}}, "did you mean 'pca_whiten'"),
        ({"x": {"of": ["pixels"], "steps": ["pca"]}}, "derived.x.steps: step 'pca': a parameter is missing"),
        ({"pixels": {"of": ["histogram"]}}, "derived.pixels: there is a model of that name"),
        ({"a/b": {"of": ["histogram"]}}, "representation 'a/b': a label names files"),
        (
            {"x": {"of": ["pixels", "histogram"], "weights": [1]}},
            "derived.x.weights has 1 values for 2 parts",
        ),
    ],
)
def test_mistakes_in_derived_sections(
    photos: Path, tmp_path: Path, derived: Mapping[str, Any], expected: str
) -> None:
    assert expected in mistake(grid(tmp_path / "out", photos, derived=derived))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("derived", "expected"),
    [
        ("{x: {offf: [pixels]}}", "unknown key 'derived.x.offf'; did you mean 'derived.x.of'"),
        ("{x: {of: [pixels], step: [l2]}}", "unknown key 'derived.x.step'; did you mean 'derived.x.steps'"),
        ("{x: {of: pixels}}", "derived.x.of"),
        ("{x: {of: [pixels], weights: [heavy]}}", "derived.x.weights"),
        ("{x: [pixels]}", "'derived.x' must be a section of keys (as derived.x.of=…), not ['pixels']"),
        ("[x]", "'derived' must be a section of keys (as derived.LABEL.of=…), not ['x']"),
    ],
)
def test_derived_sections_of_the_wrong_type(
    cli: Command, photos: Path, tmp_path: Path, derived: str, expected: str
) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(
        f"data: {{name: folder, root: {photos}}}\nmodels: {{pixels: {{name: pixels}}}}\nderived: {derived}\n"
    )
    assert expected in cli("compare", job, f"out={tmp_path / 'out'}").user_error()


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"fit_limit": 1}, "fit_limit=1: at least 2"),
        ({"embed": {"precision": "fp8"}}, "embed.precision='fp8'"),
        ({"fit": {"name": "folder", "root": "/does/not/exist"}}, "does not exist"),
    ],
)
def test_mistakes_are_found_before_anything_is_embedded(
    split: Path, tmp_path: Path, keys: Mapping[str, Any], expected: str
) -> None:
    derived = {"white": {"of": ["histogram"], "steps": ["pca_whiten:8"]}}
    assert expected in mistake(grid(tmp_path / "out", split, derived=derived, **keys))
    assert not (tmp_path / "out" / "embeddings").exists()


def test_evaluate_refuses_at_once(tiny_extractors: None, photos: Path, split: Path, tmp_path: Path) -> None:
    for root, keys, expected in (
        (photos, {"steps": ["center"]}, "has no images to fit on"),
        (split, {"steps": ["centre"]}, "unknown step 'centre'; did you mean 'center'"),
        (split, {"steps": ["center"], "fit_limit": 0}, "fit_limit=0"),
        (split, {"steps": ["center"], "model": {"name": "scorer"}}, "'scorer' has scores and no vectors"),
        (photos, {"model": {"name": "learner"}}, "has no images to fit on"),
    ):
        with pytest.raises(UserError) as caught:
            evaluate(evaluation(tmp_path / "out", root, **keys))
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()


def test_evaluate_without_training_images_can_be_forced(photos: Path, tmp_path: Path) -> None:
    report = evaluate(evaluation(tmp_path, photos, steps=["center", "sign"], fit_on_test=True))
    assert report.representation["fitted"]["num_in_queries"] == 40
    assert report.costs["bytes_per_image"] == 8


def test_skipped_images_with_derived_rungs(split: Path, tmp_path: Path) -> None:
    root = tmp_path / "toys"
    for file in split.rglob("*.png"):
        target = root / file.relative_to(split)
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as image:
            image.save(target)
    (root / "train" / "bear" / "4.png").write_text("no image")
    (root / "val" / "door" / "1.png").write_bytes(b"")
    derived = {
        "white": {"of": ["histogram"], "steps": ["learned_whiten:8"]},
        "joined": {"of": ["histogram", "pixels"]},
        "late": {"of": ["white", "pixels"], "fuse": "score_sum"},
    }
    run_grid(grid(tmp_path / "out", root, derived=derived))
    for name in ("histogram", "white", "joined", "late"):
        report = report_of(tmp_path / "out", name)
        assert [item[0] for item in report.info["skipped"]] == ["train/bear/4.png", "val/door/1.png"]
        assert (len(report.query_ids), report.info["num_gallery"]) == (11, 23)
        assert report.info["num_images_without_features"] == 0
    line = mistake(
        grid(
            tmp_path / "strict",
            root,
            derived=derived,
            data={
                "name": "folder",
                "root": str(root),
                "queries": "val",
                "gallery": "train",
                "on_error": "fail",
            },
        )
    )
    assert "cannot read" in line


def test_a_wrong_folder_to_fit_on_is_named_by_its_own_key(photos: Path, tmp_path: Path) -> None:
    derived = {"white": {"of": ["histogram"], "steps": ["pca_whiten:8"]}}
    fit = {"name": "folder", "root": str(tmp_path / "nowhere")}
    with pytest.raises(UserError, match=r"^fit\.root='.*nowhere' does not exist"):
        run_grid(grid(tmp_path, photos, derived=derived, fit=fit))
