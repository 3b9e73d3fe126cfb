"""Every mistake of a user: exit 2, one line that says what, where and what to do, nothing left behind."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import Command, run_in_own_process
from made_up_photos import write_flat_photos, write_photos

JOB = "data: {name: folder}\nmodel: {name: pixels}\n"
PRETRAIN = """
data: {name: folder}
model: {name: resnet10t, image_size: 32}
method: {name: simclr}
epochs: 1
batch_size: 4
precision: fp32
memory_format: contiguous
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    file = tmp_path / "job.yaml"
    file.write_text(JOB)
    return file


@pytest.fixture
def pretrain_job(tmp_path: Path) -> Path:
    file = tmp_path / "pretrain.yaml"
    file.write_text(PRETRAIN)
    return file


@pytest.fixture
def compare_job(tmp_path: Path) -> Path:
    file = tmp_path / "compare.yaml"
    file.write_text("data: {name: folder}\nmodels: {tiny: {name: pixels, size: 2}}\n")
    return file


@pytest.fixture
def jobs(job: Path, pretrain_job: Path, compare_job: Path) -> dict[str, Path]:
    return {"embed": job, "evaluate": job, "pretrain": pretrain_job, "compare": compare_job}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


COMMANDS = ["embed", "evaluate", "pretrain", "compare"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_does_not_exist(cli: Command, jobs: dict[str, Path], out: Path, command: str) -> None:
    line = cli(command, jobs[command], "data.root=/no/such/photos", f"out={out}").user_error()
    assert line == "data.root='/no/such/photos' does not exist: check the path"
    assert not (out / "report.json").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_an_empty_folder(
    cli: Command, jobs: dict[str, Path], out: Path, tmp_path: Path, command: str
) -> None:
    (tmp_path / "empty").mkdir()
    line = cli(command, jobs[command], f"data.root={tmp_path / 'empty'}", f"out={out}").user_error()
    assert line.startswith(f"no image in '{tmp_path / 'empty'}' (it has no files): image files end with")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_instead_of_a_folder(cli: Command, jobs: dict[str, Path], out: Path, command: str) -> None:
    line = cli(command, jobs[command], f"data.root={jobs['embed']}", f"out={out}").user_error()
    assert "is a file: give a folder (unpack archives)" in line


@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_one_image_has_nothing_to_find(
    cli: Command, jobs: dict[str, Path], out: Path, tmp_path: Path, command: str
) -> None:
    root = write_flat_photos(tmp_path / "one", 1)
    line = cli(command, jobs[command], f"data.root={root}", f"out={out}").user_error()
    assert "no query of task 'one' has a positive" in line
    assert "give subfolders as classes" in line
    assert not out.exists()


def test_one_image_is_too_few_to_train(cli: Command, pretrain_job: Path, out: Path, tmp_path: Path) -> None:
    root = write_flat_photos(tmp_path / "one", 1)
    line = cli("pretrain", pretrain_job, f"data.root={root}", f"out={out}").user_error()
    assert line.startswith("batch_size=4 is larger than the 1 readable training images")
    assert not (out / "checkpoint.safetensors").exists()


def test_a_task_without_positives(cli: Command, job: Path, out: Path, tmp_path: Path) -> None:
    root = write_photos(tmp_path / "lonely", per_class=1)
    line = cli("evaluate", job, f"data.root={root}", f"out={out}").user_error()
    assert "at least two images per class" in line
    assert not out.exists()


def test_a_task_whose_positives_cannot_be_read(cli: Command, job: Path, out: Path, tmp_path: Path) -> None:
    root = write_photos(tmp_path / "photos", per_class=2, classes=2)
    for name in ("apple", "bear"):
        (root / name / "1.png").write_text("no image")
    done = cli("evaluate", job, f"data.root={root}", f"out={out}")
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith("error: no query of task 'photos' has a positive")
    assert "apple/1.png: not an image" in done.err
    assert not (out / "report.json").exists()


@pytest.mark.parametrize("command", ["embed", "evaluate", "compare"])
def test_a_folder_where_everything_is_broken(
    cli: Command, jobs: dict[str, Path], out: Path, tmp_path: Path, command: str
) -> None:
    root = write_photos(tmp_path / "photos", per_class=2, classes=2)
    for file in root.rglob("*.png"):
        file.write_text("no image")
    line = cli(command, jobs[command], f"data.root={root}", f"out={out}").user_error()
    assert line == (
        f"none of the 4 images in '{root}' can be read: check the files; "
        "the first, 'apple/0.png': not an image"
    )
    assert not list(out.rglob("*.json"))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_misspelt_key(cli: Command, jobs: dict[str, Path], out: Path, photos: Path, command: str) -> None:
    arguments = (command, jobs[command], f"data.root={photos}", f"out={out}", "sede=1")
    assert cli(*arguments).user_error().startswith("unknown key 'sede'; did you mean 'seed'?")
    jobs[command].write_text(jobs[command].read_text() + "ouut: here\n")
    line = cli(*arguments[:-1]).user_error()
    assert line.startswith("unknown key 'ouut'; did you mean 'out'?")
    assert not out.exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_no_out(cli: Command, jobs: dict[str, Path], photos: Path, command: str) -> None:
    line = cli(command, jobs[command], f"data.root={photos}").user_error()
    assert line == "missing value for 'out': set it in the yaml or as out=…"


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        (["embed", "nowhere.yaml"], "no config file 'nowhere.yaml'"),
        (["embed", "data.root=x", "out=y"], "no config among 'data.root=x out=y'"),
        (["embed", "JOB", "seed", "3"], "cannot read override 'seed': write it as key=value"),
        (["embed"], "Missing argument"),
        (["embde"], "No such command 'embde'. Did you mean 'embed'? (see ssl-retrieval --help)"),
        (["embed", "JOB", "--batch", "3"], "No such option: --batch (see ssl-retrieval embed --help)"),
        (["search", "--embeddings", "x"], "Missing option '--query'"),
        (["search", "--embeddings", "x", "--query", "y", "--k", "few"], "Invalid value for '--k'"),
        (["embed", "JOB", "ROOT", "OUT", "device=cuda:7"], "device='cuda:7' is not usable on this machine"),
        (["embed", "JOB", "ROOT", "OUT", "device=gpu"], "device='gpu' is not usable on this machine"),
        (["embed", "JOB", "ROOT", "OUT", "model.name=pixel"], "unknown extractor 'pixel'"),
        (["embed", "JOB", "ROOT", "OUT", "model.size=0"], "model.size=0: pixels need a side of 1 to 512"),
        (["embed", "JOB", "ROOT", "OUT", "image_size=0"], "image_size=0: must be at least 1"),
        (["embed", "JOB", "ROOT", "OUT", "embed.batch_size=0"], "embed.batch_size=0: must be at least 1"),
        (
            ["embed", "JOB", "ROOT", "OUT", "data.on_error=ignore"],
            "data.on_error='ignore': use one of skip, fail",
        ),
        (
            ["evaluate", "JOB", "ROOT", "OUT", "metrics=[map]"],
            "unknown metric 'map': the nearest known are mAP",
        ),
        (["evaluate", "JOB", "ROOT", "OUT", "metrics=[recall@0]"], "unknown metric 'recall@0'"),
        (["evaluate", "JOB", "ROOT", "OUT", "metrics=mAP"], "a list, as [a, b], is needed, not 'mAP'"),
        (["evaluate", "JOB", "ROOT", "OUT", "protocol.image_size=0"], "protocol.image_size=0"),
        (["evaluate", "JOB", "ROOT", "OUT", "label=a/b"], "representation 'a/b': a label names files"),
        (["compare", "COMPARE", "ROOT", "OUT", "models.a/b.name=pixels"], "representation 'a/b'"),
        (["compare", "nowhere.json"], "cannot read the report nowhere.json: No such file"),
        (["compare", "JOB.json"], "is JSON but not a report"),
        (
            ["compare", "nowhere.json", "statistics.resample=class"],
            "statistics.resample='class': use auto, queries or groups",
        ),
        (
            ["evaluate", "JOB", "ROOT", "OUT", "statistics.test=t"],
            "statistics.test='t': use sign_flip",
        ),
        (
            ["compare", "COMPARE", "ROOT", "OUT", "seeds.twins=[tiny]"],
            "seeds.twins: give at least two representations",
        ),
        (["compare", "COMPARE", "ROOT", "OUT", "seeds.twins=[tiny,x]"], "seeds.twins: no representation 'x'"),
        (["compare", "nowhere.json", "seed=1"], "unknown key 'seed' (known keys: out, statistics)"),
        (["pretrain", "PRETRAIN", "ROOT", "OUT", "model.name=resnet5O"], "did you mean 'resnet50'"),
        (["pretrain", "PRETRAIN", "ROOT", "OUT", "method.name=simcrl"], "did you mean 'simclr'"),
    ],
)
def test_mistakes_on_the_command_line(
    cli: Command,
    jobs: dict[str, Path],
    out: Path,
    photos: Path,
    tmp_path: Path,
    arguments: list[str],
    needed: str,
) -> None:
    (tmp_path / "job.json").write_text("{}")
    places = {
        "JOB": jobs["embed"],
        "PRETRAIN": jobs["pretrain"],
        "COMPARE": jobs["compare"],
        "JOB.json": tmp_path / "job.json",
        "ROOT": f"data.root={photos}",
        "OUT": f"out={out}",
    }
    line = cli(*[places.get(argument, argument) for argument in arguments]).user_error()
    assert needed in line
    assert not list(out.rglob("*.json"))


def test_key_value_may_stand_before_the_config(cli: Command, job: Path, out: Path, photos: Path) -> None:
    assert cli("embed", f"data.root={photos}", job, f"out={out}").code == 0


def test_no_command_shows_help(cli: Command) -> None:
    done = cli()
    assert (done.code, done.err) == (0, "")
    assert "Usage: ssl-retrieval" in done.out


@pytest.mark.parametrize("command", [*COMMANDS, "search", "demo"])
def test_help_shows_an_example(cli: Command, command: str) -> None:
    done = cli(command, "--help")
    assert done.code == 0
    assert f"Example: ssl-retrieval {command} " in done.out


@pytest.mark.parametrize("command", COMMANDS)
def test_out_below_a_file(
    cli: Command, jobs: dict[str, Path], photos: Path, tmp_path: Path, command: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    out = tmp_path / "file" / "out"
    done = cli(command, jobs[command], f"data.root={photos}", f"out={out}")
    line = done.user_error()
    assert str(tmp_path / "file") in line
    assert "choose another out" in line
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("command", COMMANDS)
def test_out_without_permission(
    cli: Command, jobs: dict[str, Path], photos: Path, tmp_path: Path, command: str
) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    line = cli(command, jobs[command], f"data.root={photos}", f"out={tmp_path / 'closed'}/x").user_error()
    assert "choose another out" in line


# Search


@pytest.fixture
def embeddings(cli: Command, job: Path, photos: Path, out: Path) -> Path:
    assert cli("embed", job, f"data.root={photos}", f"out={out}").code == 0
    return out


def change_key(folder: Path, **values: object) -> None:
    file = folder / "key.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def other_dimension(folder: Path) -> None:
    np.save(folder / "vectors.npy", np.zeros((40, 5), np.float32))


def other_model(folder: Path) -> None:
    np.save(folder / "vectors.npy", np.zeros((40, 5), np.float32))
    change_key(folder, dim=5)


def other_weights(folder: Path) -> None:
    change_key(folder, weights="0123")


def fewer_vectors(folder: Path) -> None:
    np.save(folder / "vectors.npy", np.zeros((39, 768), np.float32))


def no_numpy_file(folder: Path) -> None:
    (folder / "vectors.npy").write_text("no array")


def no_parquet_file(folder: Path) -> None:
    (folder / "items.parquet").write_text("no table")


def no_vectors(folder: Path) -> None:
    (folder / "vectors.npy").unlink()


def foreign_key_file(folder: Path) -> None:
    (folder / "key.json").write_text("[1]")


def short_key_file(folder: Path) -> None:
    (folder / "key.json").write_text('{"key": "a"}')


def unfinished(folder: Path) -> None:
    (folder / "key.json").unlink()
    (folder / ".embed_parts").mkdir()


def not_embeddings(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def nothing(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("damage", "needed"),
    [
        (other_dimension, "vectors.npy has 5 dimensions, key.json says 768: run `embed` again"),
        (other_model, "its vectors have 5 dimensions, its model 'pixels' now gives 768: run `embed` again"),
        (other_weights, "the weights of 'pixels' have changed since: run `embed` again"),
        (fewer_vectors, "vectors.npy holds float32 [39, 768], items.parquet 40 ids: run `embed` again"),
        (no_numpy_file, "embeddings cannot be read"),
        (no_parquet_file, "embeddings cannot be read"),
        (no_vectors, "embeddings cannot be read"),
        (foreign_key_file, "embeddings cannot be read"),
        (short_key_file, "embeddings cannot be read ('dim')"),
        (unfinished, "(key.json is missing; an `embed` run here has not finished): run `embed` first"),
        (not_embeddings, "(key.json is missing): run `embed` first"),
        (nothing, "(key.json is missing): run `embed` first"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_embeddings_that_cannot_be_searched(
    cli: Command, embeddings: Path, photos: Path, damage: Callable[[Path], None], needed: str
) -> None:
    damage(embeddings)
    line = cli("search", "--embeddings", embeddings, "--query", photos / "bear" / "0.png").user_error()
    assert needed in line
    assert str(embeddings) in line


@pytest.mark.parametrize(
    ("query", "needed"),
    [
        ("job.yaml", "job.yaml: cannot be read as an image: not an image"),
        ("empty.png", "empty.png: cannot be read as an image: empty file (0 bytes)"),
        ("nowhere.png", "nowhere.png': give the path of an image file"),
        (".", "give the path of an image file"),
    ],
)
def test_a_query_that_is_no_image(
    cli: Command, embeddings: Path, tmp_path: Path, query: str, needed: str
) -> None:
    (tmp_path / "empty.png").touch()
    line = cli("search", "--embeddings", embeddings, "--query", tmp_path / query).user_error()
    assert needed in line


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        (["--k", "0"], "--k 0: must be at least 1"),
        (["--k", "-3"], "--k -3: must be at least 1"),
        (["--device", "cuda:7"], "device='cuda:7' is not usable on this machine"),
    ],
)
def test_wrong_options_of_search(
    cli: Command, embeddings: Path, photos: Path, options: list[str], needed: str
) -> None:
    query = photos / "bear" / "0.png"
    assert needed in cli("search", "--embeddings", embeddings, "--query", query, *options).user_error()


def test_a_page_below_a_file(cli: Command, embeddings: Path, photos: Path, job: Path) -> None:
    query = photos / "bear" / "0.png"
    done = cli("search", "--embeddings", embeddings, "--query", query, "--html", job / "page.html")
    assert "choose another" in done.user_error()


# The same from outside


def test_in_its_own_process_a_mistake_is_one_line_and_exit_2(tmp_path: Path, job: Path) -> None:
    done = run_in_own_process("embed", job, "data.root=nowhere", "out=here", cwd=tmp_path)
    assert done.user_error() == "data.root='nowhere' does not exist: check the path"
    assert done.out == ""
    assert not (tmp_path / "here").exists()


def test_a_line_stays_one_line_whatever_the_name_holds(cli: Command, job: Path, out: Path) -> None:
    line = cli("embed", job, "data.root='a\\nb [red] :dog: c'", f"out={out}").user_error()
    assert "[red] :dog: c" in line


def test_our_own_failure_is_not_dressed_up_as_the_users(
    cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("ssl_retrieval.find.find", fail)
    # Python's own way of ending: a traceback and exit status 1.
    with pytest.raises(ZeroDivisionError):
        cli("search", "--embeddings", "x", "--query", "y")


def test_ctrl_c_is_no_failure(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ssl_retrieval.find.find", stop)
    done = cli("search", "--embeddings", "x", "--query", "y")
    assert (done.code, done.out) == (130, "")
    assert done.err == "stopped; the same command goes on from what is saved\n"
